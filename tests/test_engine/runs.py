# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A tiny run of a recipe, for tests and the processes that they start and kill."""

import uuid
from contextlib import redirect_stderr, redirect_stdout

from mmengine.config import Config, DictAction
from mmengine.runner import Runner


def tiny_config(recipe, images, work_dir, tiny_options, **options):
    """Two epochs of four steps, a checkpoint every two."""
    cfg = Config.fromfile(recipe)
    pairs = [option.split('=', 1) for option in tiny_options]
    cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in pairs})
    cfg.merge_from_dict(
        {
            'train_dataloader.dataset.data_root': images,
            'train_dataloader.dataset.data_prefix': '',
            'train_dataloader.persistent_workers': False,
            'train_dataloader.pin_memory': False,
            'default_hooks.checkpoint': dict(interval=2, by_epoch=False, max_keep_ckpts=-1),
            'default_hooks.backbone_export.filename': None,
            'work_dir': str(work_dir),
            'experiment_name': uuid.uuid4().hex,  # MMEngine keeps one logger a name
            **options,
        }
    )
    for unwanted in [key for key, hook in cfg.default_hooks.items() if hook is None]:
        del cfg.default_hooks[unwanted]
    for part in ('backbone', 'neck', 'head.predictor', 'head'):
        norm = cfg.model.get(part, {})
        if norm.get('norm_cfg', {}).get('type') == 'SyncBN':
            norm.norm_cfg.type = 'BN'
    if cfg.model.type == 'SlotCon':
        cfg.model.head.predictor.norm_cfg = dict(type='BN')
    return cfg


def train(path):
    """Of a process: the run that a dumped config describes; its output goes to ``path.log``."""
    with open(f'{path}.log', 'a', buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        Runner.from_cfg(Config.fromfile(path)).train()
