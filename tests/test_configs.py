# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Every config builds; the recipes are the published ones."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

REPO = Path(__file__).resolve().parents[1]
ALL = sorted(
    str(p.relative_to(REPO)) for p in (REPO / 'configs').rglob('*.py') if '_base_' not in p.parts
)
PRETRAINING = [p for p in ALL if 'transfer' not in p]


def load(path):
    return Config.fromfile(str(REPO / path))


def test_there_are_some():
    assert 'configs/densecl_r50_coco.py' in ALL and 'configs/densecl_r50_in1k.py' in ALL


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
    config.model.queue_len = 32
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(config.model)
        for transform in config.train_dataloader.dataset.pipeline:
            TRANSFORMS.build(transform)
        for hook in config.default_hooks.values():
            HOOKS.build(hook)
    assert model.get_product() is model.backbone
    (schedule,) = config.param_scheduler
    assert schedule.T_max == schedule.end == config.train_cfg.max_epochs
    assert config.auto_scale_lr.base_batch_size == 256


@pytest.mark.parametrize(
    'path, epochs, lr, images',
    [
        ('configs/densecl_r50_coco.py', 800, 0.3, ('data/coco', 'train2017')),
        ('configs/densecl_r50_in1k.py', 200, 0.03, ('data/imagenet', 'train')),
    ],
)
def test_densecl_recipe(path, epochs, lr, images):
    config = load(path)
    assert config.train_cfg.max_epochs == epochs
    assert config.optim_wrapper.optimizer == dict(
        type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4
    )
    assert 'paramwise_cfg' not in config.optim_wrapper  # decay on ALL parameters
    model = config.model
    assert (model.queue_len, model.feat_dim, model.loss_lambda) == (65536, 128, 0.5)
    assert (model.momentum, model.head.temperature) == (0.001, 0.2)
    assert model.backbone.norm_cfg.type == 'BN'  # shuffled, not synchronised
    dataset = config.train_dataloader.dataset
    assert (dataset.data_root, dataset.data_prefix) == images
    assert config.train_dataloader.batch_size * 8 == 256
