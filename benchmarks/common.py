# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Share what all benchmarks need: options, time, memory, and the rows of their tables."""

import argparse
import copy
import gc
import importlib
import io
import json
import multiprocessing
import os
import platform
import re
import signal
import sys
import time
from contextlib import nullcontext, redirect_stdout, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from statistics import median

import cv2
import torch
from mmengine.config import DictAction

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'

# ---------------------------------------------------------------------------------------- options


def parser(doc, rounds=7):
    """Return a parser with the options that all benchmarks take."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', type=int, default=rounds, help='what is compared takes turns')
    parser.add_argument(
        '--clock',
        default='wall',
        choices=['wall', 'cpu'],
        help='cpu: seconds of all cores, which others on the machine disturb less (on the CPU, '
        'with OMP_WAIT_POLICY=PASSIVE)',
    )
    parser.add_argument('--json', type=Path, help='also write the rows to this file')
    return parser


def add_model_options(parser, batch_size=16, depth=50, size=224):
    """Add the options of benchmarks with a model or a loss."""
    parser.add_argument('--amp', choices=['float16', 'bfloat16'], help='autocast')
    parser.add_argument('--batch-size', type=int, default=batch_size)
    parser.add_argument('--depth', type=int, default=depth, help='of the ResNet')
    parser.add_argument('--size', type=int, default=size, help='of the views, in pixels')
    parser.add_argument('--patch-size', type=int, default=64, help='of sets of patches, in pixels')
    parser.add_argument('--queue-len', type=int, default=65536, help='keys in a queue')
    parser.add_argument('--num-prototypes', type=int, default=256)
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='of our config: model.compile=True'
    )


def prepare(args):
    """Once, before anything is built."""
    torch.manual_seed(0)
    if args.device == 'cuda':
        torch.backends.cudnn.benchmark = True


def autocast(args):
    if not args.amp:
        return nullcontext()
    return torch.autocast(args.device, dtype=getattr(torch, args.amp))


def setting(args, *what):
    """In words, for a row."""
    words = [*what, args.device]
    if args.device == 'cpu':
        words.append(f'{torch.get_num_threads()} threads')
    words += [getattr(args, 'amp', None), 'CPU seconds' if args.clock == 'cpu' else '']
    options = getattr(args, 'cfg_options', None) or {}
    words += [f'{key}={value}' for key, value in options.items()]
    return ', '.join(filter(None, words))


# ------------------------------------------------------------------------------------------- time


def timed(function, args):
    """Seconds until the call returns, and until the device is done."""
    clock = time.process_time if args.clock == 'cpu' else time.perf_counter

    def wait():
        if args.device == 'cuda':
            torch.cuda.synchronize()

    wait()
    start = clock()
    function()
    host = clock() - start
    wait()
    return host, clock() - start


def measure(functions, args, which=1):
    """Seconds of each function in each round, after one round to warm up.

    All take their turn, round after round, so that a drift of the machine meets all alike.

    Args:
        functions (dict[str, Callable]): Without arguments.
        which (int): 1, until the device is done; 0, until the call returns.
    """
    times = {name: [] for name in functions}
    for i in range(args.rounds + 1):
        for name, function in functions.items():
            seconds = timed(function, args)[which]
            if i:
                times[name].append(seconds)
    return times


def total(times, names):
    """Round by round, the sum of several functions' seconds."""
    return [sum(t) for t in zip(*(times[name] for name in names))]


# ----------------------------------------------------------------------------------------- memory


# Processes are forked by a server that has imported all, for imports take seconds. It must not ask
# CUDA whether there is a GPU, as MMEngine does when it is imported: what it forks could not use it.
# This has PyTorch ask the driver's library instead. Where there is none, START=spawn.
os.environ.setdefault('PYTORCH_NVML_BASED_CUDA_CHECK', '1')
START = 'MMDENSE_BENCH_START'


def in_own_process(function, *args, seconds=None):
    """Return the result of the function in a process of its own.

    Args:
        function (Callable): Of a module.
        *args: Its arguments, which can be pickled, as what it returns.
        seconds (float, optional): The longest that it may take.

    Raises:
        TimeoutError: After ``seconds``. The process and all that it started are ended.
        ChildProcessError: When the process ends without a result.
    """
    context = multiprocessing.get_context(os.environ.get(START, 'forkserver'))
    if context.get_start_method() == 'forkserver':
        context.set_forkserver_preload(['mmdense.models', 'gpu_parts'])
    receiver, sender = context.Pipe(duplex=False)
    # what a limited process starts is in its group, and ends with it
    group = os.getpgrp() if seconds is None else 0
    process = context.Process(target=_send, args=(sender, group, function, *args))
    process.start()
    sender.close()
    try:
        if seconds is not None and not receiver.poll(seconds):
            raise TimeoutError(f'more than {seconds:.0f} s')
        return receiver.recv()
    except EOFError:
        process.join()
        raise ChildProcessError(f'the process ended with {process.exitcode}') from None
    finally:
        if seconds is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _send(sender, group, function, *args):
    with suppress(PermissionError):  # the caller is of another group of processes
        os.setpgid(0, group)
    sender.send(function(*args))


def peak_memory(make, name, args, small, whole=False):
    """Peak memory of one call, in bytes.

    Measured in a process of its own; on a GPU, whose allocator counts, in this one, where a call
    has loaded the libraries.

    Args:
        make (Callable): From a name and args to a function without arguments; of a module.
        name (str): What to make.
        args (Namespace): Of the command line.
        small (dict): Other values of args, for a call before, which loads the libraries.
        whole (bool): Also what the function's inputs take (parameters, say).
    """
    if args.device == 'cuda':
        return _peak_device_memory(make, name, args, whole)
    # glibc hands every freed tensor back at once, so that none is counted twice
    os.environ.setdefault('MALLOC_MMAP_THRESHOLD_', str(2**17))
    return in_own_process(_peak_memory, make, name, args, small, whole)


def _peak_device_memory(make, name, args, whole):
    gc.collect()
    empty = torch.cuda.memory_allocated()
    function = make(name, args)
    before = empty if whole else torch.cuda.memory_allocated()
    function()  # cuDNN chooses its algorithms, and takes memory for those that it tries
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() - before


def _peak_memory(make, name, args, small, whole):
    prepare(args)
    little = copy.copy(args)
    vars(little).update(small)
    make(name, little)()
    function = None if whole else make(name, args)
    with open('/proc/self/clear_refs', 'w') as f:
        f.write('5')  # Linux: the peak starts again from here
    before = _resident('VmRSS')
    (function or make(name, args))()
    return _resident('VmHWM') - before


def _resident(field):
    """Bytes of this process that are, or at most were, in memory (Linux)."""
    with open('/proc/self/status') as f:
        (line,) = (line for line in f if line.startswith(field))
    return int(line.split()[1]) * 1024


# ------------------------------------------------------------------------------------------- rows

# unit: factor from what is measured (seconds, bytes, numbers), decimals
_UNITS = {'s': (1, 3), 'ms': (1e3, 2), 'MiB': (2**-20, 1), 'images/s': (1, 1)}


def show(name, values, unit, base=None):
    """Prints a figure, median and range over rounds, and its ratio to another."""
    decimals = _UNITS[unit][1]
    line = f'{name:45} {figure(_spread(values, unit), decimals)} {unit}'
    if base is not None:
        line += f'   × {figure(_ratio(base, values), 3)}'
    print(line, flush=True)


def figure(spread, decimals):
    """A median with its range, where there is one."""
    middle, low, high = (f'{value:.{decimals}f}' for value in spread)
    return middle if low == high else f'{middle} [{low} – {high}]'


def rows(what, setting, unit, ours, against):
    """Prints comparisons, ours over each of the others, and returns them as rows of a table.

    Args:
        what (str): Is measured.
        setting (str): Sizes and device, see :func:`setting`.
        unit (str): ms, s, MiB or images/s.
        ours (list[float]): A value a round, in seconds, bytes or images/s.
        against (dict[str, list[float]]): The others', by name.

    Returns:
        list[dict]: One for each of the others, for :func:`write`.
    """
    show(f'{what}: mmdense', ours, unit)
    rows = []
    for peer, theirs in against.items():
        show(f'{"":{len(what)}}  {peer}', theirs, unit, ours)
        row = dict(what=what, setting=setting, unit=unit, ours=_spread(ours, unit))
        row.update(peer=peer, theirs=_spread(theirs, unit), ratio=_ratio(ours, theirs))
        rows.append(dict(row, rounds=len(ours)))
    return rows


def _ratio(ours, theirs):
    ratios = [a / max(b, 1e-12) for a, b in zip(ours, theirs)]
    return [round(f(ratios), 4) for f in (median, min, max)]


def _spread(values, unit):
    factor, decimals = _UNITS[unit]
    return [round(f(values) * factor, decimals + 1) for f in (median, min, max)]


def unit_of(seconds):
    return 's' if median(seconds) >= 0.5 else 'ms'


def finish(args, rows):
    """Writes the rows to ``--json``."""
    write(args.json, dict(rows=rows), sys.argv)


# ------------------------------------------------------------------------------- machine and peers


def machine():
    """Return what the figures depend on: processor, GPU, versions."""
    model = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as f:
            names = [line.split(':', 1)[1].strip() for line in f if line.startswith('model name')]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {'python': platform.python_version(), 'opencv': cv2.__version__}
    for name, distributions in (
        ('torch', ['torch']),
        ('torchvision', ['torchvision']),
        ('pillow', ['pillow']),
        ('simplejpeg', ['simplejpeg']),
        ('mmengine', ['onedl-mmengine', 'mmengine']),
        ('mmcv', ['onedl-mmcv', 'mmcv']),
        ('mmpretrain', ['onedl-mmpretrain', 'mmpretrain']),
        ('lightly', ['lightly']),
        ('kornia', ['kornia']),
    ):
        for distribution in distributions:
            try:
                versions[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return dict(cpu=model, cores=os.cpu_count(), gpu=gpu, versions=versions)


def write(path, content, command):
    """A result, with date, machine and command line.

    Args:
        path (Path, optional): ``--json``; without it nothing is written.
        content (dict): ``rows``, of :func:`rows`.
        command (list[str]): With --json in it or not.
    """
    if path is None:
        return
    words = list(command)
    if '--json' in words:
        at = words.index('--json')
        del words[at : at + 2]
    result = dict(
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d'),
        command=' '.join([Path(words[0]).name, *words[1:]]),
        machine=machine(),
        **content,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def write_table(document, script, lines):
    """Replace the table of a script, which is between two comments of a page."""
    begin = f'<!-- table: by benchmarks/{Path(script).name} -->'
    end = '<!-- end of table -->'
    text = document.read_text(encoding='utf-8')
    new = '\n'.join([begin, *lines, end])
    pattern = f'{re.escape(begin)}.*?{re.escape(end)}'
    document.write_text(re.sub(pattern, lambda _: new, text, flags=re.S), encoding='utf-8')


def peer(name):
    """A module of a package that only benchmarks need, or None where it is not installed."""
    try:
        with redirect_stdout(io.StringIO()):
            return importlib.import_module(name)
    except (ImportError, AttributeError) as error:  # not there, or too new for this PyTorch
        if name not in _MISSING and multiprocessing.parent_process() is None:
            print(f'without {name}, which `make bench` installs: {error}', file=sys.stderr)
            _MISSING.add(name)
        return None


_MISSING = set()
