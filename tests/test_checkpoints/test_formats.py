# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmpretrain.models import ResNet

from mmdense.checkpoints import check_finite, recognise
from mmdense.utils.errors import CheckpointError

NAMES = sorted(ResNet(depth=18).state_dict())


def numbered(names):
    """A tensor each, told apart by its number."""
    return {name: torch.tensor([float(i)]) for i, name in enumerate(names)}


def below(*prefixes, names=NAMES):
    return [f'{prefix}{name}' for prefix in prefixes for name in names]


def mlp(part, layers):
    return [f'{part}.{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')]


PIXPRO = below('encoder.', 'encoder_k.') + [
    *('value_transform.weight', 'value_transform.bias'),
    *(
        name
        for part in ('projector', 'projector_k', 'projector_instance', 'projector_instance_k')
        + ('predictor', 'value_transform')
        for name in mlp(part, ['linear1', 'bn1', 'linear2'])
    ),
]
SLOTCON = below('encoder_q.', 'encoder_k.') + [
    *('center', 'grouping_q.slot_embed.weight', 'grouping_k.slot_embed.weight'),
    *(
        name
        for part in ('projector_q', 'projector_k', 'predictor_slot')
        for name in mlp(part, [f'mlp.{i}' for i in (0, 1, 3, 4, 6)])
    ),
]
QUEUES = ['queue', 'queue_ptr']
DENSECL = below('backbone.', 'encoder_q.0.', 'encoder_k.0.') + [
    *(*QUEUES, 'queue2', 'queue2_ptr'),
    *(f'encoder_{b}.1.{layer}.weight' for b in 'qk' for layer in ('mlp.0', 'mlp2.2')),
]
MOCO = [*below('encoder_q.', 'encoder_k.'), *QUEUES]

# names, what is beside them in the file, source, path of the backbone, its algorithm
FORMATS = [
    (PIXPRO, dict(epoch=100), 'PixPro', 'encoder.', 'PixPro'),
    (SLOTCON, dict(epoch=800), 'SlotCon', 'encoder_k.', 'SlotCon'),
    (DENSECL, dict(meta=dict(epoch=200)), 'OpenSelfSup DenseCL', 'encoder_q.0.', 'DenseCL'),
    ([*MOCO, 'encoder_q.0.w', 'encoder_k.0.w'], {}, 'OpenSelfSup MoCo', 'encoder_q.0.', 'MoCo'),
    ([*MOCO, 'encoder_q.fc.weight'], dict(arch='resnet18'), 'MoCo v1', 'encoder_q.', 'MoCo'),
    ([*MOCO, 'encoder_q.fc.0.weight'], dict(arch='resnet18'), 'MoCo v2', 'encoder_q.', 'MoCo'),
    (below('backbone.') + ['head.fc.weight'], dict(meta={}), 'mmpretrain', 'backbone.', ''),
    (NAMES + ['fc.weight', 'fc.bias'], {}, 'torchvision', '', ''),
    (NAMES, dict(author='somebody'), 'torchvision (somebody)', '', ''),
    (['patch_embed.w', 'stages.0.w'], {}, 'an unnamed source', '', ''),
]


@pytest.mark.parametrize('wrapper', ['', 'module.', 'module.module.'])
@pytest.mark.parametrize('key', ['state_dict', 'model', None])
@pytest.mark.parametrize('names, beside, source, path, algorithm', FORMATS)
def test_formats(names, beside, source, path, algorithm, key, wrapper):
    tensors = numbered(names)
    content = {f'{wrapper}{name}': value for name, value in tensors.items()}
    found = recognise(content if key is None else {key: content, **beside})
    assert found.source == (source if key else source.partition(' (')[0])
    classifier = f'{path}fc.'
    wanted = {
        name[len(path) :]: value
        for name, value in tensors.items()
        if name.startswith(path) and not name.startswith(classifier)
    }
    assert found.backbone == wanted
    assert len(found.dropped) == len(tensors) - len(wanted)
    assert (found.algorithm is None) == (not algorithm)
    assert found.algorithm_type == algorithm


def test_a_bare_state_dict():
    assert recognise(numbered(NAMES + ['fc.weight'])).backbone.keys() == set(NAMES)


@pytest.mark.parametrize('wrapper', ['model.', 'student.backbone.', 'encoder_k.', 'module.net.'])
def test_what_is_around_everything_is_taken_off(wrapper):
    tensors = numbered(below(wrapper))
    assert recognise(dict(state_dict=tensors)).backbone == numbered(NAMES)
    prefix = wrapper.rstrip('.')
    assert recognise(tensors, prefix=prefix).backbone == numbered(NAMES)


@pytest.mark.parametrize('source', ['mmpretrain', 'PixPro'])
def test_a_framework_around_a_known_format(source):
    names = below('backbone.') + ['head.fc.weight'] if source == 'mmpretrain' else PIXPRO
    found = recognise(dict(state_dict=numbered(below('model.', names=names))))
    assert found.source == source and found.backbone.keys() == set(NAMES)


subsets = st.sets(st.sampled_from(NAMES)).map(sorted)


@settings(max_examples=30, deadline=None)
@given(subsets)
def test_detectron2_names_round_trip(detectron2_name, subset):
    tensors = numbered(sorted({*subset, 'conv1.weight', 'layer1.0.conv1.weight'}))
    theirs = {detectron2_name(key): value.numpy() for key, value in tensors.items()}
    found = recognise(dict(model=theirs, __author__='OpenSelfSup', matching_heuristics=True))
    assert found.backbone == tensors and not found.dropped
    assert found.source == 'detectron2 (OpenSelfSup)'
    inside = {f'backbone.bottom_up.{key}': value for key, value in theirs.items()}
    with_head = dict(inside, **{'roi_heads.w': torch.ones(1)})
    assert recognise(with_head, prefix='backbone.bottom_up').backbone == tensors


def pixpro_name(key):
    """Our name of a tensor to PixPro's."""
    twin = '_k' if key.startswith('encoder_k.module.') else ''
    key = key.replace('encoder_k.module.', '')
    key = key.replace('instance_head.predictor', 'predictor').replace('head.value', 'value')
    key = re.sub(r'\.mlp\.(\d)', lambda m: f'.{dict(enumerate(MLP))[int(m[1])]}', key)
    for ours, theirs in (('instance_neck', 'projector_instance'), ('neck', 'projector')):
        if key.startswith(ours):
            return key.replace(ours, theirs + twin, 1)
    return key.replace('backbone', f'encoder{twin}', 1)


MLP = ('linear1', 'bn1', 'relu1', 'linear2')


def slotcon_name(key):
    """Our name of a tensor to SlotCon's."""
    branch = '_k' if key.startswith('encoder_k.module.') else '_q'
    key = key.replace('encoder_k.module.', '').replace('head.predictor', 'predictor_slot')
    part, _, rest = key.partition('.')
    if part == 'center':
        return 'center'
    part = dict(backbone='encoder', neck='projector').get(part, part)
    return f'{part}{"" if part == "predictor_slot" else branch}.{rest}'


ANCHORS = dict(
    PixPro=['encoder.conv1.weight', 'encoder_k.conv1.weight', 'projector.linear1.weight'],
    SlotCon=['encoder_k.conv1.weight', 'grouping_k.slot_embed.weight'],
)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(['PixPro', 'SlotCon']))
def test_names_of_algorithms_round_trip(data, source):
    names, back = (PIXPRO, pixpro_name) if source == 'PixPro' else (SLOTCON, slotcon_name)
    subset = data.draw(st.sets(st.sampled_from(names)))
    tensors = numbered(sorted(subset | set(ANCHORS[source])))
    found = recognise(dict(model={f'module.{k}': v for k, v in tensors.items()}))
    assert found.source == source
    ours = dict(found.algorithm)
    assert ours.pop('encoder_k.steps') == 1
    assert {back(key): value for key, value in ours.items()} == tensors
    product = dict(PixPro='backbone.', SlotCon='encoder_k.module.backbone.')[source]
    assert found.backbone == {
        k[len(product) :]: v for k, v in ours.items() if k.startswith(product)
    }


NECK = ['neck.lateral_convs.0.conv.weight']
OTHERS = [
    # names, what the message says, prefixes that it gives
    (
        [*below('backbone.'), *NECK, 'rpn_head.w', 'roi_head.bbox_head.w'],
        r'another task \(bbox_head, roi_head, rpn_head\), not of pretraining',
        ['backbone'],
    ),
    ([*below('backbone.'), 'bbox_head.w'], 'another task', ['backbone']),
    ([*below('backbone.'), 'decode_head.w', 'auxiliary_head.w'], 'another task', ['backbone']),
    ([*below('backbone.body.'), 'rpn.head.w', 'roi_heads.w'], 'another task', ['backbone.body']),
    (
        below('student.backbone.', 'teacher.backbone.') + ['student.rpn_head.w'],
        'another task',
        ['student.backbone', 'teacher.backbone'],
    ),
    (
        below('model.backbone.', 'ema.backbone.'),
        'format is not known yet',
        ['model.backbone', 'ema.backbone'],
    ),
    (
        [*below('backbone.'), 'decoder.layers.0.ffn.layers.0.w', 'bbox_head.w'],
        'another task',
        ['backbone'],
    ),
    ([*below('backbone.'), 'my_projector.w'], 'format is not known yet', ['backbone']),
    ([*below('encoder.'), 'projector.0.w'], 'format is not known yet', ['encoder']),
    ([*below('backbone.', names=['a.w', 'b.w']), 'rpn_head.w'], 'another task', ['backbone']),
    (['queue', 'head.0.weight'], 'format is not known yet', []),
]


@pytest.mark.parametrize('names, message, prefixes', OTHERS)
def test_other_tasks_and_unknown_sources_are_refused(names, message, prefixes):
    content = dict(state_dict=numbered(names))
    with pytest.raises(CheckpointError, match=f'^f.pth .*{message}') as error:
        recognise(content, name='f.pth')
    line = str(error.value)
    assert '\n' not in line and len(line) < 400
    for prefix in prefixes:
        assert f'prefix={prefix!r}' in line
        backbone = recognise(content, prefix=prefix).backbone
        assert {f'{prefix}.{key}' for key in backbone} <= set(names)
    assert line.count('prefix=') == max(1, len(prefixes))
    assert prefixes or 'Say with prefix=' in line


def test_another_package_says_its_task():
    """mmpose's models have parts of the same names."""
    tensors = numbered([*below('backbone.'), 'head.final_layer.weight'])
    for scope, fine in (('mmpose', False), ('mmpretrain', True)):
        meta = dict(cfg=f"model = dict()\ndefault_scope = '{scope}'\n")
        if fine:
            assert recognise(dict(meta=meta, state_dict=tensors)).source == 'mmpretrain'
            continue
        with pytest.raises(CheckpointError, match="another task of mmpose.*prefix='backbone'"):
            recognise(dict(meta=meta, state_dict=tensors))


def test_networks_in_dicts_of_their_own():
    content = dict(student=numbered(below('backbone.')), teacher=numbered(NAMES), epoch=3)
    with pytest.raises(CheckpointError, match="prefix='student.backbone' or prefix='teacher'"):
        recognise(content)
    assert recognise(content, prefix='teacher').backbone == numbered(NAMES)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_not_finite(bad):
    tensors = dict(
        a=torch.ones(2),
        n=torch.ones(2, dtype=torch.long),
        b=torch.tensor([1, bad]),
        c=torch.tensor([bad]),
    )
    with pytest.raises(CheckpointError, match='^f.pth holds NaN or infinite numbers, in b first'):
        check_finite(tensors, 'f.pth')
    del tensors['b'], tensors['c']
    check_finite(tensors, 'f.pth')


# ---------------------------------------------------------------- wrapped, nested, numbered


def put_below(prefix, tensors):
    return {f'{prefix}.{key}': value for key, value in tensors.items()}


@pytest.fixture(scope='module')
def resnet18():
    import torchvision

    network = torchvision.models.resnet18()
    numbered = torch.nn.Sequential(*list(network.children())[:-1]).state_dict()
    named = {k: v for k, v in network.state_dict().items() if not k.startswith('fc.')}
    return named, numbered


HEADS = {'projection_head.0.weight': torch.zeros(8, 512), 'prototypes.weight': torch.zeros(8, 8)}
WRAPPED = {
    'a Sequential': lambda named, numbered: numbered,
    'layer0': lambda named, _: {
        key.replace('conv1.', 'layer0.0.', 1).replace('bn1.', 'layer0.1.', 1)
        if key.startswith(('conv1.', 'bn1.'))
        else key: value
        for key, value in named.items()
    },
    'a Sequential, below': lambda named, numbered: put_below('module.encoder', numbered),
    'with a loss': lambda named, _: dict(
        model_state_dict=named, optimizer_state_dict=dict(state={}), loss=torch.tensor(1.0)
    ),
    'under another name': lambda named, _: dict(
        net=named, optimizer=dict(state={0: dict(momentum=torch.ones(2))}), loss=torch.tensor(1.0)
    ),
    'compiled': lambda named, _: dict(
        state_dict=dict(
            put_below('backbone._orig_mod', named), **{'head.fc.weight': torch.zeros(2)}
        )
    ),
    'in FSDP': lambda named, _: put_below(
        '_fsdp_wrapped_module',
        {
            k.replace('layer1.', 'layer1._fsdp_wrapped_module._checkpoint_wrapped_module.'): v
            for k, v in named.items()
        },
    ),
    'of Fabric': lambda named, _: dict(state_dict=put_below('_forward_module.module', named)),
    'in DataParallel': lambda named, _: dict(
        state_dict=dict(put_below('backbone.module', named), **{'head.fc.weight': torch.zeros(2)})
    ),
    'with heads': lambda named, _: put_below('module', dict(named, **HEADS)),
    'VISSL': lambda named, _: dict(
        phase_idx=3,
        classy_state_dict=dict(
            base_model=dict(
                model=dict(trunk=put_below('_feature_blocks', named), heads=dict(HEADS)), meta={}
            )
        ),
    ),
    'deep': lambda named, _: dict(network=dict(backbone=dict(weights=named))),
}


@pytest.mark.parametrize('kind', WRAPPED)
def test_around_a_backbone(kind, resnet18):
    named = resnet18[0]
    found = recognise(WRAPPED[kind](*resnet18))
    assert found.backbone.keys() == named.keys()
    for key, value in found.backbone.items():
        assert torch.equal(value, named[key])
    assert found.source == 'VISSL' or kind != 'VISSL'


def test_prefixes_in_nested_files(resnet18):
    content = WRAPPED['VISSL'](*resnet18)
    for prefix in (
        'classy_state_dict.base_model.model.trunk._feature_blocks',
        'trunk._feature_blocks',
        '_feature_blocks',
    ):
        assert recognise(content, prefix=prefix).backbone.keys() == resnet18[0].keys()


def test_the_momentum_encoder_in_the_loss_of_vissl(resnet18):
    content = WRAPPED['VISSL'](*resnet18)
    momentum = put_below('moco_encoder.trunk._feature_blocks', resnet18[0])
    content['classy_state_dict']['loss'] = {k: v + 1 for k, v in momentum.items()}
    found = recognise(content)
    assert found.source == 'VISSL'
    assert torch.equal(found.backbone['conv1.weight'], resnet18[0]['conv1.weight'])


def test_several_backbones_are_not_one(resnet18):
    """The line names them, and the prefixes work."""
    named = resnet18[0]
    for content in ([named, dict(named)], dict(student=named, teacher=dict(named))):
        with pytest.raises(CheckpointError) as error:
            recognise(content)
        prefixes = re.findall("prefix='(.*?)'", str(error.value))
        assert len(prefixes) == 2
        for prefix in prefixes:
            assert recognise(content, prefix=prefix).backbone.keys() == named.keys()


def test_containers_within_themselves():
    """What a file nests without end is read once."""
    node = {'a.weight': torch.ones(1)}
    node['again'] = node
    deep = node
    for _ in range(50):
        deep = {'x': deep, 'y': [deep, deep]}
    assert len(recognise(node, prefix='').backbone) == 1
    with pytest.raises(CheckpointError, match='holds no tensors'):
        recognise(deep)
