# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What the benchmarks have in common: timing, memory, printing, and the parts of a step."""

import argparse
import copy
import ctypes
import multiprocessing
import os
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

from mmdense.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def parser(doc, rounds=7):
    """Of the options that all benchmarks take."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', type=int, default=rounds)
    parser.add_argument(
        '--clock',
        default='wall',
        choices=['wall', 'cpu'],
        help='cpu: seconds of all cores, which others on the machine disturb less (on the CPU, '
        'with OMP_WAIT_POLICY=PASSIVE)',
    )
    parser.add_argument('--depth', type=int, default=50, help='of the ResNet')
    return parser


def add_step_options(parser):
    """Of the benchmarks of an algorithm: its loss, and its whole step."""
    parser.add_argument('what', nargs='*', choices=['loss', 'step', []], default=[])
    parser.add_argument('--amp', action='store_true', help='fp16 autocast')
    parser.add_argument('--batch-size', type=int, default=16, help='of the step')
    parser.add_argument('--batch-size-loss', type=int, default=32)
    parser.add_argument('--size', type=int, default=224, help='of the views, in pixels')


def run(args, loss, step):
    """What the command line asks for."""
    torch.manual_seed(0)
    if args.device == 'cuda':
        torch.backends.cudnn.benchmark = True
    if 'loss' in args.what or not args.what:
        loss(args)
    if 'step' in args.what or not args.what:
        keep_freed_memory()
        step(args)


def keep_freed_memory():
    """Has glibc keep what is freed for the next call.

    Else it goes back to the kernel, and a whole step, which holds two views, pays for a million
    page faults that its parts, timed one by one in less memory, do not: a fifth of its time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no tensor has a mapping of its own


def autocast(args):
    return torch.autocast(args.device, dtype=torch.float16) if args.amp else nullcontext()


def setting(args):
    """In words, for a heading."""
    return (
        f'{args.device}{", fp16 autocast" if args.amp else ""}, {torch.get_num_threads()} threads'
    )


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


def measure(functions, args):
    """Seconds of each function in each round, after one round to warm up."""
    times = {name: [] for name in functions}
    for i in range(args.rounds + 1):
        for name, function in functions.items():
            seconds = timed(function, args)[1]
            if i:
                times[name].append(seconds)
    return times


def total(times, names):
    """Round by round, the sum of several functions' seconds."""
    return [sum(t) for t in zip(*(times[name] for name in names))]


def report(name, seconds, base=None):
    scale, unit = (1, 's') if median(seconds) >= 0.1 else (1e3, 'ms')
    middle, low, high = (scale * f(seconds) for f in (median, min, max))
    line = f'{name:34} {middle:9.4f} {unit:2}  [{low:.4f} – {high:.4f}]'
    if base is not None:
        line += f'   × {median(a / b for a, b in zip(seconds, base)):.3f}'
    print(line, flush=True)


# ----------------------------------------------------------------------------------------- losses


def gradient_step(loss, leaves, args):
    """Computes a loss and the gradients of its inputs; returns its value."""

    def run():
        for leaf in leaves:
            leaf.grad = None
        with autocast(args):
            value = loss()
        value.backward()
        return value.item()

    return run


def peak_memory(make, names, args, **small):
    """Peak memory of one call of each function beyond what its inputs take, in
    bytes. Each is measured in a process of its own.

    Args:
        make (Callable): From args to a dict of functions; a module's own.
        names (Sequence[str]): Keys of that dict.
        args (Namespace): Of the command line.
        small: Other values of args, for the call that has libraries loaded.
    """
    # glibc hands every freed tensor back at once, so that none is counted twice
    os.environ.setdefault('MALLOC_MMAP_THRESHOLD_', str(2**17))
    # a server that has imported all, and forks: imports take seconds
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmdense.models'])
    memory = {}
    for name in names:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_peak_memory, args=(make, name, args, small, sender))
        process.start()
        sender.close()
        memory[name] = receiver.recv()  # EOFError when the process failed
        process.join()
    return memory


def _peak_memory(make, name, args, small, sender):
    torch.manual_seed(0)
    little = copy.copy(args)
    vars(little).update(small)
    make(little)[name]()
    function = make(args)[name]
    if args.device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        sender.send(torch.cuda.max_memory_allocated() - before)
        return
    with open('/proc/self/clear_refs', 'w') as f:
        f.write('5')  # Linux: the peak starts again from here
    before = resident('VmRSS')
    function()
    sender.send(resident('VmHWM') - before)


def resident(field):
    """Bytes of this process that are, or at most were, in memory (Linux)."""
    with open('/proc/self/status') as f:
        (line,) = (line for line in f if line.startswith(field))
    return int(line.split()[1]) * 1024


def compare_losses(title, make, args, **small):
    """Prints time, extra memory and value of a loss in several versions.

    The first is what the others are compared with. Arguments as in
    :func:`peak_memory`.

    Returns:
        dict: Their values.
    """
    print(title)
    functions = make(args)
    first = next(iter(functions))
    memory = peak_memory(make, functions, args, **small)
    times = measure(functions, args)
    for name in functions:
        report(name, times[name], None if name == first else times[first])
    for name in functions:
        ratio = '' if name == first else f'   × {memory[name] / max(memory[first], 1):.3f}'
        print(f'extra memory: {name:20} {memory[name] / 2**20:9.1f} MiB{ratio}')
    values = {name: function() for name, function in functions.items()}
    print('loss: ' + ', '.join(f'{name} {value:.6f}' for name, value in values.items()) + '\n')
    return values


def check_equal(values):
    """Of a loss in several versions, float32: 1e-5."""
    first, *others = values.values()
    if any(abs(value - first) > 1e-5 * max(1, abs(first)) for value in others):
        raise AssertionError(f'the losses differ: {values}')


# ---------------------------------------------------------------- steps of two views with boxes


def model_config(name, depth):
    """Of configs/_base_/models, for one process and a ResNet of any depth."""
    model = Config.fromfile(str(CONFIGS / '_base_' / 'models' / f'{name}.py')).model
    model.backbone.depth = depth
    model.neck.in_channels = 2048 if depth >= 50 else 512
    return model


def build(config, args):
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(config)
    return revert_sync_batchnorm(model).to(args.device).train()


def random_boxes(n, device):
    """Two crops of each of n images, mirrored at random: N×4 and N×4."""
    boxes = []
    for _ in range(2):
        start = torch.rand(n, 2) * 0.4
        box = torch.cat([start, start + 0.3 + torch.rand(n, 2) * 0.3], dim=1)
        boxes.append(torch.where(torch.rand(n, 1) < 0.5, box[:, [2, 1, 0, 3]], box).to(device))
    return boxes


def random_batch(args):
    """Two views and their data samples."""
    views = [
        torch.randn(args.batch_size, 3, args.size, args.size, device=args.device) for _ in range(2)
    ]
    boxes = torch.stack(random_boxes(args.batch_size, 'cpu'), dim=1)
    return views, [DataSample(metainfo=dict(view_boxes=box)) for box in boxes]


def training_step(model, batch, args):
    """The losses of a batch and their gradients."""

    def run():
        model.zero_grad()
        with autocast(args):
            loss = sum(model.loss(*batch).values())
        loss.backward()

    return run


def forward_backward(module, inputs, args):
    """A module's forward and backward on each of several inputs (tensors that
    need a gradient, or not)."""
    gradients = {}

    def run():
        module.zero_grad()
        for i, x in enumerate(inputs):
            x.grad = None
            with autocast(args):
                out = module(x)
            out = out[-1] if isinstance(out, tuple) else out
            if i not in gradients:
                # Random: BatchNorm's gradient of a constant is noise around 0, and denormal numbers
                # are slow.
                gradients[i] = torch.randn_like(out)
            out.backward(gradients[i])

    return run


def forward(module, inputs, args):
    """A module's forward on each of several inputs, without gradients."""

    @torch.no_grad()
    def run():
        for x in inputs:
            with autocast(args):
                module(x)

    return run


def product(a, b, needs_grad=(True, True)):
    """A matrix product, and those of its gradients that are needed.

    Args:
        a, b (tuple): Shapes, M×K and K×N, or both with a batch in front.
    """
    return a, b, needs_grad


def matrix_products(shapes, args):
    """Computes a list of :func:`product`."""
    pairs = []
    for a, b, needs_grad in shapes:
        pair = [torch.randn(s, device=args.device) for s in (a, b)]
        pairs.append([x.requires_grad_(needed) for x, needed in zip(pair, needs_grad)])

    def run():
        for a, b in pairs:
            with autocast(args):
                out = a @ b
            if out.requires_grad:
                leaves = [x for x in (a, b) if x.requires_grad]
                torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def encoder_parts(model, views, args):
    """The part of the floor that PixPro and SlotCon have in common: backbone and
    projector of both views, with gradients, and in the twin, without."""
    twin = model.encoder_k.module
    with torch.no_grad(), autocast(args):
        maps = [model.backbone(view)[-1].detach() for view in views]
    leaves = [m.clone().requires_grad_() for m in maps]
    return {
        'backbone': forward_backward(model.backbone, views, args),
        'twin_backbone': forward(twin['backbone'], views, args),
        'projector': forward_backward(model.neck, leaves, args),
        'twin_projector': forward(twin['neck'], maps, args),
    }


def compare_step(name, step, parts, args):
    """Prints a step beside its floor, the sum of its parts, and beside the bare
    backbone; the parts are named as in :func:`encoder_parts`."""
    times = measure({**parts, name: step}, args)
    bare, floor = total(times, ['backbone', 'twin_backbone']), total(times, parts)
    for part in parts:
        report(f'  {part}', times[part])
    report('bare backbone', bare)
    report('floor, over the bare backbone', floor, bare)
    report(f'{name}, over the bare backbone', times[name], bare)
    report(f'{name}, over the floor', times[name], floor)
