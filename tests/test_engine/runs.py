# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A tiny run of a recipe, for tests and the processes that they start and kill."""

import uuid
from contextlib import redirect_stderr, redirect_stdout

from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from tiny_algorithms import tiny_form


def tiny_config(images, work_dir, algorithm=None, **options):
    """Return the config of an algorithm's recipe, tiny: two epochs of four steps, a checkpoint
    every two."""
    form = tiny_form(algorithm)
    cfg = Config.fromfile(str(form.config))
    pairs = [option.split('=', 1) for option in form.recipe_options]
    cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in pairs})
    cfg.merge_from_dict(
        {
            'train_dataloader.dataset.data_root': images,
            'train_dataloader.dataset.data_prefix': '',
            'train_dataloader.persistent_workers': False,
            'train_dataloader.pin_memory': False,
            'default_hooks.checkpoint': dict(interval=2, by_epoch=False, max_keep_ckpts=-1),
            'default_hooks.backbone_export.filename': None,
            **({'model.backbone.stem_channels': 8} if form.is_resnet else {}),
            **({'model.backbone.base_channels': 8} if form.is_resnet else {}),
            'work_dir': str(work_dir),
            'experiment_name': uuid.uuid4().hex,  # MMEngine keeps one logger a name
            **options,
        }
    )
    for unwanted in [key for key, hook in cfg.default_hooks.items() if hook is None]:
        del cfg.default_hooks[unwanted]
    if 'in_channels' in cfg.model.get('neck', {}):
        cfg.model.neck.in_channels = 64
    return cfg


def train(path):
    """Of a process: the run that a dumped config describes; its output goes to ``path.log``."""
    with open(f'{path}.log', 'a', buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        Runner.from_cfg(Config.fromfile(path)).train()
