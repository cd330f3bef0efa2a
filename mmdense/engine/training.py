# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Prepare and run a training, for tools/train.py and `mmdense pretrain`."""

import argparse
import os.path as osp
from typing import Union

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import IterBasedTrainLoop, Runner

from mmdense.checkpoints import latest_complete_checkpoint
from mmdense.utils.errors import CONFIG_ERRORS, one_line_errors
from mmdense.utils.memory import keep_freed_memory
from mmdense.utils.mmengine_patches import format_configs_once, set_config_file
from mmdense.utils.slow_imports import keep_imports

from .channels import check_channels
from .events import log_event
from .hooks import check_enough_images
from .launch import add_common_arguments, algorithm_class, build_runner, merge_common_arguments
from .optimizers.amp_optim_wrapper import describe_slow_bfloat16
from .schedule_checks import describe_save_best, describe_schedules, try_schedules


def train_parser() -> argparse.ArgumentParser:
    """Build the parser of tools/train.py."""
    parser = argparse.ArgumentParser(description='Pretrain a backbone')
    parser.add_argument('config', help='config file path')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without one from the latest in the work directory',
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate in training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate linearly to the actual total batch size',
    )
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='disable persistent_workers in the data loaders',
    )
    add_common_arguments(parser)
    return parser


def merge_train_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the arguments to a config."""
    merge_common_arguments(cfg, args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        _enable_amp(cfg)
    if args.resume == 'auto' or (args.resume is None and cfg.get('resume') and not cfg.load_from):
        args.resume = latest_complete_checkpoint(cfg.work_dir)
        cfg.resume = False  # where there is none
    if args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    start_from_checkpoint(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        cfg.auto_scale_lr.enable = True
    if args.no_persistent_workers:
        for split in ('train', 'val'):
            if cfg.get(f'{split}_dataloader'):
                cfg[f'{split}_dataloader'].persistent_workers = False


def _enable_amp(cfg: Config) -> None:
    """Apply ``--amp``: float16 on a GPU, bfloat16 on a CPU that computes fast in it."""
    on_cpu = get_device() == 'cpu'
    slow = describe_slow_bfloat16() if on_cpu else ''
    if slow:
        raise ValueError(
            f'--amp saves no time here: {slow}. Leave it out, or train in bfloat16 all the same by '
            '--cfg-options optim_wrapper.type=mmdense.AmpOptimWrapper'
        )
    own = cfg.get('default_scope') == 'mmdense'
    # MMEngine's own, which other scopes find, refuses a CPU
    cfg.optim_wrapper.type = 'AmpOptimWrapper' if own else 'mmdense.AmpOptimWrapper'
    dtype = cfg.optim_wrapper.setdefault('dtype', 'bfloat16' if on_cpu else 'float16')
    cfg.optim_wrapper.setdefault('loss_scale', loss_scale(dtype))


def loss_scale(dtype: str) -> Union[str, dict]:
    """Return the ``loss_scale`` of ``AmpOptimWrapper``.

    bfloat16 has the range of float32: nothing is scaled, and no step waits for an overflow check.
    """
    return 'dynamic' if dtype == 'float16' else dict(enabled=False)


def keep_config(cfg: Config) -> None:
    """Keep the config's own file.

    MMEngine writes the complete config into the work directory under the name of its file. Where
    that is the file itself, the complete config goes to ``NAME_whole.py``.
    """
    path = cfg.filename and osp.realpath(cfg.filename)
    if path and path == osp.realpath(osp.join(cfg.work_dir, osp.basename(path))):
        stem, ending = osp.splitext(path)
        set_config_file(cfg, f'{stem}_whole{ending}')


def start_from_checkpoint(cfg: Config) -> None:
    """Make ``load_from`` of a new run the initialiser of the model, which is strict.

    MMEngine's own way only warns of tensors that do not fit, and trains on random weights.
    """
    if not cfg.get('load_from') or cfg.get('resume'):
        return
    if algorithm_class(cfg) is not None:
        cfg.model.init_cfg = dict(type='Pretrained', _scope_='mmdense', checkpoint=cfg.load_from)
        cfg.load_from = None


def scale_lr(runner: Runner) -> None:
    """Scale the learning rate for ``--auto-scale-lr``.

    MMEngine takes an iteration for a step of the optimizer, also where gradients are accumulated.
    """
    scale, runner.auto_scale_lr = runner.auto_scale_lr, None
    runner.scale_lr(runner.optim_wrapper, scale)
    counts = runner.cfg.optim_wrapper.get('accumulative_counts', 1)
    if scale and scale.get('enable') and counts > 1:
        runner.logger.info(f'Scaling the LR by {counts} more: a step has {counts} iterations.')
        for group in runner.optim_wrapper.param_groups:
            group['lr'] *= counts


def build_training(runner: Runner) -> None:
    """Build the parts that ``Runner.train()`` builds first, in its order.

    Built here, a mistake in them is one line; and a data set without a complete batch breaks the
    schedules before any hook could say so.
    """
    loop = runner.train_loop
    check_enough_images(loop.dataloader)
    check_channels(runner.model, loop.dataloader.dataset)
    if loop.max_iters < 1:
        raise ValueError(f'train_cfg gives {loop.max_iters} iterations: there is nothing to do')
    if isinstance(loop, IterBasedTrainLoop):
        for schedule in runner.param_schedulers or ():
            # MMEngine would take one epoch for the length of the run
            if schedule.get('by_epoch', True) and 'end' not in schedule:
                raise ValueError(
                    f'param_scheduler {schedule["type"]} counts epochs, the loop iterations: give '
                    f'it by_epoch=False, end={loop.max_iters} and other lengths in iterations, and '
                    'no convert_to_iter_based'
                )
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    scale_lr(runner)
    lines = describe_save_best(runner)
    if runner.param_schedulers is not None:
        configs = runner.param_schedulers
        runner.param_schedulers = runner.build_param_scheduler(configs)
        try_schedules(configs, runner)
        lines += describe_schedules(configs, runner)
    for line in lines:
        log_event(runner, 'setting_without_effect', line, 'WARNING')


def prepare_process() -> None:
    """Set what makes a training faster and changes none of its numbers, for the whole process."""
    keep_imports()
    format_configs_once()
    if get_device() == 'cpu':
        keep_freed_memory()


def prepare_training(args: argparse.Namespace) -> Runner:
    """Build the runner of the config and the arguments for :func:`mmdense.engine.launch.train`.

    An error in them ends the program with one line.
    """
    prepare_process()
    with one_line_errors(*CONFIG_ERRORS):
        cfg = Config.fromfile(args.config)
        merge_train_arguments(cfg, args)
        keep_config(cfg)
        runner = build_runner(cfg)
        if isinstance(runner, Runner):
            build_training(runner)
    return runner
