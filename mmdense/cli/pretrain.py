# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""``mmdense pretrain`` and ``mmdense plan``."""

import argparse
import os
import os.path as osp
import shlex
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from contextlib import suppress
from importlib.util import find_spec
from typing import Sequence


def add_pretrain(command) -> None:
    """Its arguments."""
    _add_settings(command)
    command.add_argument('--resume', action='store_true', help='go on with the run in --out')


def add_plan(command) -> None:
    """Its arguments."""
    _add_settings(command)


def _add_settings(command) -> None:
    command.add_argument('images', type=_path, help='a folder, a zip, an LMDB, or a COCO json')
    add = command.add_argument
    add('--method', default='densecl', choices=['densecl', 'pixpro', 'slotcon', 'detco'])
    add('--backbone', default='resnet50', help="resnet18, 34, 50, 101, or mmpretrain's by name")
    add('--epochs', type=_count, help='default: from the number of images')
    add('--out', type=_path, metavar='DIR', help='default: work_dirs/METHOD_IMAGES')
    add(
        '--init',
        type=_path,
        metavar='CHECKPOINT',
        help='go on from it, or from what `mmdense list` names',
    )
    add('--labels', type=_path, metavar='DATA', help='labelled images: score the features by them')
    add(
        '--ignore-label',
        type=_whole,
        metavar='N',
        help='the number of pixels in label maps that do not count; default: 255',
    )
    add('--batch-size', type=_count, metavar='N', help='images a process and step')
    add('--workers', type=_whole, metavar='N', help='processes that load images, for each')
    add('--gpus', type=_count, default=1, metavar='N', help='processes; default: %(default)s')
    add('--size', type=_count, metavar='PIXELS', help='side of the views')
    add('--seed', type=_seed, default=0, help='default: %(default)s')
    add(
        '--prefix', type=_path, metavar='DIR', help="the folder that a json's paths are relative to"
    )


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


def _seed(text: str) -> int:
    value = _whole(text)
    if value >= 2**32:  # NumPy's
        raise argparse.ArgumentTypeError(f'must be below 2**32, got {text}')
    return value


def _path(text: str) -> str:
    if not text:  # of an unset variable: it would be the current folder
        raise argparse.ArgumentTypeError('must not be empty')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not UTF-8: rename it, configs and json cannot hold it'
        ) from None
    return text


_whole.__name__ = _seed.__name__ = _count.__name__ = 'whole number'  # argparse names it


def run_pretrain(args: Namespace) -> None:
    """Prints the settings, writes the config, trains, and says how to use what came out."""
    from mmengine.config import Config

    from mmdense.checkpoints import latest_whole_checkpoint
    from mmdense.utils.errors import CONFIG_ERRORS, InputError, one_line_errors
    from mmdense.utils.files import report_write_errors, write_text

    out, ignored = _out(args), []
    config = osp.join(out, 'config.py')
    begun = latest_whole_checkpoint(out) or osp.exists(osp.join(out, 'backbone.pth'))
    cfg = same = None
    if osp.isfile(config) and (args.resume or begun):
        with one_line_errors(*CONFIG_ERRORS):  # it may have been changed by hand
            cfg = Config.fromfile(config)
            dataset = cfg.train_dataloader.dataset
            same = osp.abspath(args.images) in (dataset.get('data_root'), dataset.get('ann_file'))
    if args.resume:
        if cfg is None:
            raise InputError(
                f'there is no run in {out} to go on with: leave --resume out, or name it by --out'
            )
        if not same:
            raise InputError(f'{config} is of other images: give these, or another --out')
        ignored = _ignored(args, cfg)
        _remark(args, f'Going on with {config} as it is.')
        if ignored:
            options = ', '.join(_option(args, name) for name in ignored)
            print(f'Ignored, for {config} says otherwise: {options}', file=sys.stderr)
        if not begun:
            print('The run has saved nothing yet: it starts anew.', file=sys.stderr)
    else:
        if begun:
            what = 'a run of other images' if same is False else 'a run'
            how = '--resume goes on with it, or give --out' if same else 'give another --out'
            raise InputError(f'there is {what} in {out}: {how}')
        plan = _plan(args)
        if not args.quiet:
            _print_table(plan.settings)
        with report_write_errors(config):
            write_text(config, _text(args, plan))
    _remark(args, f'The same run as a config of OpenMMLab: {_tool(config)}')
    _remark(args, f'Ctrl-C saves; to go on then: {_command(args, ignored, resume=True)}')
    sys.stdout.flush()
    _train(config, args)
    backbone = osp.join(out, 'backbone.pth')
    if osp.exists(backbone):  # not where the processes were told to end
        _print_use(backbone, Config.fromfile(config))


def run_plan(args: Namespace) -> None:
    """Prints the settings, times some steps, and says what to expect."""
    from mmengine.config import Config

    from mmdense.apis import planning

    plan = _plan(args)
    _print_table(plan.settings)
    sys.stdout.flush()
    _remark(args, 'Timing some steps…')
    text = _text(args, plan)
    cfg = Config.fromstring(text, '.py')
    times = planning.time_steps(text)
    machine, images = plan.machine, plan.images
    there = planning.plan_for_gpus(plan)
    gpus, other = there.options.gpus, Config.fromstring(_text(args, there), '.py')
    guess = planning.estimate(times, cfg, images, machine, args.gpus, other, gpus)
    where = machine.name or f'CPU, {machine.cores} cores'
    where = f'{args.gpus} × {where}' if args.gpus > 1 else where
    note = ''
    if args.gpus > 1:
        note = ' (one process timed; the others taken to be nearly as fast)'
        if machine.device == 'cpu':
            where = f'CPU, {machine.cores} cores, {args.gpus} processes'
            note = ' (one process timed; they share the cores)'
    each = 1000 / times.batch
    print(
        f'\na step of {times.batch} images: loading {each * times.data:.1f} ms an image '
        f'(workers: {cfg.train_dataloader.num_workers}), computing {each * times.step:.1f} ms'
        ' an image'
    )
    print(f'here ({where}): {planning.duration(guess.here)}{note}')
    each, epochs = other.train_dataloader.batch_size, other.train_cfg.max_epochs
    print(
        f'on {f"{gpus} GPUs" if gpus > 1 else "one GPU, too few images for 8"}: '
        f'{planning.duration(guess.there)} ({epochs:,} epochs in steps of '
        f'{f"{gpus} × {each}" if gpus > 1 else each} images; {guess.assumption})'
    )
    what = 'of the GPU' if machine.device == 'cuda' else 'of the process'
    print(f'memory at most: {times.memory / 1e9:.1f} GB {what}, of {machine.memory / 1e9:.1f} GB')
    weights = planning.published_weights(plan)
    advice = planning.advise(times, images, machine, cfg, args.gpus, weights)
    if advice:
        print('what would change most:')
    for line in advice:
        print(f'  {line}')


def _plan(args: Namespace):
    from mmdense.apis.planning import Options, make_plan

    options = {name: getattr(args, name) for name in Options._fields if hasattr(args, name)}
    return make_plan(args.images, Options(**options), args.prefix)


def _out(args: Namespace) -> str:
    if args.out is not None:
        return osp.abspath(osp.expanduser(args.out))
    name = osp.basename(osp.abspath(args.images))
    if not osp.isdir(args.images):
        name = osp.splitext(name)[0]
    return osp.abspath(osp.join('work_dirs', f'{args.method}_{name}'))


def _text(args: Namespace, plan) -> str:
    from mmdense.apis.planning import config_text

    return config_text(plan.base, plan.settings, _out(args), _command(args))


_NAMES = (
    *('method', 'backbone', 'epochs', 'out', 'init', 'batch_size', 'workers', 'gpus', 'size'),
    *('seed', 'prefix', 'labels', 'ignore_label'),
)


def _told(args: Namespace) -> list:
    """The names of the options that are not as usual."""
    from mmdense.apis.planning import Options

    return [name for name in _NAMES if getattr(args, name) != getattr(Options(), name, None)]


def _option(args: Namespace, name: str) -> str:
    return f'--{name.replace("_", "-")} {shlex.quote(str(getattr(args, name)))}'


def _command(args: Namespace, without: Sequence[str] = (), resume: bool = False) -> str:
    """What was typed, less what changes nothing in the settings."""
    options = [_option(args, name) for name in _told(args) if name not in without]
    parts = ['mmdense', 'pretrain', shlex.quote(args.images), *options]
    return ' '.join(parts + ['--resume'] * resume)


def _ignored(args: Namespace, cfg) -> list:
    """The names of the options that the config of a run says otherwise."""
    from mmdense.apis import hub
    from mmdense.apis.planning import survey_labels
    from mmdense.apis.planning.survey import find_backbone, read_recipe
    from mmdense.utils.errors import InputError

    def backbone() -> bool:
        usual = read_recipe(args.method).model.backbone.to_dict()
        asked = dict(usual, **find_backbone(args.backbone, usual))
        return all(
            cfg.model.backbone.get(k) == asked[k] for k in ('type', 'depth', 'arch') if k in asked
        )

    def init() -> bool:
        source = cfg.get('load_from') or cfg.model.get('pretrained') or ''
        if source in (args.init, osp.abspath(osp.expanduser(args.init))):
            return True
        with suppress(InputError):  # no name of a recipe
            return source == getattr(hub.find_weights(args.init), 'url', None)
        return False

    loader, labelled = cfg.train_dataloader, cfg.get('default_hooks', {}).get('evaluation', {})
    as_told = dict(
        method=lambda: cfg.model.type.lower() == args.method,
        backbone=backbone,
        epochs=lambda: cfg.train_cfg.max_epochs == args.epochs,
        init=init,
        batch_size=lambda: loader.batch_size == args.batch_size,
        workers=lambda: loader.num_workers == args.workers,
        size=lambda: loader.dataset.pipeline[1]['transforms'][0][0]['scale'] == args.size,
        seed=lambda: cfg.randomness.seed == args.seed,
        labels=lambda: (
            labelled.data == survey_labels(args.labels, args.prefix, args.ignore_label).data
        ),
        ignore_label=lambda: labelled.data.get('ignore_index') == args.ignore_label,
        prefix=lambda: (
            osp.abspath(osp.expanduser(args.prefix))
            in (loader.dataset.data_prefix, labelled.get('data', {}).get('img_path'))
        ),
    )

    def agrees(name: str) -> bool:
        with suppress(AttributeError, LookupError, TypeError):  # it was changed by hand
            return as_told[name]()
        return False

    return [name for name in _told(args) if name in as_told and not agrees(name)]


def _tool(config: str) -> str:
    """The command of OpenMMLab's that trains a config, from here."""
    from mmdense.utils.model_index import tool_path

    if find_spec('mim'):
        return f'mim train mmdense {shlex.quote(config)}'
    tool = tool_path('train.py')
    if osp.isfile('tools/train.py') and osp.samefile('tools/train.py', tool):
        tool = 'tools/train.py'
    return f'python {shlex.quote(tool)} {shlex.quote(config)}'


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
    """In this process, or in several by tools/dist_train.sh itself."""
    flags = [f'--{name}' for name in ('resume', 'quiet', 'verbose') if getattr(args, name)]
    if args.gpus > 1:
        _launch(config, args.gpus, flags)
        return
    from . import training

    training.train_config(training.parse_args([config, *flags]))


def _launch(config: str, gpus: int, flags: list) -> None:
    from mmdense.apis.planning import survey_machine
    from mmdense.apis.planning.settings import choose_threads
    from mmdense.utils.model_index import tool_path

    with socket.socket() as s:  # a port that is free
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    usual, machine = dict(PORT=str(port)), survey_machine()
    if machine.device == 'cpu':  # torchrun's usual is 1
        usual['OMP_NUM_THREADS'] = str(choose_threads(machine.cores, gpus))
    ours = dict(PYTHON=sys.executable, TRAIN_MODULE='mmdense.cli.training')
    process = subprocess.Popen(
        ['bash', tool_path('dist_train.sh'), config, str(gpus), *flags],
        env={**usual, **os.environ, **ours},
        stdout=sys.stderr,
        start_new_session=True,  # Ctrl-C is not for it: torchrun would end its processes at once
    )
    told = []

    def tell(number: int, _) -> None:
        """It hands the signal on, and all save; a second Ctrl-C ends them."""
        if number == signal.SIGINT and number in told:
            os.killpg(process.pid, signal.SIGKILL)
        told.append(number)
        process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    before = {n: signal.signal(n, tell) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in told:
        raise KeyboardInterrupt
    if code or told:
        raise SystemExit(code)


def _print_use(backbone: str, cfg) -> None:
    """Where the result is, and the lines of a config that take it."""
    from mmdense.apis.inspection.fit import stock_lines

    lines = stock_lines(backbone, cfg.model.backbone.to_dict())
    print(f'The backbone is {backbone}{"; in a config of mmdet, or of mmseg:" * bool(lines)}')
    for line in lines:
        print(line)
