# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Training goes on from the authors' whole checkpoints: files built as the authors write them,
whose published loss is known (tests/golden/continue_*.npz: what the published code computes from
the same weights and views, float32, CPU), and loaded as tools/train.py does. Those vectors hold the
depth of the ResNet, the number and size of the images, and the published code's K; weights and
views are drawn again, from their names and the size."""

import argparse
import zlib

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as ROOT
from mmpretrain.models import ResNet
from tiny_algorithms import (
    algorithm_class,
    each_algorithm,
    has_momentum_encoder,
    one_a_family,
    tiny_form,
)

from mmdense.checkpoints import SelfSupPretrained, read_checkpoint, recognise, save_backbone
from mmdense.engine.training import start_from_checkpoint
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tensor(name, shape):
    """The same anywhere: drawn from a generator that the name seeds."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    kind = name.rsplit('.', 1)[-1]
    if kind == 'num_batches_tracked':
        return torch.tensor(rng.randint(1, 1000))
    values = rng.uniform(-1, 1, shape)
    if len(shape) > 1 and 'slot_embed' not in name and kind != 'center':
        values *= (6 / np.prod(shape[1:])) ** 0.5  # keeps the variance through a ReLU
    elif kind == 'running_var' or kind == 'weight' and len(shape) == 1:
        values = 1 + values / 2
    elif kind in ('bias', 'running_mean', 'center'):
        values *= 0.1
    return torch.from_numpy(values.astype(np.float32))


def views(n, size, batch=0):
    """A batch: two views of n images, whose crops lie in images of 100×80."""
    rng = np.random.RandomState(size + batch)
    images = [torch.from_numpy(rng.randn(n, 3, size, size).astype(np.float32)) for _ in range(2)]
    left, top = rng.randint(0, 30, (2, 2, n))
    width, height = rng.randint(40, 50, (2, 2, n))
    corners = np.stack([left, top, left + width, top + height], axis=-1)
    return images, corners, rng.rand(2, n) < 0.5  # 2×n×4, 2×n: mirrored


def signed_boxes(corners, mirrored):
    """Corners in pixels to the boxes that mmdense has: 2 of n×4."""
    boxes = torch.from_numpy(corners).float() / torch.tensor([100.0, 80.0, 100.0, 80.0])
    return torch.where(torch.from_numpy(mirrored)[..., None], boxes[..., [2, 1, 0, 3]], boxes)


def resnet(depth):
    return {k: tuple(v.shape) for k, v in ResNet(depth=depth).state_dict().items()}


def mlp(names, widths, dense=True):
    """Layers and norms in turn, as an MLP has them."""
    shapes = {}
    for i, name in enumerate(names):
        if i % 2:
            one = (widths[(i + 1) // 2],)
            norm = ('weight', 'bias', 'running_mean', 'running_var')
            shapes.update({f'{name}.{key}': one for key in norm})
            shapes[f'{name}.num_batches_tracked'] = ()
        else:
            size = (widths[i // 2 + 1], widths[i // 2])
            shapes[f'{name}.weight'] = (*size, 1, 1) if dense else size
            shapes[f'{name}.bias'] = size[:1]
    return shapes


def pixpro_shapes(depth):
    """R50 has the instance branch; other widths than its are not in the authors' code."""
    layers = ('linear1', 'bn1', 'linear2')
    projector = mlp(layers, (512 if depth == 18 else 2048, 4096, 256))
    parts = dict(
        encoder=resnet(depth),
        projector=projector,
        encoder_k=resnet(depth),
        projector_k=projector,
        value_transform=mlp([''], (256, 256)),
    )
    if depth == 50:
        parts.update(projector_instance=projector, projector_instance_k=projector)
        parts['predictor'] = mlp(layers, (256, 4096, 256))
    return named(parts)


def slotcon_shapes(depth):
    layers = [f'mlp.{i}' for i in (0, 1, 3, 4, 6)]
    channels = 512 if depth == 18 else 2048
    parts = dict(
        center={'': (1, 256)},
        predictor_slot=mlp(layers, (256, 4096, 4096, 256), dense=False),
    )
    for branch in 'qk':
        parts[f'encoder_{branch}'] = resnet(depth)
        parts[f'projector_{branch}'] = mlp(layers, (channels, 4096, 4096, 256))
        parts[f'grouping_{branch}'] = {'slot_embed.weight': (256, 256)}
    return named(parts)


def named(parts):
    return {
        '.'.join(filter(None, f'module.{part}.{key}'.split('.'))): shape
        for part, shapes in parts.items()
        for key, shape in shapes.items()
    }


def published(algorithm, depth=50):
    """The file's content, as the authors' training scripts write it."""
    shapes = pixpro_shapes(depth) if algorithm == 'pixpro' else slotcon_shapes(depth)
    args = argparse.Namespace(arch=f'resnet{depth}', epochs=100, crop=0.08)
    scheduler = dict(multiplier=100, last_epoch=5, after_scheduler=dict(T_max=95, base_lrs=[4.0]))
    groups = [dict(lr=4.0, momentum=0.9, params=[0])]
    return {
        'opt' if algorithm == 'pixpro' else 'args': args,
        'model': {name: tensor(name, shape) for name, shape in shapes.items()},
        'optimizer': dict(state={0: dict(momentum_buffer=torch.ones(2))}, param_groups=groups),
        'scheduler': scheduler,
        'epoch': 100,
    }


def loaded(content, depth, config, folder, total_steps):
    """The recipe's algorithm as tools/train.py begins with the file, and the recipe."""
    path = folder / 'ckpt_epoch_100.pth'
    torch.save(content, path)
    cfg = Config.fromfile(str(config))
    # the published code was given the same K and k
    cfg.merge_from_dict({'model.total_steps': total_steps, 'model.backbone.depth': depth})
    cfg.model.neck.in_channels = 512 if depth == 18 else 2048
    cfg.load_from = str(path)
    start_from_checkpoint(cfg)
    assert cfg.load_from is None
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    path.unlink()  # hundreds of megabytes
    return model, cfg


def sizes_of(g):
    """Depth, images, their size, and K of the vectors of a file, which lose these keys."""
    return [int(g.pop(key)) for key in ('depth', 'images', 'size', 'total_steps')]


@pytest.mark.parametrize(
    'vectors, config',
    [
        ('continue_pixpro_r50', 'pixpro/pixpro-instance_resnet50_8xb128-coslr-100e_in1k.py'),
        ('continue_slotcon_r18', 'slotcon/slotcon_resnet50_8xb64-coslr-800e_coco.py'),
        ('continue_slotcon_r50', 'slotcon/slotcon_resnet50_8xb64-coslr-800e_coco.py'),
    ],
)
def test_golden_loss_of_a_published_file(vectors, config, repo, golden, boxed, tmp_path):
    algorithm = vectors.split('_')[1]
    g = golden(vectors)
    depth, n, size, total_steps = sizes_of(g)
    content = published(algorithm, depth)
    model, _ = loaded(content, depth, repo / 'configs' / config, tmp_path, total_steps)

    assert model.encoder_k.steps == 1
    state = model.state_dict()
    for name, value in recognise(content).algorithm.items():
        assert torch.equal(state.pop(name), value), name
    assert not state

    images, corners, mirrored = views(n, size)
    model.train()
    losses = model.loss(images, boxed(*signed_boxes(corners, mirrored)))
    for name, loss in losses.items():
        torch.testing.assert_close(loss, g[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sum(losses.values()), g['loss'], rtol=1e-4, atol=1e-6)

    # what the step did to the statistics and to the teacher
    for name, net in dict(student=model, teacher=model.encoder_k.module).items():
        tensors = (net.backbone if name == 'student' else net['backbone']).state_dict()
        last = [k for k in tensors if k.startswith('layer4.') and k.endswith('running_mean')][-1]
        for what, key in dict(
            first_mean='bn1.running_mean', last_mean=last, conv1='conv1.weight'
        ).items():
            theirs = g[f'{name}_{what}']
            ours = tensors[key].flatten()[: len(theirs)]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if 'center' in g:
        ours = model.center.value[: len(g['center'])]
        torch.testing.assert_close(ours, g['center'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'vectors, config',
    [
        ('steps_pixpro_r18', 'pixpro/pixpro_resnet50_8xb128-coslr-800e_coco.py'),
        ('steps_slotcon_r18', 'slotcon/slotcon_resnet50_8xb64-coslr-800e_coco.py'),
    ],
)
def test_golden_steps_from_a_published_file(
    vectors, config, repo, golden, boxed, tmp_path, monkeypatch
):
    """Steps of a run by the recipe's optimizer: losses, weights, and the statistics of the momentum
    encoder's BatchNorm (tests/golden/steps_*.npz: of the published code, k 1). In float64, because
    rounding alone drives such short runs from random weights far apart."""
    g = golden(vectors)
    depth, n, size, total_steps = sizes_of(g)
    content = published(vectors.split('_')[1], depth)
    single = torch.Tensor.float
    monkeypatch.setattr(
        torch.Tensor, 'float', lambda x: x if x.dtype == torch.float64 else single(x)
    )
    model, cfg = loaded(content, depth, repo / 'configs' / config, tmp_path, total_steps)
    model = model.double()
    cfg.optim_wrapper.optimizer.lr = float(g.pop('lr'))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    model.train()
    for batch, expected in enumerate(g.pop('loss')):
        images, corners, mirrored = views(n, size, batch)
        boxes = (box.double() for box in signed_boxes(corners, mirrored))
        loss = sum(model.loss([view.double() for view in images], boxed(*boxes)).values())
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        optimizer.update_params(loss)
    # weights and statistics of student and teacher: the first numbers of each
    nets = dict(student=model.backbone, teacher=model.encoder_k.module['backbone'])
    states = {name: net.state_dict() for name, net in nets.items()}
    assert {name.partition('_')[0] for name in g} == states.keys()
    for name, theirs in g.items():
        net, _, key = name.partition('_')
        ours = states[net][key].flatten()[: len(theirs)]
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@each_algorithm(quick=one_a_family())
def test_load_from_of_the_tool(algorithm, tiny, run_here, randomize, monkeypatch, tmp_path):
    """Right before the first step, all is the file's: no initialiser came after it."""
    kind, states = algorithm_class(algorithm), []

    def first_step(model, *args, **kwargs):
        tensors, copies = model.state_dict(), {}
        for value in tensors.values():  # one copy of what has several names
            copies.setdefault(value.data_ptr(), value.clone())
        states.append({k: copies[v.data_ptr()] for k, v in tensors.items()})
        raise SystemExit(0)

    monkeypatch.setattr(kind, 'loss', first_step)
    run_here('train.py', *tiny(algorithm=algorithm))
    randomize(states[0])
    about = dict(algorithm=kind.__name__, product=kind.product)
    path = tmp_path / 'whole.pth'
    torch.save(dict(meta=dict(mmdense=about), state_dict=states[0]), path)

    code, _ = run_here('train.py', *tiny(f'load_from={path}', algorithm=algorithm))
    assert code == 0 and len(states) == 2
    if has_momentum_encoder(algorithm):
        assert states[1].pop('encoder_k.steps') == 1  # the schedule begins anew, not the teacher
    # a process's own features are of another run
    assert not states[1].pop('queue.features', torch.zeros(1)).any()
    for name, value in states[1].items():
        assert torch.equal(value, states[0][name]), name

    # where a run is resumed that has no checkpoint yet, it starts from the file too
    run_here('train.py', *tiny(f'load_from={path}', algorithm=algorithm, flags=['--resume']))
    form = tiny_form(algorithm)
    first = f'backbone.{form.first_layer}.weight'
    name = min((k for k in states[0] if k.endswith(first)), key=len)  # not the momentum encoder's
    assert torch.equal(states[2][name], states[0][name])

    before = name[: name.index(form.first_layer)]
    backbone = {k[len(before) :]: v for k, v in states[0].items() if k.startswith(before)}
    save_backbone(backbone, str(path))
    code, printed = run_here('train.py', *tiny(f'load_from={path}', algorithm=algorithm))
    line = printed.err.strip().splitlines()[-1]
    assert code == 1 and len(states) == 3
    kind = f'a {form.backbone_name} written by mmdense'
    assert f'whole.pth holds a backbone alone ({kind})' in line
    assert 'set model.pretrained' in line


MLP = dict(type='ProjectionMLP', hid_channels=8, out_channels=6)


def pixpro(instance=True, num_layers=1, **changes):
    cfg = dict(
        type='PixPro',
        backbone=dict(type='mmpretrain.ResNet', depth=18),
        neck=dict(MLP, in_channels=512),
        head=dict(type='PixProHead', in_channels=6, num_layers=num_layers),
        total_steps=10,
    )
    if instance:
        predictor = dict(MLP, in_channels=6)
        cfg['instance_neck'] = cfg['neck']
        cfg['instance_head'] = dict(type='InstanceConsistencyHead', predictor=predictor)
    return MODELS.build(dict(cfg, **changes))


def densecl(package='mmdense', queue_len=16):
    mmdense = package == 'mmdense'
    head = dict(type='InfoNCEHead')
    if not mmdense:
        head = dict(
            type='ContrastiveHead',
            loss=dict(type='mmpretrain.CrossEntropyLoss'),
            temperature=0.2,
        )
    neck = dict(type='DenseCLNeck', in_channels=512, hid_channels=8, out_channels=6)
    neck.update({} if mmdense else dict(num_grid=None))
    return ROOT.build(
        dict(
            type=f'{package}.DenseCL',
            data_preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor'),
            queue_len=queue_len,
            feat_dim=6,
            backbone=dict(type='mmpretrain.ResNet', depth=18),
            neck=dict(neck, type=f'{package}.DenseCLNeck'),
            head=dict(head, type=f'{package}.{head["type"]}'),
        )
    )


def save(path, state, **more):
    torch.save(dict(more, state_dict=state), path)
    return SelfSupPretrained(str(path))


@pytest.fixture
def save_ours(randomize, tmp_path):
    """Writes a whole algorithm as we do; what fills a model from it."""

    def call(model):
        about = dict(algorithm=type(model).__name__, product=model.product)
        state = randomize(model.state_dict())
        return save(tmp_path / 'whole.pth', state, meta=dict(mmdense=about))

    return call


def openselfsup(state):
    """mmpretrain's names of DenseCL to its authors'."""
    theirs = {}
    for key, value in state.items():
        head, _, tail = key.partition('.')
        if head in ('backbone', 'neck'):
            theirs[f'encoder_q.{int(head == "neck")}.{tail}'] = value
        if head == 'encoder_k' and tail != 'steps':
            theirs[key.replace('encoder_k.module.', 'encoder_k.')] = value
        if head.startswith('queue') or head == 'backbone':
            theirs[key] = value
    return theirs


@pytest.mark.parametrize('source', ['mmpretrain', 'OpenSelfSup DenseCL'])
def test_densecl_of_others_goes_on(source, randomize, tmp_path):
    """Twin, heads and both queues; one that was longer gives its newest keys."""
    state = randomize(densecl('mmpretrain').state_dict())
    given = state if source == 'mmpretrain' else openselfsup(state)
    fill = save(tmp_path / 'densecl.pth', given, meta=dict(epoch=200))
    found = recognise(read_checkpoint(fill.checkpoint))
    assert found.source == source and found.algorithm_type == 'DenseCL'
    assert found.backbone.keys() == ResNet(depth=18).state_dict().keys()
    model = densecl()
    fill(model)
    ours = model.state_dict()
    assert ours.pop('encoder_k.steps') == 1
    for queue in ('queue', 'queue2'):
        assert torch.equal(ours.pop(f'{queue}.keys'), state[queue])
        assert ours.pop(f'{queue}.ptr') == 3 and ours.pop(f'{queue}.filled') == 16
    for name, value in ours.items():
        assert torch.equal(value, state[name]), name
    shorter = densecl(queue_len=8)
    fill(shorter)
    assert torch.equal(shorter.queue.keys[:, -3:], state['queue'][:, :3])


def test_what_the_model_lacks_is_left_out(save_ours):
    fill = save_ours(pixpro(instance=True))
    model = pixpro(instance=False)
    fill(model)
    state = torch.load(fill.checkpoint)['state_dict']
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]) or name == 'encoder_k.steps', name


@pytest.mark.parametrize(
    'file, model, message',
    [
        (
            dict(instance=False),
            dict(),
            r'missing from the file: instance_neck.mlp.0.weight.*config was another',
        ),
        (dict(num_layers=2), dict(num_layers=1), 'more in the file.*value_transform.mlp.0'),
        (dict(num_layers=1), dict(num_layers=0), 'more in the file.*value_transform.weight'),
        (dict(num_layers=0), dict(num_layers=1), 'missing.*value_transform.weight'),
        (dict(), dict(backbone=dict(type='mmpretrain.ResNet', depth=34)), 'ResNet-18, the model'),
        (dict(), dict(type='mmdense.DenseCL'), 'The file holds PixPro, the model is DenseCL'),
    ],
)
def test_another_config_is_refused(file, model, message, save_ours):
    fill = save_ours(pixpro(**file))
    model = densecl() if 'type' in model else pixpro(**model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        fill(model)
    assert 'whole.pth (a ResNet-18 written by mmdense PixPro)' in str(error.value)
    assert 'model.pretrained' in str(error.value) and '\n' not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_not_finite_in_any_part_of_the_algorithm(save_ours):
    model = pixpro()
    fill = save_ours(model)
    state = torch.load(fill.checkpoint)
    state['state_dict']['encoder_k.module.neck.mlp.3.bias'][1] = float('nan')
    torch.save(state, fill.checkpoint)
    with pytest.raises(CheckpointError, match=r'whole.pth holds NaN.*encoder_k.*mlp.3.bias'):
        fill(model)
    model.backbone.init_cfg = None
    fill(model.backbone)  # whose numbers are all finite


def test_configs_of_others_keep_their_load_from():
    """Resuming, and models that are not ours, are MMEngine's business."""
    base = dict(default_scope='mmdense', load_from='a.pth', work_dir='none')
    resumed = Config(dict(base, resume=True, model=dict(type='PixPro')))
    theirs = Config(dict(base, model=dict(type='mmpretrain.MoCo')))
    ours = Config(dict(base, model=dict(type='mmdense.PixPro')))
    for cfg in (resumed, theirs, ours):
        start_from_checkpoint(cfg)
    assert resumed.load_from == theirs.load_from == 'a.pth' and 'init_cfg' not in theirs.model
    assert ours.load_from is None and ours.model.init_cfg.checkpoint == 'a.pth'
