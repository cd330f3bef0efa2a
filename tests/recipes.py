# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Read recipes, and compare them with published ones, for the test files of algorithms."""

from pathlib import Path

from mmengine.config import Config

REPO = Path(__file__).resolve().parents[1]


def load_recipe(path: str) -> Config:
    """Return a config, by its path from the root of the checkout."""
    return Config.fromfile(str(REPO / path))


def check_lars_recipe(config: Config, batch: int, epochs: int, images) -> None:
    """Check the optimizer, the schedule and the momentum that recipes with LARS share."""
    optimizer = dict(type='mmdense.LARS', lr=batch / 256, momentum=0.9, weight_decay=1e-5)
    assert config.optim_wrapper.optimizer == optimizer
    assert config.train_dataloader.batch_size * 8 == batch
    assert config.train_cfg.max_epochs == epochs
    assert config.train_dataloader.dataset.data_prefix == images
    (schedule,) = config.param_scheduler
    assert (schedule.warmup, schedule.start_factor, schedule.eta_min) == (5, 0.01, 1e-6)
    assert schedule.convert_to_iter_based
    model = config.model
    assert (model.momentum, model.end_momentum) == (0.01, 0)
    assert model.backbone.norm_cfg.type == 'SyncBN' and 'zero_init_residual' not in model.backbone
