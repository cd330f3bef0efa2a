# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Every config builds; the recipes are the published ones."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_algorithms import algorithms, tiny_form
from torch import nn

from mmdense.engine.training import start_from_checkpoint
from mmdense.registry import MODELS
from mmdense.utils import model_index

REPO = Path(__file__).resolve().parents[1]
ALL = sorted(
    str(p.relative_to(REPO)) for p in (REPO / 'configs').rglob('*.py') if '_base_' not in p.parts
)
PRETRAINING = [p for p in ALL if 'transfer' not in p]
# a recipe for ImageNet and one for COCO of every algorithm
FULL = [
    p[len('configs/') :]
    for p in PRETRAINING
    if re.search(r'_\d+xb', p) and p.endswith(('in1k.py', 'coco.py'))
]
INHERITED = {(p.split('/')[0], p[-7:]): p for p in reversed(FULL)}.values()
SMALL = [p for p in PRETRAINING if p.startswith('configs/small/')]


def load(path):
    return Config.fromfile(str(REPO / path))


def test_there_are_some():
    for algorithm in algorithms():
        form = tiny_form(algorithm)
        assert f'configs/{form.recipe}.py' in ALL, f'{algorithm} has no recipe {form.recipe}'
        assert load(f'configs/{form.recipe}.py').model.type == algorithm


@pytest.mark.parametrize('path', ALL)
def test_survives_a_dump(path, tmp_path):
    """MMEngine writes the config into the work directory."""
    config = load(path)
    config.dump(str(tmp_path / 'config.py'))
    again = Config.fromfile(str(tmp_path / 'config.py'))
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize('path', PRETRAINING)
def test_pretraining_configs_build(path):
    """Model, pipeline, optimiser and schedule, each from its registry."""
    from mmdense.registry import HOOKS, MODELS, TRANSFORMS

    config = load(path)
    assert config.default_scope == 'mmdense'
    if 'queue_len' in config.model:
        config.model.queue_len = 32
    device = 'cpu' if 'depth' in config.model.backbone else 'meta'  # large vision transformers
    with DefaultScope.overwrite_default_scope('mmdense'):
        with torch.device(device):
            model = MODELS.build(config.model)
        for transform in config.train_dataloader.dataset.pipeline:
            TRANSFORMS.build(transform)
        for hook in config.default_hooks.values():
            HOOKS.build(hook)
    assert model.product == tiny_form(config.model.type).product
    assert model.get_product() is model.get_submodule(model.product)
    name = short_names().get(Path(path).stem, Path(path).stem)
    schedules = config.get('param_scheduler', [])
    # one; the published learning rate of DenseSiam's segmentation is constant
    assert len(schedules) == (not name.startswith('densesiam_unsup-seg'))
    for schedule in schedules:  # as long as the run
        assert schedule.type in ('CosineAnnealingLR', 'WarmupCosineLR', 'MultiStepLR')
        assert not {'T_max', 'end'} & set(schedule)
        assert max(schedule.get('milestones', [0])) < config.train_cfg.max_epochs
    if 'demo' not in path:
        gpus = 1 if '/small/' in path else int((re.findall(r'_(\d+)xb\d+', name) or [8])[0])
        batch = gpus * config.train_dataloader.batch_size
        assert config.auto_scale_lr.base_batch_size == batch


def short_names():
    """Return the complete name of each short one."""
    return {alias: e['Name'] for e in model_index.entries() for alias in e.get('Alias', [])}


@pytest.mark.parametrize('scope', ['mmdense', 'mmpretrain', 'mmengine'])
@pytest.mark.parametrize('recipe', INHERITED)
def test_inherited_recipes_mean_the_same_under_other_scopes(recipe, scope, tmp_path):
    """mmpretrain has a LARS, RandomResizedCrop and MultiView of its own."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import DATASETS

    lazy = dict(data_root=str(tmp_path), lazy_init=True)

    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = __import__('mmdense') and 'mmdense::{recipe}'\ndefault_scope = {scope!r}\n"
    )
    config = Config.fromfile(str(child))
    with DefaultScope.overwrite_default_scope('mmdense'):
        own = DATASETS.build(dict(load(f'configs/{recipe}').train_dataloader.dataset, **lazy))
    with DefaultScope.overwrite_default_scope(scope):
        wrapper = build_optim_wrapper(nn.Linear(2, 2), config.optim_wrapper)
        inherited = DATASETS.build(dict(config.train_dataloader.dataset, **lazy))
    assert type(inherited) is type(own) and repr(inherited.pipeline) == repr(own.pipeline)
    kinds = [[type(t) for t in dataset.pipeline.transforms] for dataset in (inherited, own)]
    assert kinds[0] == kinds[1]
    ours = config.optim_wrapper.optimizer.type.startswith('mmdense.')
    package = type(wrapper.optimizer).__module__.split('.')[0]
    assert package == ('mmdense' if ours else 'torch')


@pytest.mark.parametrize('path', SMALL)
@pytest.mark.parametrize('whole', [True, False])
def test_small_configs_go_on_from_weights(tmp_path, path, whole):
    """By the lines of configs/small/README.md."""

    def build(*lines):
        cfg = load(path)
        small = dict(depth=18) if 'depth' in cfg.model.backbone else dict(arch='deit-tiny')
        cfg.model.backbone.update(small)
        if 'in_channels' in cfg.model.neck:  # else read from the backbone
            cfg.model.neck.in_channels = 512
        for line in lines:
            assert f'`{line}`' in page
            cfg.merge_from_dict(Config.fromstring(line.replace('FILE', file), '.py').to_dict())
        start_from_checkpoint(cfg)
        with DefaultScope.overwrite_default_scope('mmdense'):
            model = MODELS.build(cfg.model)
        model.init_weights()
        return model, cfg

    page, file = (REPO / 'configs/small/README.md').read_text(), str(tmp_path / 'given.pth')
    more = ['model = dict(num_prototypes=256)'] if 'num_prototypes' in load(path).model else []
    model, _ = build(*more)  # as published ones have
    given, about = model.state_dict(), dict(algorithm=type(model).__name__, product=model.product)
    kept = given if whole else model.backbone.state_dict()
    torch.save(dict(meta=dict(mmdense=about) if whole else {}, state_dict=kept), file)
    lines = ["load_from = 'FILE'", *more] if whole else ["model = dict(pretrained='FILE')"]
    if load(path).get('custom_hooks'):
        lines.append('custom_hooks = []')
    model, cfg = build(*lines)
    assert not cfg.get('custom_hooks')
    parts = ('backbone.', 'neck.') if whole else ('backbone.',)
    for name, value in model.state_dict().items():
        if name.startswith(parts):
            assert torch.equal(value, given[name]), name
