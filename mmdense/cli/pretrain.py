# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""``mmdense pretrain`` and ``mmdense plan``."""

import argparse
import io
import logging
import os
import os.path as osp
import shlex
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from contextlib import redirect_stdout


def add_pretrain(command) -> None:
    """Its arguments."""
    _add_settings(command)
    command.add_argument('--resume', action='store_true', help='go on with the run in --out')


def add_plan(command) -> None:
    """Its arguments."""
    _add_settings(command)


def _add_settings(command) -> None:
    command.add_argument('images', help='a folder, a zip, an LMDB, or a COCO json')
    add = command.add_argument
    add('--method', default='densecl', choices=['densecl', 'pixpro', 'slotcon', 'detco'])
    add('--backbone', default='resnet50', help="resnet18, 34, 50, 101, or mmpretrain's by name")
    add('--epochs', type=_count, help='default: from the number of images')
    add('--out', metavar='DIR', help='default: work_dirs/METHOD_IMAGES')
    add('--init', metavar='CHECKPOINT', help='go on from it, or from what `mmdense list` names')
    add('--batch-size', type=_count, metavar='N', help='images a process and step')
    add('--workers', type=_whole, metavar='N', help='processes that load images, for each')
    add('--gpus', type=_count, default=1, metavar='N', help='processes; default: %(default)s')
    add('--size', type=_count, metavar='PIXELS', help='side of the views')
    add('--seed', type=_whole, default=0, help='default: %(default)s')
    add('--prefix', metavar='DIR', help="the folder that a json's paths are relative to")


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 0, got {text}')
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, got {text}')
    return value


_whole.__name__ = _count.__name__ = 'whole number'  # argparse names it


def run_pretrain(args: Namespace) -> None:
    """Prints the settings, writes the config, trains, and says how to use what came out."""
    from mmengine.config import Config

    from mmdense.checkpoints import latest_whole_checkpoint
    from mmdense.utils.errors import DataError, InputError

    out = _out(args)
    config = osp.join(out, 'config.py')
    if args.resume and osp.isfile(config):
        dataset = Config.fromfile(config).train_dataloader.dataset
        if osp.abspath(args.images) not in (dataset.get('data_root'), dataset.get('ann_file')):
            raise InputError(f'{config} is of other images: --resume without changing IMAGES')
        _remark(args, f'Going on with {config} as it is.')
    else:
        if latest_whole_checkpoint(out) or osp.exists(osp.join(out, 'backbone.pth')):
            raise InputError(f'there is a run in {out}: --resume goes on with it, or give --out')
        plan = _plan(args)
        if not args.quiet:
            _print_table(plan.settings)
        try:
            os.makedirs(out, exist_ok=True)
            with open(config, 'w', encoding='utf-8') as f:
                f.write(_text(args, plan))
        except OSError as error:
            raise DataError(f'cannot write {config}: {error.strerror}') from None
    _remark(args, f'The same run as a config of OpenMMLab: python tools/train.py {config}')
    _remark(args, f'Ctrl-C saves; to go on then: {_command(args, resume=True)}')
    sys.stdout.flush()
    _train(config, args)
    _print_use(osp.join(out, 'backbone.pth'), Config.fromfile(config))


def run_plan(args: Namespace) -> None:
    """Prints the settings, times some steps, and says what to expect."""
    from mmengine.config import Config

    from mmdense import planning

    plan = _plan(args)
    _print_table(plan.settings)
    sys.stdout.flush()
    _remark(args, 'Timing some steps…')
    text = _text(args, plan)
    cfg = Config.fromstring(text, '.py')
    times = planning.time_steps(text)
    machine, images = plan.machine, plan.images
    guess = planning.estimate(times, cfg, images, machine, args.gpus)
    where = machine.name or f'CPU, {machine.cores} cores'
    where = f'{args.gpus} × {where}' if args.gpus > 1 else where
    note = ''
    if args.gpus > 1:
        note = ' (one process timed; the others taken to be nearly as fast)'
    each = 1000 / times.batch
    print(
        f'\na step of {times.batch} images: loading {each * times.data:.1f} ms an image '
        f'(workers: {cfg.train_dataloader.num_workers}), computing {each * times.step:.1f} ms'
    )
    print(f'here ({where}): {planning.duration(guess.here)}{note}')
    eight = 'too few images'
    if guess.eight is not None:
        eight = f'{planning.duration(guess.eight)} ({guess.assumption})'
    print(f'on 8 GPUs: {eight}')
    what = 'of the GPU' if machine.device == 'cuda' else 'of the process'
    print(f'memory at most: {times.memory / 1e9:.1f} GB {what}, of {machine.memory / 1e9:.1f} GB')
    weights = planning.published_weights(plan)
    advice = planning.advise(times, images, machine, cfg, args.gpus, weights)
    if advice:
        print('what would change most:')
    for line in advice:
        print(f'  {line}')


def _plan(args: Namespace):
    from mmdense.planning import Options, make_plan

    options = {name: getattr(args, name) for name in Options._fields if hasattr(args, name)}
    return make_plan(args.images, Options(**options), args.prefix)


def _out(args: Namespace) -> str:
    if args.out is not None:
        return osp.abspath(osp.expanduser(args.out))
    name = osp.splitext(osp.basename(osp.abspath(args.images)))[0]
    return osp.abspath(osp.join('work_dirs', f'{args.method}_{name}'))


def _text(args: Namespace, plan) -> str:
    from mmdense.planning import config_text

    return config_text(args.method, plan.settings, _out(args), _command(args))


def _command(args: Namespace, resume: bool = False) -> str:
    """What was typed, less what changes nothing in the settings."""
    parts = ['mmdense', 'pretrain', args.images]
    usual = dict(method='densecl', backbone='resnet50', gpus=1, seed=0)
    names = 'method backbone epochs out init batch_size workers gpus size seed prefix'
    for name in names.split():
        value = getattr(args, name)
        if value != usual.get(name):
            parts += [f'--{name.replace("_", "-")}', str(value)]
    return ' '.join(map(shlex.quote, parts + ['--resume'] * resume))


def _remark(args: Namespace, text: str) -> None:
    if not args.quiet:
        print(text, file=sys.stderr, flush=True)


def _print_table(settings) -> None:
    rows = [('setting', 'value', 'reason')]
    rows += [(setting.name, str(setting.value), setting.reason) for setting in settings]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for name, value, reason in rows:
        print(f'{name:{widths[0]}}  {value:{widths[1]}}  {reason}')


def _train(config: str, args: Namespace) -> None:
    """As tools/train.py does; in several processes by tools/dist_train.sh itself."""
    flags = ['--resume'] if args.resume else []
    if args.gpus > 1:
        _launch(config, args.gpus, flags)
        return
    from mmdense.engine import ProgressBarHook
    from mmdense.engine.training import prepare_training, train_parser
    from mmdense.utils.launch import train

    # MMEngine's lines are progress, the result alone is on stdout. On a terminal there is a bar
    # instead, and what precedes the first step is in the log file alone.
    hidden = args.quiet or (sys.stderr.isatty() and not args.verbose)
    with redirect_stdout(io.StringIO() if hidden else sys.stderr):
        runner = prepare_training(train_parser().parse_args([config, *flags]))
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not hasattr(handler, 'baseFilename'):
            handler.setStream(sys.stderr)
            handler.setLevel('ERROR' if args.quiet else handler.level)
    if args.quiet:
        runner._hooks = [h for h in runner.hooks if not isinstance(h, ProgressBarHook)]
    with redirect_stdout(sys.stderr):
        train(runner)


def _launch(config: str, gpus: int, flags: list) -> None:
    import mmdense

    tools = osp.join(osp.dirname(mmdense.__file__), '.mim', 'tools')
    with socket.socket() as s:  # a port that is free
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    environment = dict(os.environ, PYTHON=sys.executable, PORT=os.environ.get('PORT', str(port)))
    # Ctrl-C is not for it: torchrun would end its processes at once
    process = subprocess.Popen(
        ['bash', osp.join(tools, 'dist_train.sh'), config, str(gpus), *flags],
        env=environment,
        stdout=sys.stderr,
        start_new_session=True,
    )
    interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            # it hands SIGTERM on, and all save; asked again, they end
            os.killpg(process.pid, signal.SIGKILL) if interrupted else process.terminate()
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def _print_use(backbone: str, cfg) -> None:
    """Where the result is, and the lines of a config that take it."""
    fill = f"init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint={backbone!r})"
    kind = cfg.model.backbone
    neck = head = ''
    depth = kind.get('depth', 50) if kind.type.endswith('.ResNet') else None
    name = f'depth={depth}, ' if depth not in (None, 50) else ''
    if depth in (18, 34):
        neck = ', neck=dict(in_channels=[64, 128, 256, 512])'
        head = ', decode_head=dict(in_channels=512), auxiliary_head=dict(in_channels=256)'
    if depth is None:
        name = f'type={kind.type!r}, '  # and its other settings
    segmenter = "type='ResNet', " if depth else ''
    print(f'The backbone is {backbone}; in a config of mmdet, or of mmseg:')
    print(f'model = dict(backbone=dict({name}frozen_stages=-1, norm_eval=False, {fill}){neck})')
    print(f'model = dict(pretrained=None, backbone=dict({segmenter}{name}{fill}){head})')
