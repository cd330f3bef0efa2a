# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""``mmdense pretrain`` and ``mmdense plan``."""

import argparse
import sys
from argparse import Namespace

from mmdense.utils.model_index import methods, supervised_methods


def add_pretrain(command) -> None:
    """Declare the arguments."""
    _add_settings(command)
    command.add_argument('--resume', action='store_true', help='continue the run in --out')


def add_plan(command) -> None:
    """Declare the arguments."""
    _add_settings(command)


def _add_settings(command) -> None:
    command.usage = f'{command.prog} [options] images [images ...]'
    command.add_argument(
        'images',
        nargs='+',
        type=_parse_path,
        help='folders, zips, LMDBs, images; or one COCO json or list',
    )
    _add_run(command.add_argument)
    _add_images(command.add_argument)


def _add_run(add) -> None:
    """Declare what is trained, and how."""
    names = ', '.join(methods())
    add('--method', type=_parse_path, default='densecl', help=f'{names}; default: %(default)s')
    add(
        '--backbone',
        help="resnet18, 34, 50, vit-small, or mmpretrain's by name; default: the recipe's",
    )
    add('--epochs', type=_parse_count, help='default: from the number of images')
    add('--out', type=_parse_path, metavar='DIR', help='default: work_dirs/METHOD_IMAGES')
    add(
        '--init',
        type=_parse_path,
        metavar='CHECKPOINT',
        help='start from it, or from what `mmdense list` names',
    )
    add('--teacher', type=_parse_path, metavar='CHECKPOINT', help='of distill; likewise')
    add('--batch-size', type=_parse_count, metavar='N', help='images a process and step')
    add('--workers', type=_parse_whole, metavar='N', help='processes that load images, for each')
    add('--gpus', type=_parse_count, default=1, metavar='N', help='processes; default: %(default)s')
    add('--size', type=_parse_count, metavar='PIXELS', help='side of the views')
    add('--seed', type=_parse_seed, default=0, help='default: %(default)s')
    add(
        '--custom-imports',
        nargs='+',
        action='extend',
        default=[],
        metavar='MODULE',
        help='your own modules, with a method for instance',
    )


def _add_images(add) -> None:
    """Declare which images are read, how, and the labels of some."""
    add(
        '--prefix',
        type=_parse_path,
        metavar='DIR',
        help="the folder that a json's paths are relative to",
    )
    add(
        '--exclude',
        nargs='+',
        action='extend',
        type=_parse_path,
        metavar='PATTERN',
        help='images to leave out; default: label maps',
    )
    add(
        '--value-range',
        nargs=2,
        type=_parse_value,
        metavar=('LOW', 'HIGH'),
        help='black and white of 16-bit images: 0 4096, 1%% 99%%',
    )
    add('--in-channels', type=_parse_count, metavar='N', help='bands of the images; default: 3')
    add(
        '--labels',
        type=_parse_path,
        metavar='DATA',
        help='labelled images: score the features by them',
    )
    add(
        '--ignore-label',
        type=_parse_whole,
        metavar='N',
        help='the number of pixels that do not count; default: 255',
    )


def _parse_whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 0, got {text}')
    return value


def _parse_count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, got {text}')
    return value


def _parse_seed(text: str) -> int:
    value = _parse_whole(text)
    if value >= 2**32:  # NumPy's
        raise argparse.ArgumentTypeError(f'must be below 2**32, got {text}')
    return value


def _parse_value(text: str):
    if text.endswith('%'):
        return text
    value = float(text)
    return int(value) if value.is_integer() else value


_parse_value.__name__ = 'number or percentile'


def _parse_path(text: str) -> str:
    if not text:  # of an unset variable: it would be the current folder
        raise argparse.ArgumentTypeError('must not be empty')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not UTF-8: rename it, configs and json cannot hold it'
        ) from None
    return text


_parse_whole.__name__ = _parse_seed.__name__ = _parse_count.__name__ = (
    'whole number'  # argparse names it
)


def check_pretrain(args: Namespace) -> None:
    """Check the method, the paths of the data, and whether the folder of the run can be written."""
    import os.path as osp

    from mmdense.utils.paths import check_writable

    check_plan(args)
    if args.out:
        check_writable(osp.join(args.out, 'config.py'))


def check_plan(args: Namespace) -> None:
    """Check the method and the paths of the data."""
    from mmdense.utils.paths import check_checkpoint, check_images, is_file_name
    from mmdense.utils.plugins import find_plugins, unknown_method

    known = {*methods(), *supervised_methods()}  # an error follows that says what those need
    if not (args.custom_imports or args.method in known or args.method in find_plugins()):
        raise unknown_method(args.method)
    for path in args.images:
        check_images(path)
    if args.labels:
        check_images(args.labels, 'the path of labelled images')
    resumed = getattr(args, 'resume', False)  # it has begun already
    for checkpoint in (args.init, args.teacher):
        if checkpoint and not resumed and is_file_name(checkpoint):
            check_checkpoint(checkpoint)


def run_pretrain(args: Namespace) -> None:
    """Print the settings, train, and print how to use the backbone."""
    from mmdense.apis import pretraining

    request = _read_request(args)
    if args.resume:
        run = pretraining.find_run(request)
        _print_resumed(args, request, run)
    else:
        run = pretraining.start_run(request)
        if not args.quiet:
            _print_table(run.settings)
            _print_needs(args, request, run)
    if not run.finished:
        tool = pretraining.format_tool_command(run.config, request.options.gpus)
        _print_message(args, f'The same run as a config of OpenMMLab: {tool}')
        command = pretraining.format_command(request, run.ignored, resume=True)
        _print_message(args, f'Ctrl-C saves; to continue then: {command}')
    sys.stdout.flush()
    lines = pretraining.train_run(
        run, request, args.resume, args.quiet, args.verbose, module='mmdense.cli.training'
    )
    if lines:
        for line in pretraining.describe_next_steps(request):
            _print_message(args, line)
    for line in lines:
        print(line)


def run_plan(args: Namespace) -> None:
    """Print the settings, and how long the run would take."""
    from mmdense.apis import pretraining

    request = _read_request(args)
    _print_message(args, 'Reading the images, and trying the backbone…')
    plan = pretraining.plan_run(request)
    _print_table(plan.settings)
    sys.stdout.flush()
    _print_place(args, plan)
    _print_message(args, 'Timing some steps…')
    forecast = pretraining.forecast_run(
        request, plan, lambda what: _print_message(args, f'  {what}')
    )
    _print_forecast(plan, forecast)


def _read_request(args: Namespace):
    from mmdense.apis.planning import Options
    from mmdense.apis.pretraining import Request

    given = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(args).items()}
    options = Options(**{name: given[name] for name in Options._fields if name in given})
    return Request(tuple(args.images), options, args.out, args.prefix)


def _print_message(args: Namespace, text: str) -> None:
    if not args.quiet:
        print(text, file=sys.stderr, flush=True)


def _print_resumed(args: Namespace, request, run) -> None:
    from mmdense.apis.pretraining import explicit_options, format_option

    _print_message(args, f'Resuming with {run.config} as it is.')
    if run.ignored:
        values = explicit_options(request)
        options = ', '.join(format_option(name, values[name]) for name in run.ignored)
        print(f'Ignored, for {run.config} says otherwise: {options}', file=sys.stderr)
    if run.finished:
        _print_message(
            args,
            f'The run is finished: all {run.epochs} epochs are trained. --epochs MORE --resume '
            'trains longer, with the learning rate of a run of that length from here on.',
        )
    if run.before is not None:
        _print_message(
            args,
            f'{run.epochs} epochs instead of {run.before}; {run.done} are done. From here on the '
            f'learning rate is that of a run of {run.epochs} epochs at the same place: after a '
            'finished run it is higher again at first.',
        )
    if not run.begun:
        print('The run has saved nothing yet: it starts anew.', file=sys.stderr)


def _print_table(settings) -> None:
    rows = [('setting', 'value', 'reason')]
    rows += [(setting.name, str(setting.value), setting.reason) for setting in settings]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for name, value, reason in rows:
        print(f'{name:{widths[0]}}  {value:{widths[1]}}  {reason}')


def _print_place(args: Namespace, plan) -> None:
    if plan.machine.device == 'cpu':
        _print_message(
            args, f'PyTorch finds no GPU: training runs on {plan.machine.cores} CPU cores.'
        )


def _print_needs(args: Namespace, request, run) -> None:
    """Say how long a new run takes, and what memory and disk it needs, before it begins."""
    from shutil import disk_usage

    from mmdense.apis import pretraining
    from mmdense.apis.planning import duration

    needs, machine = pretraining.run_needs(run), run.plan.machine
    _print_place(args, run.plan)
    owner = 'GPU' if machine.device == 'cuda' else 'main'
    free = disk_usage(request.folder).free
    _print_message(
        args,
        f'time: {duration(needs.seconds)}, a guess from one pass of the backbone (`mmdense plan` '
        f'times real steps); memory: {needs.memory / 1e9:.1f} of {machine.memory / 1e9:.1f} GB '
        f'{owner} memory; disk: {needs.disk / 1e9:.2f} GB at most, {free / 1e9:.1f} GB are free',
    )


def _print_forecast(plan, forecast) -> None:
    """Print the times of a step and of the run, the memory, and the advice."""
    from mmdense.apis.planning import duration

    machine, processes, times = plan.machine, plan.options.gpus, forecast.times
    where, note = machine.name or f'CPU, {machine.cores} cores', ''
    if processes > 1 and machine.device == 'cpu':
        where += f', {processes} processes'
        note = ' (one process timed; they share the cores)'
    elif processes > 1:
        where = f'{processes} × {where}'
        note = ' (one process timed; the others taken to be nearly as fast)'
    each = 1000 / times.batch
    print(
        f'\na step of {times.batch} images: loading {each * times.data:.1f} ms an image '
        f'(workers: {forecast.cfg.train_dataloader.num_workers}), computing '
        f'{each * times.step:.1f} ms an image'
    )
    print(f'here ({where}): {duration(forecast.estimate.here)}{note}')
    gpus, batch = 'one GPU, too few images for 8', forecast.gpu_cfg.train_dataloader.batch_size
    if forecast.gpus > 1:
        gpus, batch = f'{forecast.gpus} GPUs', f'{forecast.gpus} × {batch}'
    print(
        f'on {gpus}: {duration(forecast.estimate.there)} '
        f'({forecast.gpu_cfg.train_cfg.max_epochs:,} epochs in steps of {batch} images; '
        f'{forecast.estimate.assumption})'
    )
    if forecast.single is not None:
        print(f'on one GPU: {duration(forecast.single.there)} ({forecast.single.assumption})')
    owner = 'GPU' if machine.device == 'cuda' else 'process'
    print(
        f'memory at most: {times.memory / 1e9:.1f} GB of the {owner}, '
        f'of {machine.memory / 1e9:.1f} GB'
    )
    print(f'disk at most: {forecast.disk / 1e9:.2f} GB')
    if forecast.advice:
        print('what would change most:')
    for line in forecast.advice:
        print(f'  {line}')
