# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Check and measure what needs a GPU: each function is a part of gpu.py, from args to rows.

A row is a comparison (:func:`common.rows`) or the result of a check (:func:`check`). The same
functions run on a CPU, and on the fake CUDA tensors of :func:`pretend`: a mistake in them shows
before there is a GPU.
"""

import argparse
import copy
import gc
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from unittest import mock

import common
import cv2
import end_to_end
import fake_gpu
import input as views
import loss
import methods
import models
import numpy as np
import scale
import step
import torch
from mmengine.dataset import default_collate
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from mmdense.engine import LARS
from mmdense.models import MomentumEncoder, SelfSupDataPreprocessor

ROOT = common.CONFIGS.parent
# Norms of differences, relative to the norm that is expected, but at least to LEAST. Gradients of a
# network of random weights differ in float32 by up to 6e-3 between the CPU's two memory formats: a
# value near 0 before a ReLU decides about a path.
TOLERANCES = dict(losses=1e-4, gradients=2e-2, state=1e-3)
LEAST = dict(losses=1.0, gradients=1e-12, state=1.0)
LARS_TOLERANCE = 1e-5
AMP_TOLERANCE = 0.03  # bfloat16 has three digits
PIXELS = 0.5  # grey levels, the mean: the worker's hue is OpenCV's, which has 180 steps
TESTS = {
    'tests/test_models/test_step.py': 'waits_on_a_gpu',
    'tests/test_engine/test_lars.py': 'waits_for_a_gpu',
}

# ------------------------------------------------------------------------------------------- rows


def check(what, setting, found, allowed, ok):
    """Print the result of a check, and return it as a row.

    Args:
        what (str): Is checked.
        setting (str): Sizes and device, see :func:`common.setting`.
        found (str): Value, in words.
        allowed (str): Values that pass, in words.
        ok (bool): Whether it passes.
    """
    print(f'{what}: {found}, {allowed}: {"met" if ok else "missed"}', flush=True)
    return dict(what=what, setting=setting, found=found, allowed=allowed, ok=bool(ok))


def check_values(what, setting, found, expected, args, tolerance, least=1e-12):
    """Return the row of tensors, by name, that must be close to those of the CPU."""
    differences = {}
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise AssertionError(f'{what}: {name} is {found[name].shape}, must be {value.shape}')
        differences[name] = 0.0 if args.fake else relative(found[name], value, least)
    name = max(differences, key=differences.get)
    words = f'{differences[name]:.1e}' + (f' ({name})' if differences[name] else '')
    return check(what, setting, words, f'≤ {tolerance:.0e}', differences[name] <= tolerance)


def relative(ours, theirs, least):
    """Return the norm of a difference over the norm of what is expected; infinity for NaN."""
    ours, theirs = ours.detach().cpu(), theirs.detach()
    value = float((ours - theirs).norm() / theirs.norm().clamp(min=least))
    return value if value == value else float('inf')


def changed(args, **values):
    """Return options with other values."""
    return argparse.Namespace(**dict(vars(args), **values))


def sizes(args):
    """Return the setting of a row: the sizes and the device."""
    words = [f'R{args.depth}', f'batch {args.batch_size}', f'{args.size} px']
    return common.setting(args, *words, 'fake tensors' if args.fake else None)


# ------------------------------------------------------------------------------------ correctness


def check_algorithm(args):
    """Check a step on the device: its values against the CPU's, and what it waits for."""
    title, mine = models.title(args.algorithm), f'mmdense {args.algorithm}'
    host = changed(args, device='cpu')
    with real_tensors(args):
        reference, batch = models.algorithm(mine, host), models.random_batch(mine, host)
        weights = copy.deepcopy(reference.state_dict())
        with same_draws(reference, host):
            expected = step_results(reference, batch)
    model, batch = models.algorithm(mine, args), moved(batch, args)
    load(model, weights, args)
    rows = []
    with same_draws(model, args):
        found = step_results(model, batch)
    for kind, values in found.items():
        what = f'{title}, {kind} in float32 against the CPU'
        limits = TOLERANCES[kind], LEAST[kind]
        rows.append(check_values(what, sizes(args), values, expected[kind], args, *limits))
    for dtype in ('bfloat16', 'float16') if args.device == 'cuda' else ():
        load(model, weights, args)
        halved = changed(args, amp=dtype)
        rows.append(check_precision(title, model, batch, expected['losses'], halved))
    if not model.matching_on_host:  # how often that waits is not ours
        rows.append(check_waits(title, model, args))
    return rows


@contextmanager
def same_draws(model, args):
    """Let a step draw the same numbers on every device: on the host, from one seed, no dropout."""
    rand, chances = torch.rand, []
    for part in model.modules():
        name = {nn.Dropout: 'p', nn.MultiheadAttention: 'dropout'}.get(type(part))
        if name is not None:
            chances.append((part, name, getattr(part, name)))

    def draw(*size, device=None, **options):
        drawn = rand(*size, **options)
        return drawn if args.device == 'cpu' else moved(drawn, args)

    torch.manual_seed(1)
    np.random.seed(1)
    for part, name, _ in chances:
        setattr(part, name, 0.0)
    try:
        with mock.patch.object(torch, 'rand', draw):
            yield
    finally:
        for part, name, chance in chances:
            setattr(part, name, chance)


def step_results(model, batch):
    """Return the losses, the gradients and the state after a step, each by name."""
    model.zero_grad()
    losses = model(*batch, mode='loss')
    sum(losses.values()).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    state = {name: x for name, x in model.state_dict().items() if x.is_floating_point()}
    return dict(losses=losses, gradients=dict(all=torch.cat(gradients)), state=state)


def check_precision(title, model, batch, exact, args):
    """Check the losses in half precision, and that all gradients are float32 and finite."""
    model.zero_grad()
    with same_draws(model, args), common.autocast(args):
        losses = model(*batch, mode='loss')
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = args.fake or all(bool(g.isfinite().all()) for g in gradients)
    in_float32 = all(x.dtype == torch.float32 for x in [*losses.values(), *gradients])
    found = 0.0
    if not args.fake:
        pairs = [(float(losses[name].detach()), float(v.detach())) for name, v in exact.items()]
        found = max(abs(a - b) / max(1, abs(b)) for a, b in pairs)
    words = f'{found:.1e}, gradients {"finite" if finite else "not finite"}'
    words += ', float32' if in_float32 else ', not all in float32'
    what, allowed = f'{title}, losses in {args.amp}', f'≤ {AMP_TOLERANCE:.0e}, finite, float32'
    ok = found <= AMP_TOLERANCE and finite and in_float32
    return check(what, sizes(args), words, allowed, ok)


def check_waits(title, model, args):
    """Check that a step, from views on the host to new weights, waits for what is declared only."""
    mine, host = f'mmdense {args.algorithm}', changed(args, device='cpu')
    with real_tensors(args):
        inputs, samples = models.random_batch(mine, host)
        inputs = [pinned(view.mul(50).add(128).clamp(0, 255).byte(), args) for view in inputs]
        for sample in samples:  # as MultiView gives them
            sample.set_metainfo(dict(view_boxes=sample.view_boxes.numpy()))
    if args.fake:
        inputs, samples = fake_gpu.to_fake([inputs, samples], 'cpu')
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    amp = 'bfloat16' if args.device == 'cuda' else None
    halved = changed(args, amp=amp)

    def once():
        data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), True)
        with common.autocast(halved):
            losses = model(**data, mode='loss')
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    once()
    once()
    with no_waiting(args) as reads:
        once()
    declared = methods.reads(args.algorithm)
    what = f'{title}, a step waits for the device'
    return check(what, sizes(halved), f'{len(reads)} times', f'{declared}', len(reads) == declared)


def check_lars(args):
    """Check three steps of LARS against the CPU's, and that they do not wait."""
    with real_tensors(args):
        backbone = models.build(
            dict(type='ResNet', depth=args.depth),
            'mmpretrain',
            changed(args, device='cpu'),
        )
        here = list(backbone.parameters())
        for p in here:
            p.grad = torch.randn_like(p)
        copies = [(p.detach().clone(), p.grad.clone()) for p in here]
    there = []
    for value, grad in copies:
        there.append(torch.nn.Parameter(moved(value, args)))
        there[-1].grad = moved(grad, args)
    options = dict(lr=0.1, momentum=0.9, weight_decay=1e-5)
    reference, optimizer = LARS(here, **options), LARS(there, **options)
    optimizer.step()
    optimizer.step()
    with no_waiting(args) as reads:
        optimizer.step()
    with real_tensors(args):
        for _ in range(3):
            reference.step()
    setting = common.setting(args, f'R{args.depth}', 'fake tensors' if args.fake else None)
    names = [name for name, _ in backbone.named_parameters()]
    found, expected = (dict(zip(names, params)) for params in (there, here))
    what = 'LARS, three steps in float32 against the CPU'
    return [
        check_values(what, setting, found, expected, args, LARS_TOLERANCE),
        check('LARS, a step waits for the device', setting, f'{len(reads)} times', '0', not reads),
    ]


def check_augment(args):
    """Check the views that the device finishes against those that a worker finishes."""
    paths = views.images(args)
    return [check_views(name, paths, args) for name in views.PIPELINES]


def check_views(name, paths, args):
    """Check one pipeline: the same seed gives the same views, but for rounding."""
    config = views.our_config(name)
    batches = []
    with real_tensors(args):
        for pipeline in (config, views.deferred(config)):
            load_views = views.build(pipeline, 'mmdense')
            np.random.seed(1)
            batches.append(default_collate([load_views(path) for path in paths]))
        expected = SelfSupDataPreprocessor()(batches[0])['inputs']
    finish = use_device(SelfSupDataPreprocessor(), args)
    inputs = batches[1]['inputs']
    inputs = fake_gpu.to_fake(inputs, 'cpu') if args.fake else [pinned(v, args) for v in inputs]

    def run():  # the preprocessor takes the operations out of the samples
        samples = copy.deepcopy(batches[1]['data_samples'])
        return finish(dict(inputs=inputs, data_samples=samples), True)['inputs']

    run()
    with no_waiting(args) as reads:
        found = run()
    worst = 0.0
    for ours, theirs in zip(found, expected):
        if ours.shape != theirs.shape or ours.device.type != args.device:
            raise AssertionError(f'{name}: {ours.shape} on {ours.device}, must be {theirs.shape}')
        if not args.fake:
            worst = max(worst, float((ours.cpu() - theirs).abs().mean()))
    what = f"{views.PIPELINES[name][0]}, the device's colours and blur against a worker's"
    setting = common.setting(args, f'batch {len(paths)}', 'fake tensors' if args.fake else None)
    words = f'{worst:.2f} grey levels, waits {len(reads)} times'
    return check(what, setting, words, f'≤ {PIXELS}, 0', worst <= PIXELS and not reads)


def run_tests(args):
    """Run the tests that need a GPU."""
    if find_spec('pytest') is None:
        raise ModuleNotFoundError('pytest is not installed')
    names = ' or '.join(TESTS.values())
    command = [sys.executable, '-m', 'pytest', '-q', '--no-header', '-p', 'no:cacheprovider']
    done = subprocess.run(
        [*command, *TESTS, '-k', names], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    print(done.stdout)
    last = done.stdout.strip().splitlines()[-1].strip('= ')
    wanted = 'skipped' if args.device == 'cpu' else 'passed'
    ok = done.returncode == 0 and wanted in last
    return [check('Tests that need a GPU', common.setting(args), last, f'all {wanted}', ok)]


# ------------------------------------------------------------------------------------------- time


def measure_step(args):
    """Measure a training step over its floor and beside the peers', and its memory."""
    return step.compare_steps(args)


def measure_lars(args):
    """Measure LARS beside mmpretrain's and SGD."""
    return step.compare_lars(args)


def measure_loss(args):
    """Measure the losses beside the formulas written out."""
    if args.fake and hasattr(methods.load(args.algorithm), 'READS'):
        print('no rehearsal: the formula written out takes rows by values, as the algorithm does')
        return []
    return loss.compare_losses(args)


def measure_runs(args):
    """Measure whole runs beside mmpretrain's."""
    return end_to_end.compare_runs(args)


def measure_batches(args):
    """Measure images a second and memory by batch beside mmpretrain's."""
    return scale.compare_batches(args)


def measure_input(args):
    """Measure the views of one core, and the device's part of them."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    return views.compare_pipeline('mocov2', views.images(args), args)


def measure_loader(args):
    """Measure images a second of data loaders with all workers, which nobody waits for."""
    cv2.setNumThreads(0)  # as MMEngine's runner does: the workers are the threads
    paths, rates = views.images(args), {}
    for _ in range(args.rounds):
        for name in ('mmdense', end_to_end.AUGMENTED, 'mmpretrain'):
            rates.setdefault(name, []).append(loader_rate(name, paths, args))
    what = f'{models.title(args.algorithm)}, data loader'
    words = [f'batch {args.batch_size}', f'{args.size} px', f'{args.workers} workers']
    setting = common.setting(changed(args, device='cpu', amp=None), *words)
    return common.rows(what, setting, 'images/s', rates.pop('mmdense'), rates)


def loader_rate(name, paths, args):
    """Return images a second of one data loader, while all of its workers work."""
    ahead = 2 * args.workers  # batches that are on their way when the last one counts
    number = (args.warmup + args.iterations + ahead) * args.batch_size
    with tempfile.TemporaryDirectory() as folder:
        end_to_end.link_images(paths, number, folder)
        cfg = end_to_end.config(name, args, folder)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        batches = iter(loader)
        for _ in range(args.warmup):
            next(batches)
        start = time.perf_counter()
        for _ in range(args.iterations):
            next(batches)
        seconds = time.perf_counter() - start
        del batches, loader
        gc.collect()  # ends the workers
    return args.iterations * args.batch_size / seconds


def measure_compiled(args):
    """Measure a step with ``compile``, after it is compiled, beside one without."""
    mine = f'mmdense {args.algorithm}'
    options = dict(backend='aot_eager') if args.tiny else True
    compiled = changed(args, cfg_options={'model.compile': options})
    start = time.perf_counter()
    ours = models.step(mine, compiled)
    ours()
    ours()
    print(f'compiled in {time.perf_counter() - start:.0f} s')
    times = common.measure({'ours': ours, 'not compiled': models.step(mine, args)}, args)
    unit = common.unit_of(times['ours'])
    what, ours = f'{models.title(args.algorithm)}, compiled', times.pop('ours')
    return common.rows(what, sizes(args), unit, ours, times)


# ----------------------------------------------------------------------------- a device, or a fake


def moved(value, args):
    """Return tensors, in a list or alone, on the device; data samples stay on the host."""
    if args.fake:
        return fake_gpu.to_fake(value)
    if isinstance(value, torch.Tensor):
        return value.to(args.device)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(part, args) for part in value)
    return value


def pinned(tensor, args):
    """Return a tensor in memory that a GPU copies from without the host waiting."""
    return tensor.pin_memory() if args.device == 'cuda' and not args.fake else tensor


def load(model, weights, args):
    """Load weights, where there are values."""
    if not args.fake:
        model.load_state_dict(weights)


def real_tensors(args):
    """Return a context in which tensors are real ones."""
    return _disable_current_modes() if args.fake else nullcontext()


@contextmanager
def no_waiting(args):
    """Raise where the host waits for the device, but for ``tolist``; yield the list of those."""
    reads, read = [], torch.Tensor.tolist
    if args.fake:
        before = args.reads.seen.copy()
        yield reads
        reads.extend((args.reads.seen - before).elements())
        return
    mode = torch.cuda.set_sync_debug_mode if args.device == 'cuda' else lambda mode: None

    def tolist(tensor):
        reads.append('tolist')
        mode('default')
        values = read(tensor)
        mode('error')
        return values

    with mock.patch.object(torch.Tensor, 'tolist', tolist):
        mode('error')
        try:
            yield reads
        finally:
            mode('default')


def use_device(module, args):
    """Move a module to the device; on a fake one, where no value can be moved, in place."""
    if not args.fake:
        return module.to(args.device)
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            own.update({k: fake_gpu.to_fake(x) for k, x in own.items() if x is not None})
        if isinstance(part, BaseDataPreprocessor):
            part._device = torch.device('cuda')
    return module


@contextmanager
def pretend(args):
    """Run on fake CUDA tensors what is written for a GPU; times and memory mean nothing."""
    move, backward, real_backward = models.on_device, fake_gpu.backward, torch.autograd.backward

    def move_fake(make, args):
        if args.device == 'cpu':
            return move(make, args)
        with real_tensors(args):  # constructors read values
            model = make()
            for part in model.modules():
                if isinstance(part, MomentumEncoder):
                    part.num_updates()  # reads the number once
        return use_device(model, args)

    def backward_of(outputs, gradients=None, *others, **options):
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        if not isinstance(outputs[0], FakeTensor):
            return real_backward(outputs, gradients, *others, **options)
        gradients = gradients or [torch.ones_like(x) for x in outputs]
        return backward(sum((x * gradient).sum() for x, gradient in zip(outputs, gradients)))

    replaced = {
        (models, 'on_device'): move_fake,
        (torch.autograd, 'backward'): backward_of,
        (torch.autograd, 'grad'): lambda out, leaves, grads: backward_of(out, [grads]),
        (torch.cuda, 'synchronize'): lambda: None,
        (torch.cuda, 'memory_allocated'): lambda: 0,
        (torch.cuda, 'max_memory_allocated'): lambda: 2**20,
        (torch.cuda, 'reset_peak_memory_stats'): lambda: None,
    }
    with ExitStack() as stack:
        for (owner, name), function in replaced.items():
            stack.enter_context(mock.patch.object(owner, name, function))
        # data samples copy what they are given, and a copied fake tensor would be of a copied mode
        same = mock.patch.object(FakeTensor, '__deepcopy__', lambda tensor, memo: tensor)
        stack.enter_context(same)
        stack.enter_context(fake_gpu.fake_cuda())
        matching = models.ALGORITHMS[args.algorithm].matching_on_host
        args.reads = stack.enter_context(fake_gpu.Reads(matching))
        yield


def use_gpu():
    """Raise where this process cannot use the GPU."""
    torch.zeros(1, device='cuda').add_(1).item()


def run_part(name, function, args):
    """Return the rows of a part, in a process of its own, or one row with the reason of a failure.

    Args:
        name (str): Name of the part.
        function (str): Function of this module.
        args (Namespace): Options of all scripts.
    """
    try:
        common.prepare(args)
        with pretend(args) if args.fake else nullcontext():
            return globals()[function](args)
    except Exception as error:
        traceback.print_exc()
        reason = str(error).strip().splitlines()
        return [failure(name, f'{type(error).__name__}: {reason[0] if reason else ""}')]


def failure(name, reason):
    """Return the row of a part that has no figures."""
    print(f'{name}: failed: {reason}', flush=True)
    return dict(what=name, setting='', failed=reason)
