# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pickle

import pytest
import torch
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

from mmdense.checkpoints import read_checkpoint, recognise, save_backbone
from mmdense.utils.errors import CheckpointError, InputError


def build(package, **cfg):
    """A ResNet of mmpretrain, mmdet or mmseg, initialised as its tools do."""
    with DefaultScope.overwrite_default_scope(package):
        scoped = dict(dict(type=f'{package}.ResNet', depth=18), **cfg)
        model = ROOT.build(scoped)
        model.init_weights()
    return model


@pytest.fixture
def full_checkpoint(tmp_path, random_backbone):
    """As a run of DenseCL writes it, with a twin that differs."""
    backbone = random_backbone()
    state = {f'backbone.{k}': v for k, v in backbone.items()}
    state.update({f'encoder_k.module.0.{k}': torch.zeros_like(v) for k, v in backbone.items()})
    state.update({'neck.mlp.0.weight': torch.ones(2, 2), 'queue.keys': torch.ones(2, 2)})
    path = str(tmp_path / 'epoch_1.pth')
    meta = dict(epoch=1, iter=5, mmdense=dict(algorithm='DenseCL', product='backbone'))
    torch.save(dict(meta=meta, state_dict=state), path)
    return path, backbone


def assert_filled(model, backbone):
    for key, value in model.state_dict().items():
        assert torch.equal(value, backbone[key]), key


@pytest.mark.parametrize('package', ['mmpretrain', 'mmdet', 'mmseg'])
@pytest.mark.parametrize(
    'kind', [dict(type='mmdense.SelfSupPretrained'), dict(type='Pretrained', _scope_='mmdense')]
)
@pytest.mark.parametrize('zero_init_residual', [True, False])
def test_every_tensor_survives_init(full_checkpoint, package, kind, zero_init_residual, require):
    """Neither the children's own init_weights() nor zero_init_residual undo it."""
    require(package)
    path, backbone = full_checkpoint
    init_cfg = dict(kind, checkpoint=path)
    model = build(package, init_cfg=init_cfg, zero_init_residual=zero_init_residual)
    assert_filled(model, backbone)


def test_survives_inside_a_model(full_checkpoint, require):
    """When a detector or segmenter is the one that is initialised."""
    path, backbone = full_checkpoint
    require('mmseg')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = ROOT.build(
            dict(
                type='mmseg.EncoderDecoder',
                backbone=dict(
                    type='ResNet',
                    depth=18,
                    init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=path),
                ),
                decode_head=dict(
                    type='FCNHead', in_channels=512, channels=8, num_classes=2, in_index=3
                ),
            )
        )
        model.init_weights()
    assert_filled(model.backbone, backbone)


def test_another_depth_is_refused(full_checkpoint, random_backbone, tmp_path):
    path, _ = full_checkpoint
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=path)
    message = 'does not fit ResNet; nothing was loaded.*ResNet-18, the model is a ResNet-50'
    with pytest.raises(CheckpointError, match=message):
        build('mmpretrain', depth=50, init_cfg=init_cfg)
    # A deeper file has all that a shallower model wants, and more.
    deep = str(tmp_path / 'r34.pth')
    save_backbone(random_backbone(34), deep)
    with pytest.raises(CheckpointError, match='more in the file than in the model.*ResNet-34'):
        build('mmpretrain', init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=deep))


def test_missing_tensors_are_refused(random_backbone, tmp_path):
    backbone = random_backbone()
    del backbone['layer2.0.conv1.weight']
    path = str(tmp_path / 'part.pth')
    save_backbone(backbone, path)
    with pytest.raises(CheckpointError, match='1 missing from the file: layer2.0.conv1.weight'):
        build('mmpretrain', init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=path))


def test_a_deep_stem_is_refused(full_checkpoint, tmp_path):
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=full_checkpoint[0])
    with pytest.raises(CheckpointError, match="model has a deep stem.*use type='ResNet'"):
        build('mmpretrain', type='mmpretrain.ResNetV1c', init_cfg=init_cfg)
    path = str(tmp_path / 'deep.pth')
    save_backbone(build('mmpretrain', type='mmpretrain.ResNetV1c').state_dict(), path)
    init_cfg.update(checkpoint=path)
    message = r"deep.pth \(a ResNet-18 with a deep stem .*The file has.*use type='ResNetV1c'"
    with pytest.raises(CheckpointError, match=message):
        build('mmpretrain', init_cfg=init_cfg)


NETWORKS = {
    'a Swin Transformer': dict(type='mmpretrain.SwinTransformer', arch='tiny', depth=None),
    'a vision transformer': dict(type='mmpretrain.VisionTransformer', arch='deit-t', depth=None),
    'a ConvNeXt': dict(type='mmpretrain.ConvNeXt', arch='atto', depth=None),
    'a ResNet-18': dict(),
}


def network(kind, **more):
    cfg = dict(NETWORKS[kind], **more)
    if 'depth' in cfg:
        del cfg['depth']
        return ROOT.build(cfg)
    return build('mmpretrain', **cfg)


@pytest.mark.parametrize(
    'file, model',
    [(kind, 'a ResNet-18') for kind in NETWORKS if kind != 'a ResNet-18']
    + [('a ResNet-18', 'a Swin Transformer'), ('a vision transformer', 'a Swin Transformer')],
)
def test_another_architecture_is_refused(file, model, tmp_path):
    path = str(tmp_path / 'file.pth')
    torch.save(network(file).state_dict(), path)
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=path)
    wanted = network(model)
    before = {k: v.clone() for k, v in wanted.state_dict().items()}
    wanted.init_cfg, wanted._is_init = init_cfg, False
    message = rf'^{path} \({file} .*nothing was loaded.*file holds {file}, the model is {model}'
    with pytest.raises(CheckpointError, match=message) as error:
        wanted.init_weights()
    assert len(str(error.value)) < 600
    if model == 'a Swin Transformer':  # whose own init_weights() comes first on other weights
        return
    for key, value in wanted.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_language_model_is_refused(tmp_path):
    names = ['bert.embeddings.word_embeddings.weight', 'bert.layer.0.w', 'cls.predictions.bias']
    path = str(tmp_path / 'bert.bin')
    torch.save({name: torch.ones(2) for name in names}, path)
    with pytest.raises(CheckpointError, match='a language model, the model is a ResNet-18: they'):
        build('mmpretrain', init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=path))


def test_not_finite_is_refused(random_backbone, tmp_path):
    """In the part to load; what is beside it does not matter."""
    backbone = random_backbone()
    state = {f'backbone.{k}': v for k, v in backbone.items()}
    state['head.fc.weight'] = torch.tensor([float('nan')])
    path = str(tmp_path / 'file.pth')
    torch.save(dict(state_dict=state), path)
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=path)
    assert_filled(build('mmpretrain', init_cfg=init_cfg), backbone)
    state['backbone.layer2.0.bn1.running_var'][3] = float('inf')
    torch.save(dict(state_dict=state), path)
    message = f'^{path} holds NaN or infinite numbers, in layer2.0.bn1.running_var first'
    with pytest.raises(CheckpointError, match=message):
        build('mmpretrain', init_cfg=init_cfg)


def test_a_detector_is_refused(random_backbone, tmp_path):
    """Until its backbone is asked for."""
    backbone = random_backbone()
    state = {f'backbone.{k}': v for k, v in backbone.items()}
    state['rpn_head.rpn_conv.weight'] = torch.ones(1)
    path = str(tmp_path / 'detector.pth')
    torch.save(dict(meta={}, state_dict=state), path)
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=path)
    with pytest.raises(CheckpointError, match="another task.*prefix='backbone' takes"):
        build('mmpretrain', init_cfg=init_cfg)
    assert_filled(build('mmpretrain', init_cfg=dict(init_cfg, prefix='backbone')), backbone)


def test_stages_the_model_lacks_are_left_out(full_checkpoint):
    """The backbone of a C4 detector."""
    path, backbone = full_checkpoint
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=path)
    model = build(
        'mmpretrain',
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        init_cfg=init_cfg,
    )
    assert_filled(model, backbone)


def test_the_fourth_stage_of_a_c4_detector(full_checkpoint, require):
    """mmdet's C4 detectors have it in roi_head.shared_head."""
    require('mmdet')
    path, backbone = full_checkpoint
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=path)
    model = build('mmdet', type='mmdet.ResLayer', stage=3, stride=2, init_cfg=init_cfg)
    assert all(key.startswith('layer4.') for key in model.state_dict())
    assert_filled(model, backbone)


@pytest.mark.usefixtures('mmdense_scope')
def test_pretraining_goes_on_from_a_backbone(full_checkpoint):
    """DenseCL(pretrained=...), also where the file is a whole algorithm's."""
    path, backbone = full_checkpoint
    model = ROOT.build(
        dict(
            type='mmdense.DenseCL',
            queue_len=8,
            pretrained=path,
            backbone=dict(type='mmpretrain.ResNet', depth=18),
            neck=dict(type='DenseCLNeck', in_channels=512, hid_channels=8, out_channels=128),
            head=dict(type='InfoNCEHead'),
        )
    )
    model.init_weights()
    assert_filled(model.backbone, backbone)


def test_other_initialisers_beside_it_are_refused(full_checkpoint):
    """They would run after it."""
    init_cfg = [
        dict(type='mmdense.SelfSupPretrained', checkpoint=full_checkpoint[0]),
        dict(type='Kaiming', layer='Conv2d'),
    ]
    with pytest.raises(CheckpointError, match='lists 2 initialisers'):
        build('mmpretrain', init_cfg=init_cfg)


def published(networks, others):
    """As PixPro's and SlotCon's authors write their training checkpoints."""
    state = {f'{name}.{k}': v for name, net in networks.items() for k, v in net.items()}
    state.update(others)
    return dict(model={f'module.{k}': v for k, v in state.items()}, optimizer={}, epoch=1)


def test_a_pickle_of_detectron2(tmp_path, full_checkpoint, detectron2_name):
    """As DetCo's authors released theirs: numpy arrays, no batch counters."""
    backbone = {k: v for k, v in full_checkpoint[1].items() if 'num_batches' not in k}
    model = {detectron2_name(k): v.numpy() for k, v in backbone.items()}
    assert 'res3.0.shortcut.norm.weight' in model and 'stem.conv1.norm.bias' in model
    content = dict(model=model, __author__='OpenSelfSup', matching_heuristics=True)
    path = tmp_path / 'detco_200ep.pkl'
    path.write_bytes(pickle.dumps(content))
    filled = build(
        'mmpretrain', init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=str(path))
    )
    for key, value in backbone.items():
        assert torch.equal(filled.state_dict()[key], value), key
    assert recognise(read_checkpoint(str(path))).source == 'detectron2 (OpenSelfSup)'
    path.write_bytes(pickle.dumps(dict(model=model, extra=print)))
    with pytest.raises(CheckpointError, match='refused'):
        read_checkpoint(str(path))


def test_other_sources(tmp_path, full_checkpoint):
    """mmpretrain's files, files of DistributedDataParallel, a bare state dict,
    PixPro's and SlotCon's."""
    backbone = full_checkpoint[1]
    other = {k: torch.zeros_like(v) for k, v in backbone.items()}
    files = dict(
        mmpretrain=dict(meta={}, state_dict={f'backbone.{k}': v for k, v in backbone.items()}),
        ddp=dict(state_dict={f'module.backbone.{k}': v for k, v in backbone.items()}),
        densecl=dict(state_dict=backbone, author='somebody'),
        bare=backbone,
        pixpro=published(
            {'encoder': backbone, 'encoder_k': other},
            {'projector.linear1.weight': torch.ones(2, 2, 1, 1)},
        ),
        slotcon=published(
            {'encoder_q': other, 'encoder_k': backbone},
            {'grouping_k.slot_embed.weight': torch.ones(2, 2), 'center': torch.ones(1, 2)},
        ),
    )
    for name, content in files.items():
        path = str(tmp_path / f'{name}.pth')
        torch.save(content, path)
        init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=path)
        assert_filled(build('mmpretrain', init_cfg=init_cfg), backbone)


def test_the_declared_product_is_taken(tmp_path, full_checkpoint):
    """An algorithm whose twin is the product says so."""
    path, backbone = full_checkpoint
    checkpoint = read_checkpoint(path)
    checkpoint['meta']['mmdense']['product'] = 'encoder_k.module.0'
    twin = str(tmp_path / 'twin.pth')
    torch.save(checkpoint, twin)
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=twin)
    model = build('mmpretrain', init_cfg=init_cfg)
    assert all(not v.any() for v in model.state_dict().values())
    init_cfg.update(prefix='backbone')
    assert_filled(build('mmpretrain', init_cfg=init_cfg), backbone)


def test_what_is_no_model_says_so(tmp_path):
    for content in ([1, 2], dict(a=1), dict(state_dict={}), torch.ones(2)):
        with pytest.raises(CheckpointError, match='holds no tensors by name'):
            recognise(content, name='file.pth')
    with pytest.raises(CheckpointError, match="nothing below 'neck'"):
        recognise(dict(state_dict={'backbone.a': torch.ones(1)}), prefix='neck')


@pytest.mark.parametrize('channels', [1, 4, 8])
@pytest.mark.parametrize('way', ['sum', 'repeat', 'mean'])
def test_other_input_channels(full_checkpoint, channels, way):
    path, backbone = full_checkpoint
    fill = dict(type='mmdense.SelfSupPretrained', checkpoint=path, in_channels=way)
    net = build('mmpretrain', in_channels=channels, init_cfg=fill)
    weight, before = net.state_dict()['conv1.weight'], backbone['conv1.weight']
    for name, value in net.state_dict().items():
        assert name == 'conv1.weight' or torch.equal(value, backbone[name])
    if way == 'sum':
        gray = torch.randn(2, 1, 32, 32)
        old = torch.nn.functional.conv2d(gray.expand(-1, 3, -1, -1), before)
        new = torch.nn.functional.conv2d(gray.expand(-1, channels, -1, -1), weight)
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)
    elif way == 'repeat':
        assert torch.equal(weight[:, 0], before[:, 0] * (3 / channels))
        assert channels < 4 or torch.equal(weight[:, 3], weight[:, 0])
    elif channels > 3:
        assert torch.equal(weight[:, :3], before)
        torch.testing.assert_close(weight[:, -1], before.mean(1))
    else:
        torch.testing.assert_close(weight[:, 0], before.mean(1))
    assert net.init_cfg['in_channels'] == way


def test_the_remedy_for_other_input_channels(full_checkpoint):
    path, _ = full_checkpoint
    fill = dict(type='mmdense.SelfSupPretrained', checkpoint=path)
    for channels, way in ((1, 'sum'), (4, 'repeat')):
        message = f'of 3 channels in the file, of {channels} in the model: in_channels={way!r}'
        with pytest.raises(CheckpointError, match=message):
            build('mmpretrain', in_channels=channels, init_cfg=fill)
        build('mmpretrain', in_channels=channels, init_cfg=dict(fill, in_channels=way))
    with pytest.raises(InputError, match="in_channels must be 'sum', 'repeat' or 'mean'"):
        build('mmpretrain', init_cfg=dict(fill, in_channels='add'))
