# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import copy
import math
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import DefaultScope
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names, joined_batch, main, tiny_model
from torch import distributed, nn

from mmdense.checkpoints import SelfSupPretrained, recognise
from mmdense.cli import main as run_command
from mmdense.engine import LARS
from mmdense.models import FeatureQueue, RunFacts, SwAV, sinkhorn, swapped_prediction
from mmdense.models.layers import push_batch, read_batches
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    dim, prototypes = 8, 12

    def parts(norm):
        neck, head = networks(64, 16, dim, prototypes, [2, 6], norm)
        return dict(neck=neck, head=head)

    return Tiny(
        algorithm='SwAV',
        family='siamese',
        parts=parts,
        recipe='swav_r50_coco',
        # a queue of two batches, which is used from the third step on
        options=[
            'train_dataloader.dataset.pipeline.1.transforms.1.0.scale=32',
            'model.neck.in_channels=512',
            'model.neck.hid_channels=64',
            'model.head.loss.num_prototypes=16',
            'model.queue_length=8',
            'model.epoch_queue_starts=0',
            'model.freeze_prototypes_niters=3',
        ],
        health=health_names(global_=PAIRS, prototypes=('used', 'dead')),
        losses=['loss'],
        passes=2,  # views of one size are one batch
        unit=['head.loss_module.prototypes.weight'],
        # sums over samples: of all, and in three rounds of the prototypes, for both views at once
        calls=lambda image, patches, seen: [
            ('all_reduce', 2 * 4),
            *[('all_reduce', 2 * prototypes * 4)] * 3,
        ],
    )


def networks(in_channels, hidden, dim, prototypes, num_crops, norm=None, **loss):
    """Return the configs of neck and head."""
    norm = norm or dict(type='BN')
    norm = dict(norm, type='BN1d') if norm['type'] == 'BN' else norm  # of vectors
    neck = dict(
        type='mmpretrain.SwAVNeck',
        in_channels=in_channels,
        hid_channels=hidden,
        out_channels=dim,
        norm_cfg=norm,
    )
    loss = dict(
        type='mmpretrain.SwAVLoss',
        feat_dim=dim,
        num_prototypes=prototypes,
        num_crops=num_crops,
        **loss,
    )
    return neck, dict(type='mmpretrain.SwAVHead', loss=loss)


def config(num_crops=(2, 3), prototypes=10, **changes):
    neck, head = networks(64, 32, 16, prototypes, list(num_crops))
    backbone = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    return dict(dict(type='SwAV', backbone=backbone, neck=neck, head=head), **changes)


def views(n=4, num_crops=(2, 3)):
    sizes = [64] * num_crops[0] + [32] * sum(num_crops[1:])
    return [torch.randn(n, 3, size, size) for size in sizes]


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(autouse=True)
def progress():
    """Set the place in a run, as MMEngine's runner does; afterwards there is no run."""

    def at(epoch=0, iteration=0):
        hub.update_info('epoch', epoch)
        hub.update_info('iter', iteration)

    hub = MessageHub.get_current_instance()
    at()
    yield at
    at()


class Pixels(nn.Module):
    """A backbone whose map is the view."""

    def forward(self, x):
        return (x,)


def golden_model(g, start):
    """Build the network of a golden: one linear layer as projection."""
    weight, prototypes = g['before.projection_head.weight'], g['before.prototypes.weight']
    neck, head = networks(
        weight.size(1),
        0,
        weight.size(0),
        len(prototypes),
        g['num_crops'].tolist(),
        temperature=float(g['temperature']),
        epsilon=float(g['epsilon']),
        sinkhorn_iterations=int(g['sinkhorn_iterations']),
        crops_for_assign=g['crops_for_assign'].tolist(),
    )
    model = MODELS.build(
        config(
            neck=neck,
            head=head,
            queue_length=int(g['queue_len']),
            epoch_queue_starts=start,
            freeze_prototypes_niters=int(g['freeze_prototypes_iters']),
        )
    )
    model.backbone = Pixels()
    return model


def our_name(theirs):
    head = theirs.replace('projection_head.', 'neck.projection_neck.')
    return head.replace('prototypes.', 'head.loss_module.prototypes.')


def test_golden_steps(golden, progress):
    """Take the published steps: losses, queue and weights, while the prototypes stay and after,
    before there is a queue, while it fills, and with it."""
    g = golden('swav_loss_multicrop_queue')
    steps = len(g['lrs'])
    start = min(t for t in range(steps) if f'queue_{t}' in g)
    model = golden_model(g, start)
    before = {our_name(k[7:]): v for k, v in g.items() if k.startswith('before.')}
    assert set(model.load_state_dict(before, strict=False).missing_keys) == {'queue.features'}
    optimizer = LARS(
        model.parameters(),
        lr=1.0,
        momentum=float(g['sgd_momentum']),
        weight_decay=float(g['weight_decay']),
        trust_coefficient=float(g['trust_coefficient']),
        adapt_all=True,
    )
    used = 0
    for step in range(steps):
        progress(epoch=step, iteration=step)
        used += bool(read_batches(model.queue.features, g[f'views_{step}'].size(1))[:, -1].any())
        (loss,) = model([x[:, :, None, None] for x in g[f'views_{step}']], mode='loss').values()
        close(loss, g[f'loss_{step}'], f'loss {step}')
        if step >= start:
            close(model.queue.features, g[f'queue_{step}'], f'queue {step}')
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]['lr'] = float(g['lrs'][step])
        optimizer.step()
        state, prefix = model.state_dict(), f'after_{step}.'
        after = {our_name(k[len(prefix) :]): v for k, v in g.items() if k.startswith(prefix)}
        assert len(after) == 3
        for name, value in after.items():
            close(state[name], value, f'{name} {step}')
    assert used and start > 0 and 0 < model.freeze_prototypes_niters < steps


def authors_step(z, weight, queue, num_crops, assigned):
    """Compute algorithm 1 of the paper view by view, with prototypes of length 1: the loss, and the
    queue after it."""
    scores = [x @ weight.t() for x in z]
    total, after = 0, []
    for i, a in enumerate(assigned):
        with torch.no_grad():
            out = scores[a]
            if queue is not None and queue[i, -1].any():
                out = torch.cat([queue[i] @ weight.t(), out])
            q = sinkhorn(out)[-len(z[a]) :]
            if queue is not None:
                after.append(torch.cat([z[a], queue[i]])[: queue.size(1)])
        others = [v for v in range(sum(num_crops)) if v != a]
        each = [-(q * (scores[v] / 0.1).log_softmax(1)).sum(1).mean() for v in others]
        total = total + sum(each) / len(each)
    return total / len(assigned), torch.stack(after) if after else None


@pytest.mark.parametrize('assigned', [[0, 1], [1, 0], [1]])
def test_loss_by_the_definition(assigned):
    """Loss, gradients and queue of four steps, with one batch of views and with several."""
    neck, head = networks(64, 32, 16, 10, [2, 3], crops_for_assign=assigned)
    model = MODELS.build(config(neck=neck, head=head, queue_length=11, epoch_queue_starts=0))
    projections = []
    model.neck.register_forward_hook(lambda *args: projections.append(args[2]))
    queue = torch.zeros(len(assigned), 8, 16)  # two batches of four
    for _ in range(4):
        batch = views()
        (loss,) = model(batch, mode='loss').values()
        loss.backward()
        z = projections.pop().detach().view(5, 4, 16).requires_grad_()
        weight = model.prototypes.weight.detach().clone().requires_grad_()
        expected, queue = authors_step(z, weight, queue, [2, 3], assigned)
        expected.backward()
        close(loss, expected)
        close(read_batches(model.queue.features, 4), queue)
        close(model.prototypes.weight.grad, weight.grad)
        model.zero_grad()
    assert queue[:, -1].any()


def test_swapped_prediction():
    scores = torch.randn(5, 3, 7, dtype=torch.float64, requires_grad=True)
    codes = torch.rand(2, 3, 7, dtype=torch.float64).softmax(2)
    expected = 0
    for i, a in enumerate((3, 0)):
        for v in {0, 1, 2, 3, 4} - {a}:
            expected -= (codes[i] * (scores[v] / 0.2).log_softmax(1)).sum(1).mean() / 8
    close(swapped_prediction(scores, codes, (3, 0), 0.2), expected)
    assert torch.autograd.gradcheck(swapped_prediction, (scores, codes, (3, 0), 0.2))
    with torch.autocast('cpu', torch.bfloat16):
        half = swapped_prediction(scores.detach().bfloat16(), codes.float(), (3, 0))
    assert half.dtype == torch.float32


def test_samples_that_take_no_part_change_nothing():
    scores = 0.3 * torch.randn(2, 6, 5)
    ghosts = torch.full((2, 3, 5), -torch.inf)
    codes = sinkhorn(torch.cat([ghosts, scores], dim=1))
    close(codes[:, 3:], torch.stack([sinkhorn(s) for s in scores]))
    assert (codes[:, :3] == 0).all()


def test_views_of_one_size_are_one_batch():
    """BatchNorm of the backbone sees 2N, then 3N images; that of the neck 5N vectors."""
    model, sizes = MODELS.build(config()), []
    for part in (model.backbone.bn1, model.neck.projection_neck[1]):
        part.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    model(views(4), mode='loss')
    assert [size[0] for size in sizes] == [8, 12, 20]
    assert sizes[0][2] == 2 * sizes[1][2]


def test_equals_mmpretrain():
    """In one process: its state dict loads, and loss, gradients and queue are the same."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        from mmpretrain.registry import MODELS as MMPRETRAIN

        theirs = MMPRETRAIN.build(config())
    ours = MODELS.build(config(channels_last=False, queue_length=8, epoch_queue_starts=0))
    ours.load_state_dict(dict(theirs.state_dict(), **{'queue.features': torch.zeros(2, 8, 16)}))
    theirs.head.loss_module.queue = torch.zeros(2, 8, 16)
    for _ in range(4):
        batch = views()
        results = []
        for model in (ours, theirs):
            model.zero_grad()
            losses = model(copy.copy(batch), [], mode='loss')
            losses['loss'].backward()
            results.append(losses['loss'])
        close(*results)
        close(ours.queue.features, theirs.head.loss_module.queue)
        for name, p in ours.named_parameters():
            close(p.grad, theirs.get_parameter(name).grad, name)


# the queue


def test_queue():
    queue = FeatureQueue(7, 2, num_groups=2)
    assert read_batches(queue.features, 3).shape == (2, 6, 2)
    for step in range(1, 4):
        push_batch(queue.features, torch.full((2, 3, 2), float(step)))
    assert queue.features[0, :, 0].tolist() == [3, 3, 3, 2, 2, 2, 1]
    message = 'a queue of 7 features has no room for a batch of all processes, 8: set queue_length'
    with pytest.raises(InputError, match=message):
        read_batches(queue.features, 8)
    other = FeatureQueue(5, 2, num_groups=2)
    other.load_state_dict(queue.state_dict())
    assert other.features.shape == (2, 5, 2) and not other.features.any()
    queue.load_state_dict(FeatureQueue(7, 2, num_groups=2).state_dict())
    assert not queue.features.any()


def test_queue_begins_at_its_epoch(progress):
    model = MODELS.build(config(queue_length=8, epoch_queue_starts=2))
    for epoch in range(4):
        progress(epoch=epoch)
        model(views(), mode='loss')
        assert model.queue.features.any(2).sum() == 2 * 4 * max(0, epoch - 1)
    with pytest.raises(InputError, match='a queue of 8 features has no room for a batch'):
        model(views(9), mode='loss')


def steps_of_process(rank):
    """Take steps under DistributedDataParallel, with a queue and prototypes that stay at first:
    losses, queue, and the prototypes before each step."""
    model, optimizer = process_model()
    for parameter in model.parameters():
        distributed.broadcast(parameter.data, src=0)
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    return take_steps(model, wrapped, optimizer, slice(3 * rank, 3 * rank + 3))


def process_model():
    model = tiny_model('SwAV', queue_length=15, epoch_queue_starts=0, freeze_prototypes_niters=2)
    return model, LARS(model.parameters(), lr=20.0, weight_decay=0.1, adapt_all=True)


def take_steps(model, call, optimizer, mine):
    losses, prototypes = [], []
    for step in range(5):
        MessageHub.get_current_instance().update_info('iter', step)
        torch.manual_seed(step)
        batch, samples = joined_batch('SwAV')
        batch = [(view + torch.randn_like(view))[mine] for view in batch]
        (loss,) = call(batch, samples[mine], mode='loss').values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        prototypes.append(model.prototypes.weight.detach().clone())
    return losses, prototypes, model.queue.features, optimizer.state_dict()['state']


def joined_steps():
    """Take the same steps in one process, whose queue has the features in another order."""
    model, optimizer = process_model()
    return take_steps(model, model, optimizer, slice(None))


def test_queue_and_frozen_prototypes_in_two_processes(in_processes):
    """Every process has its own features, and no parameter is missed by any."""
    ranks = in_processes(steps_of_process)
    losses, prototypes, queue, _ = joined_steps()
    assert queue.shape == (2, 15, 8) and ranks[0][2].shape == (2, 7, 8)
    for step in range(5):
        mean = sum(rank[0][step] for rank in ranks) / 2
        assert mean == pytest.approx(losses[step], rel=1e-5, abs=1e-5)
        for rank in ranks:
            close(rank[1][step], prototypes[step])
    # two batches, each the first process's rows and then the second's
    close(torch.cat([rank[2][:, i : i + 3] for i in (0, 3) for rank in ranks], 1), queue[:, :12])
    close(prototypes[1], prototypes[0])
    assert (prototypes[2] - prototypes[1]).abs().max() > 1e-3


# prototypes


def test_frozen_prototypes_equal_those_without_gradient(progress):
    """As the published code, which removes the gradient: bit for bit with LARS."""
    finals = []
    for removed in (False, True):
        torch.manual_seed(0)
        model = MODELS.build(config(freeze_prototypes_niters=0 if removed else 3))
        optimizer = LARS(model.parameters(), lr=1.0, weight_decay=0.1, adapt_all=True)
        for step in range(5):
            progress(iteration=step)
            optimizer.zero_grad()
            model(views(), mode='loss')['loss'].backward()
            if removed and step < 3:
                model.prototypes.weight.grad = None
            optimizer.step()
            if step == 2:
                early = model.prototypes.weight.detach().clone()
        finals.append(model.state_dict())
        assert not torch.equal(early, model.prototypes.weight)
    for name, value in finals[0].items():
        assert torch.equal(value, finals[1][name]), name


def test_prototypes_have_length_one():
    model = MODELS.build(config())
    with torch.no_grad():
        model.prototypes.weight.mul_(3)
    model(views(), mode='loss')
    close(model.prototypes.weight.norm(dim=1), torch.ones(10))


def test_probe_counts_the_nearest_prototypes():
    """Codes have equal shares by themselves, also of features that have collapsed."""
    model, seen = MODELS.build(config()), {}
    model.health_monitor = seen.update
    with torch.no_grad():
        for p in model.neck.projection_neck[-1].parameters():
            p.zero_()
        model.neck.projection_neck[-1].bias.fill_(1)  # every image has the same vector
    model(views(), mode='loss')
    counts = seen['prototypes']()
    assert counts.shape == (10,) and sorted(counts.tolist()) == [0] * 9 + [20]
    assert all(z.shape == (4, 16) for z in seen['global_'])


def test_learns():
    """Some steps on one batch bring the loss below chance."""
    torch.manual_seed(0)
    model = MODELS.build(config())
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, history = views(8), []
    for _ in range(12):
        noisy = [0.3 * torch.randn_like(x) + x[:, :, :1, :1] for x in images]
        means = [view - view.mean((2, 3), keepdim=True) + images[0][:, :, :1, :1] for view in noisy]
        loss = model(means, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert abs(history[0] - math.log(10)) < 1.5 and history[-1] < history[0] - 0.5


def test_another_backbone_builds_and_steps():
    backbone = dict(type='mmpretrain.ConvNeXt', arch='tiny', gap_before_final_norm=False)
    neck = networks(768, 32, 16, 10, [2, 3])[0]
    model = MODELS.build(config(backbone=backbone, neck=neck))
    model(views(2), mode='loss')['loss'].backward()
    unused = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, unused  # or DistributedDataParallel would stop


def test_wrong_arguments_say_so():
    with pytest.raises(InputError, match='one set of prototypes: num_prototypes must be a number'):
        MODELS.build(config(prototypes=[3, 4]))
    with pytest.raises(InputError, match='queue_length must be a whole number of at least 0'):
        MODELS.build(config(queue_length=-1))
    with pytest.raises(TypeError, match='SwAV got an unexpected argument: foo'):
        MODELS.build(config(foo=1))
    model = MODELS.build(config())
    with pytest.raises(InputError, match='SwAV needs 5 views of every image, got 2'):
        model(views()[:2], mode='loss')


# recipes


RECIPES = {
    '8xb32-mcrop-coslr-200e_in1k': (200, 256, (2, 6)),
    '8xb32-mcrop-coslr-400e_in1k': (400, 256, (2, 6)),
    '64xb64-mcrop-coslr-100e_in1k': (100, 4096, (2, 6)),
    '64xb64-mcrop-coslr-200e_in1k': (200, 4096, (2, 6)),
    '64xb64-mcrop-coslr-400e_in1k': (400, 4096, (2, 6)),
    '64xb64-mcrop-coslr-800e_in1k': (800, 4096, (2, 6)),
    '64xb64-coslr-400e_in1k': (400, 4096, (2,)),
    '8xb32-mcrop-coslr-800e_coco': (800, 256, (2, 6)),
}


@pytest.mark.parametrize('name', RECIPES)
def test_recipe(name):
    """As the scripts of the authors' repository say."""
    epochs, batch, crops = RECIPES[name]
    config = load_recipe(f'configs/swav/swav_resnet50_{name}.py')
    lr = 0.6 * {256: 1, 4096: 8}[batch]
    optimizer = dict(type='mmdense.LARS', lr=lr, momentum=0.9, weight_decay=1e-6, adapt_all=True)
    assert config.optim_wrapper.optimizer == optimizer
    assert config.train_cfg.max_epochs == epochs and config.auto_scale_lr.base_batch_size == batch
    (schedule,) = config.param_scheduler
    end = schedule.eta_min_ratio * lr if batch == 256 else schedule.eta_min
    assert end == pytest.approx(lr / 1000) and schedule.convert_to_iter_based
    assert schedule.type == ('CosineAnnealingLR' if batch == 256 else 'WarmupCosineLR')
    if batch == 4096:
        assert (schedule.warmup, schedule.start_factor * lr) == (10, pytest.approx(0.3))
    frozen = {256: 5005, 4096: 313}[batch] if 'in1k' in name else 4 * (118_287 // 256)
    model = config.model
    assert model.freeze_prototypes_niters == frozen
    assert model.get('queue_length', 0) == (3840 if batch == 256 else 0)
    assert model.get('epoch_queue_starts') == {200: 15, 400: 15, 800: 60}.get(
        epochs if batch == 256 else None
    )
    loss = model.head.loss
    assert (loss.num_prototypes, loss.temperature, loss.epsilon) == (3000, 0.1, 0.05)
    assert (tuple(loss.num_crops), loss.sinkhorn_iterations) == (crops, 3)
    multi = config.train_dataloader.dataset.pipeline[1]
    assert tuple(multi.num_views) == crops and len(multi.transforms) == len(crops)
    ranges = [(0.14, 1.0), (0.05, 0.14)] if len(crops) == 2 else [(0.08, 1.0)]
    for pipeline, size, shown in zip(multi.transforms, (224, 96), ranges):
        crop, flip, jitter, grey, blur = pipeline
        assert (crop.scale, tuple(crop.crop_ratio_range)) == (size, shown)
        assert (flip.prob, grey.prob, blur.prob, tuple(blur.sigma)) == (0.5, 0.2, 0.5, (0.1, 2.0))
        strength = [jitter[k] for k in ('brightness', 'contrast', 'saturation', 'hue', 'prob')]
        assert strength == [0.8, 0.8, 0.8, 0.2, 0.8]
    assert model.data_preprocessor.std == pytest.approx([255 * x for x in (0.228, 0.224, 0.225)])


def test_cosine_of_a_small_batch(golden):
    """MMEngine's cosine is the published schedule without a warm-up."""
    from mmengine.optim import CosineAnnealingLR

    g = golden('swav_lr_schedule')
    warmup, iters = (int(g[k]) for k in ('warmup_epochs', 'iters_per_epoch'))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=float(g['base_lr']))
    total = (int(g['epochs']) - warmup) * iters
    eta_min = float(g['final_lr'])
    schedule = CosineAnnealingLR(optimizer, T_max=total, eta_min=eta_min, by_epoch=False)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(g['lr'][warmup * iters :].tolist(), rel=1e-5)


SHIPPED = sorted((Path(mmpretrain.__file__).parent / '.mim/configs/swav').glob('swav_*.py'))


OUR_TOOL = 'tools/train.py'
THEIR_TOOL = str(Path(mmpretrain.__file__).parent / '.mim/tools/train.py')


@pytest.mark.parametrize(
    'tool',
    [
        pytest.param(OUR_TOOL, id='ours'),
        pytest.param(THEIR_TOOL, id='theirs', marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_mmpretrains_config_trains(path, tool, images, tmp_path, run_forked):
    """With another type alone; sizes are made tiny by options. By our tool its hook's settings are
    the model's."""
    cfg = Config.fromfile(str(path))
    text = cfg.pretty_text.replace("type='SwAV')", "type='mmdense.SwAV')")
    assert text.count("type='mmdense.SwAV'") == 1
    (tmp_path / 'theirs.py').write_text(text)
    options = [
        'model.backbone.depth=18',
        'model.neck.in_channels=512',
        'model.neck.hid_channels=32',
        'model.head.loss.num_prototypes=16',
        'train_dataloader.dataset.type=CustomDataset',
        f'train_dataloader.dataset.data_root={images}',
        'train_dataloader.dataset.ann_file=',
        'train_dataloader.dataset.data_prefix=',
        'train_dataloader.dataset.with_label=False',
        'train_dataloader.dataset.pipeline.1.transforms.0.0.scale=64',
        'train_dataloader.dataset.pipeline.1.transforms.1.0.scale=32',
        'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'train_cfg.max_epochs=2',
        'custom_hooks.0.batch_size=4',
        'custom_hooks.0.queue_length=12',
        'custom_hooks.0.epoch_queue_starts=1',
        'custom_hooks.0.frozen_layers_cfg.prototypes=2',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.logger.interval=1',
    ]
    work = tmp_path / 'work'
    arguments = [tmp_path / 'theirs.py', '--work-dir', work, '--cfg-options', *options]
    done = run_forked(tool, *arguments)
    assert done.returncode == 0, done.stdout[-3000:]
    if tool != OUR_TOOL:  # the queue is the hook's
        queue = torch.load(work / 'queue.pth')['queue']
        assert queue.shape == (2, 12, 128) and queue.any(2).all()
        assert not list(work.rglob('queue0.pth')) and 'left out' not in done.stdout
        return
    assert 'SwAVHook is left out' in done.stdout
    first, last = (
        torch.load(work / f'epoch_{epoch}.pth', weights_only=False)['state_dict']
        for epoch in (1, 2)
    )
    assert first['queue.features'].shape == (2, 12, 128)
    assert not first['queue.features'].any() and last['queue.features'].any(2).all()
    assert not list(work.rglob('queue*.pth'))


def test_their_hook_keeps_the_queue(progress):
    """By mmpretrain's tools the hook runs; the losses are those of a queue of the model's own."""
    from mmpretrain.engine import SwAVHook

    hooked, own = (
        MODELS.build(config(queue_length=length, epoch_queue_starts=1)) for length in (0, 8)
    )
    own.load_state_dict(hooked.state_dict(), strict=False)
    hook = SwAVHook(batch_size=4, epoch_queue_starts=1, feat_dim=16, queue_length=8)
    hook.queue_length -= hook.queue_length % 4
    for epoch in range(5):
        progress(epoch=epoch)
        hook.before_train_epoch(SimpleNamespace(model=hooked, epoch=epoch, world_size=1))
        assert (hook.queue is None) == (epoch == 0)
        batch = views()
        (loss,), (expected,) = (model(batch, mode='loss').values() for model in (hooked, own))
        assert torch.equal(loss, expected)
    assert torch.equal(hook.queue, own.queue.features) and hook.queue.any(2).all()
    assert hooked.state_dict().keys() == own.state_dict().keys() - {'queue.features'}


def test_their_hook_is_translated():
    cfg = Config.fromfile(str(SHIPPED[0]))
    cfg.custom_hooks.append(dict(type='EMAHook'))
    cfg.model.queue_length = 7
    SwAV.adapt_config(cfg)
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook']
    model = cfg.model
    assert (model.queue_length, model.epoch_queue_starts) == (7, 15)  # one's own setting stays
    assert model.freeze_prototypes_niters == 5005
    before = load_recipe('configs/swav_r50_coco.py')
    after = copy.deepcopy(before)
    SwAV.adapt_config(after)
    assert after.to_dict() == before.to_dict()


@pytest.mark.parametrize(
    'images, batch, init, expected',
    [
        # queue, prototypes, steps that these stay, epoch in which the queue starts, epsilon
        (24, 4, '', (24, 16, 15, 38, 0.03)),
        (500, 32, '', (480, 256, 38, 38, 0.03)),
        (118_287, 256, '', (3840, 3000, 1155, 38, 0.05)),
        (500, 32, 'backbone', (480, 256, 38, 0, 0.05)),
        (500, 32, 'complete', (480, 700, 0, 0, 0.05)),
    ],
)
def test_settings_for_few_images(images, batch, init, expected):
    """Of a run of 500 epochs."""
    shapes = {'head.loss_module.prototypes.weight': (700, 128)} if init == 'complete' else {}
    recipe = load_recipe('configs/swav_r50_coco.py')
    steps = 500 * (images // batch)
    rows = SwAV.small_data_rules(RunFacts(images, batch, steps, recipe, init, shapes))
    values = [value for row in rows for value in row.config.values()]
    assert tuple(values) == expected
    assert all(row.reason for row in rows)


@pytest.mark.slow
def test_one_command(images, tmp_path, monkeypatch, capsys):
    """From a folder of 24 small images to a backbone; every other command reads the run."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for i, path in enumerate(sorted(Path(images).iterdir()) * 2):
        if i < 24:
            shutil.copy(path, folder / f'{i}.jpg')
    monkeypatch.chdir(tmp_path)
    asked = ['--method', 'swav', '--backbone', 'resnet18', '--epochs', '1', '--workers', '1']

    def call(*arguments):
        with suppress(SystemExit):
            run_command([str(argument) for argument in arguments])
        return capsys.readouterr().out

    work = tmp_path / 'work_dirs' / 'swav_photos'
    printed = call('pretrain', folder, *asked)
    for text in ('64 + 32 px', 'queue ', 'prototypes ', 'prototypes stay', 'queue starts'):
        assert text in printed, text
    assert f'{work.relative_to(tmp_path)}/backbone.pth' in printed
    cfg = Config.fromfile(str(work / 'config.py'))
    assert cfg.model.queue_length == 24 and cfg.model.head.loss.num_prototypes == 16
    groups = cfg.train_dataloader.dataset.pipeline[1].transforms
    assert [steps[0].scale for steps in groups] == [64, 32]
    assert [tuple(steps[0].crop_ratio_range) for steps in groups] == [(0.2, 1.0), (0.05, 0.14)]
    assert [steps[4].sigma[1] for steps in groups] == pytest.approx([2 * 64 / 224, 2 / 3], rel=0.01)
    checked = call('check', work / 'epoch_1.pth')
    assert 'ResNet-18 written by mmdense SwAV' in checked
    call('show', work / 'backbone.pth', folder / '0.jpg', '--out', tmp_path / 'shown')
    call('report', work)
    assert list((tmp_path / 'shown').rglob('*.html')) and list(work.rglob('report.html'))


# checkpoints of the authors


def authors_file(tensors, prototypes=None):
    """Return a file as the published code writes it, of our tensors."""
    found = {}
    for name, value in tensors.items():
        if name == 'queue.features':
            continue
        name = name.replace('backbone.', '').replace('neck.projection_neck', 'projection_head')
        found[f'module.{name.replace("head.loss_module.", "")}'] = value
    if prototypes:
        weight = found.pop('module.prototypes.weight')
        found.update({f'module.prototypes.prototypes{i}.weight': weight for i in range(prototypes)})
    return found


def filled_model(queue_length=8):
    model = MODELS.build(config(queue_length=queue_length, epoch_queue_starts=0))
    for i in range(3):
        model([x + i for x in views()], mode='loss')
    return model


@pytest.mark.parametrize('wrapped', [False, True])
def test_training_continues_from_the_authors_file(wrapped, tmp_path):
    """A released file is flat; one of a training has an optimizer beside it."""
    model = filled_model()
    tensors = authors_file(model.state_dict())
    file = dict(epoch=3, state_dict=tensors, optimizer={}) if wrapped else tensors
    torch.save(file, tmp_path / 'swav.pth.tar')
    found = recognise(file)
    assert found.source == 'SwAV' and found.algorithm_type == 'SwAV'
    assert found.backbone.keys() == model.backbone.state_dict().keys()
    assert {name.split('.')[0] for name in found.dropped} == {'projection_head', 'prototypes'}
    other = MODELS.build(config(queue_length=8))
    SelfSupPretrained(str(tmp_path / 'swav.pth.tar'))(other)
    for name, value in other.state_dict().items():
        expected = torch.zeros_like(value) if name.startswith('queue') else model.state_dict()[name]
        assert torch.equal(value, expected), name


def test_files_with_several_sets_of_prototypes_fill_the_backbone(tmp_path):
    model, path = filled_model(), tmp_path / 'deepcluster.pth.tar'
    file = authors_file(model.state_dict(), prototypes=3)
    torch.save(file, path)
    found = recognise(file)
    assert found.source == 'DeepCluster-v2 or SeLa-v2' and found.algorithm is None
    other = MODELS.build(config(pretrained=str(path)))
    other.init_weights()
    for name, value in other.backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name
    with pytest.raises(CheckpointError, match='holds a backbone alone'):
        SelfSupPretrained(str(path))(MODELS.build(config()))


@pytest.mark.parametrize('lengths', [(8, 0), (0, 8), (8, 12)])
def test_another_queue_is_no_mistake(lengths, tmp_path):
    """Another run begins with an empty queue; mmpretrain's file has none."""
    model = filled_model(lengths[0])
    if lengths[0]:
        assert model.queue.features.any()
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'x.pth')
    other = MODELS.build(config(queue_length=lengths[1]))
    SelfSupPretrained(str(tmp_path / 'x.pth'))(other)
    assert torch.equal(other.prototypes.weight, model.prototypes.weight)
    assert other.queue is None or not other.queue.features.any()


def test_no_part_without_gradients():
    """DistributedDataParallel would stop. Where SyncBN becomes BN the neck's norm is one module."""
    neck, head = networks(64, 32, 16, 10, [2, 3], norm=dict(type='SyncBN'))
    model = revert_sync_batchnorm(MODELS.build(config(neck=neck, head=head)))
    model(views(), mode='loss')['loss'].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('head', ['head.', 'head.loss.'])
def test_names_of_mmselfsup(head, tmp_path):
    model = filled_model()
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith('queue')}
    tensors[f'{head}prototypes.weight'] = tensors.pop('head.loss_module.prototypes.weight')
    torch.save(dict(state_dict=tensors, meta={}), tmp_path / 'x.pth')
    other = MODELS.build(config())
    SelfSupPretrained(str(tmp_path / 'x.pth'))(other)
    assert torch.equal(other.prototypes.weight, model.prototypes.weight)


if __name__ == '__main__':
    main(globals())
