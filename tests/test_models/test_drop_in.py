# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A config of mmpretrain's trains when nothing but the type of its algorithm changes."""

import re
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from tiny_algorithms import algorithm_class, algorithms, tiny_form

from mmdense import models
from mmdense.registry import MODELS

SHIPPED = Path(mmpretrain.__file__).parent / '.mim'


def shipped_configs():
    """Return the configs of mmpretrain whose algorithm has a class of ours, by its name; those of
    other views than two have tests in their own files."""
    two_views = {name for name in algorithms() if algorithm_class(name).views.groups == (2,)}
    found = {}
    for path in sorted((SHIPPED / 'configs').glob('*/*_in1k*.py')):
        text = path.read_text(encoding='utf-8')
        kinds = re.findall(r"^model = dict\(\n    type='(\w+)'", text, re.M)
        if set(kinds) <= two_views and len(kinds) == 1:
            found[path.relative_to(SHIPPED / 'configs').as_posix()] = kinds[0]
    return found


CONFIGS = shipped_configs()


def make_small(model):
    """Shrink the networks of a config, in place; the algorithm's own arguments stay."""
    backbone, neck = model.backbone, model.neck
    if backbone.type == 'ResNet':
        backbone.update(depth=18, stem_channels=8, base_channels=8)
        channels = 64
    else:  # a ViT
        arch = dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=64)
        backbone.update(arch=arch, img_size=64)
        channels = 64
    neck.update(in_channels=channels, hid_channels=16)
    if 'predictor' in model.head:
        model.head.predictor.hid_channels = 16
    if 'queue_len' in model:
        model.queue_len = 32


def read_config(name):
    config = Config.fromfile(str(SHIPPED / 'configs' / name))
    make_small(config.model)
    return config


def test_the_shipped_configs_are_found():
    assert len(set(CONFIGS.values())) >= 5 and tiny_form().algorithm in CONFIGS.values()


@pytest.mark.parametrize('name', CONFIGS)
def test_one_changed_type_trains(name):
    """In mmpretrain's scope, as under its tools: built, initialised, and a step with their
    optimizer's groups; their checkpoint fills our class."""
    config, kind = read_config(name), CONFIGS[name]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = MODELS.build(dict(config.model, type=f'mmpretrain.{kind}'))
        ours = MODELS.build(dict(config.model, type=f'mmdense.{kind}'))
        assert isinstance(ours, getattr(models, kind)) and type(theirs).__module__.startswith('mmp')
        ours.init_weights()
        ours.load_state_dict(theirs.state_dict(), strict=True)
    ours = revert_sync_batchnorm(ours)  # in one process, as the runner does
    if hasattr(ours, 'encoder_k'):
        ours.encoder_k.total_steps = 10  # in a run the runner says it
    views = [torch.randn(4, 3, 64, 64) for _ in range(ours.views.count)]
    losses = ours(views, mode='loss', data_samples=None)
    for queue in ('queue', 'queue2'):  # as mmpretrain's own tests read them
        if hasattr(ours, queue):
            assert getattr(ours, queue).size() == (config.model.feat_dim, config.model.queue_len)
            assert int(getattr(ours, f'{queue}_ptr')) == 4
    sum(losses.values()).backward()
    missing = [k for k, p in ours.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, missing
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize('name', {kind: name for name, kind in CONFIGS.items()}.values())
def test_parts_by_plain_names(name):
    """Without a scope, as mmpretrain's own tests build an algorithm."""
    config, kind = read_config(name), CONFIGS[name]
    model = dict(config.model)
    model.pop('type')
    assert DefaultScope.get_current_instance() is None
    getattr(models, kind)(**model)


def train_arguments(name, images, work_dir, *options):
    """Return arguments of a tools/train.py: a shipped config at a tiny size."""
    shipped = read_config(name)
    path = Path(work_dir).with_suffix('.py')
    loader = shipped.train_dataloader
    loader.update(batch_size=4, num_workers=0, persistent_workers=False)
    pipeline = loader.dataset.pipeline
    loader.dataset = dict(
        type='CustomDataset', data_root=images, data_prefix='', with_label=False, pipeline=pipeline
    )
    shipped.train_cfg.max_epochs = 1
    shipped.default_hooks.logger.interval = 1
    if shipped.optim_wrapper.type == 'AmpOptimWrapper':  # needs a GPU
        shipped.optim_wrapper.pop('loss_scale')
        shipped.optim_wrapper.type = 'OptimWrapper'
    shipped.dump(str(path))
    changes = ['train_dataloader.dataset.pipeline.1.transforms.0.0.scale=64', *options]
    return [str(path), '--work-dir', str(work_dir), '--cfg-options', *changes]


ONE_EACH = {kind: name for name, kind in reversed(CONFIGS.items())}


@pytest.mark.parametrize(
    'kind',
    [pytest.param(k, marks=[pytest.mark.slow] * (not tiny_form(k).example)) for k in ONE_EACH],
)
def test_both_tools_train_it(kind, images, repo, run_forked, tmp_path):
    """With one changed type, under mmpretrain's tools/train.py and under ours; and ours continues
    from what mmpretrain's own class wrote there."""
    name = ONE_EACH[kind]
    theirs, ours = SHIPPED / 'tools' / 'train.py', repo / 'tools' / 'train.py'
    runs = dict(
        original=(theirs, []),
        changed=(theirs, [f'model.type=mmdense.{kind}']),
        own=(ours, [f'model.type=mmdense.{kind}', f'load_from={tmp_path}/original/epoch_1.pth']),
    )
    states = {}
    for run, (tool, more) in runs.items():
        arguments = train_arguments(name, images, tmp_path / run, *more)
        done = run_forked(str(tool), *arguments)
        assert done.returncode == 0, done.stdout[-3000:]
        states[run] = torch.load(tmp_path / run / 'epoch_1.pth', weights_only=False)['state_dict']
    assert states['own'].keys() == states['changed'].keys()
    if 'encoder_k.steps' in states['own']:
        # one for weights that are not to be overwritten
        assert int(states['own']['encoder_k.steps']) == 1 + 4
