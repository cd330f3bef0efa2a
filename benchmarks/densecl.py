# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""DenseCL's loss and whole step beside mmpretrain's, and beside the floor.

    python benchmarks/densecl.py [loss] [step] [--device cuda --amp] [--rounds 7]

loss   InfoNCE of N·49 queries against K keys, forward and backward: time and extra memory.
step   One training step: the losses of a batch and their gradients. The floor is the work that no
       implementation can leave out, each part timed alone in the same round: the backbone's forward
       and backward of view 1 and forward of view 2, both necks, and the loss's two matrix products
       and one softmax.

Everything is measured in turn, round after round, so that a drift of the machine meets all alike.
Printed are the median and the range over rounds, and the median of each round's ratios.
"""

import argparse
import multiprocessing
import time
from contextlib import nullcontext
from statistics import median

import torch
from mmengine.registry import DefaultScope
from torch.nn.functional import normalize


def build(package, algorithm, head, neck, args):
    with DefaultScope.overwrite_default_scope(package):
        if package == 'mmdense':
            from mmdense.registry import MODELS
        else:
            from mmpretrain.registry import MODELS
        model = MODELS.build(
            dict(
                type=algorithm,
                queue_len=args.queue_len,
                feat_dim=128,
                backbone=dict(type='mmpretrain.ResNet', depth=args.depth, zero_init_residual=False),
                neck=dict(neck, in_channels=2048 if args.depth >= 50 else 512, hid_channels=2048),
                head=head,
            )
        )
    return model.to(args.device).train()


def their_head():
    return dict(
        type='mmpretrain.ContrastiveHead',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        temperature=0.2,
    )


def timed(function, device):
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(functions, args):
    """Seconds of each function in each round, after one round to warm up."""
    times = {name: [] for name in functions}
    for i in range(args.rounds + 1):
        for name, function in functions.items():
            seconds = timed(function, args.device)
            if i:
                times[name].append(seconds)
    return times


def report(name, seconds, base=None):
    line = f'{name:34} {median(seconds):9.4f} s   [{min(seconds):.4f} – {max(seconds):.4f}]'
    if base is not None:
        line += f'   × {median(a / b for a, b in zip(seconds, base)):.3f}'
    print(line, flush=True)


def autocast(args):
    return torch.autocast(args.device, dtype=torch.float16) if args.amp else nullcontext()


# ------------------------------------------------------------------------------------------- loss


def loss_functions(args, names=('mmpretrain', 'mmdense')):
    from mmpretrain.registry import MODELS

    from mmdense.models.losses import info_nce

    rows = args.batch_size_loss * 49
    query = normalize(torch.randn(rows, 128, device=args.device), dim=1).requires_grad_()
    key = normalize(torch.randn(rows, 128, device=args.device), dim=1)
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    head = MODELS.build(their_head())

    def theirs():
        # as in mmpretrain's DenseCL.loss
        positive = (query * key).sum(1).unsqueeze(-1)
        negative = torch.einsum('nc,ck->nk', [query, queue.clone().detach()])
        return head.loss(positive, negative)

    def ours():
        return info_nce(query, key, queue, 0.2)

    def step(loss):
        def run():
            query.grad = None
            with autocast(args):
                value = loss()
            value.backward()
            return value.item()

        return run

    return {n: step(f) for n, f in dict(mmpretrain=theirs, mmdense=ours).items() if n in names}


def extra_memory(name, args, queue):
    """Peak memory of one call beyond what its inputs take, in bytes."""
    torch.manual_seed(0)
    if args.device == 'cuda':
        (function,) = loss_functions(args, [name]).values()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        queue.put(torch.cuda.max_memory_allocated() - before)
        return
    full, args.queue_len = args.queue_len, 64
    (warm_up,) = loss_functions(args, [name]).values()  # so that libraries are loaded
    warm_up()
    args.queue_len = full
    (function,) = loss_functions(args, [name]).values()
    with open('/proc/self/clear_refs', 'w') as f:
        f.write('5')  # Linux: the peak starts again from here
    before = resident('VmRSS')
    function()
    queue.put(resident('VmHWM') - before)


def resident(field):
    """Bytes of this process that are, or at most were, in memory (Linux)."""
    with open('/proc/self/status') as f:
        (line,) = (line for line in f if line.startswith(field))
    return int(line.split()[1]) * 1024


def benchmark_loss(args):
    print(f'InfoNCE: {args.batch_size_loss} images × 49 queries, K = {args.queue_len}, C = 128')
    context = multiprocessing.get_context('spawn')
    memory = {}
    for name in ('mmpretrain', 'mmdense'):
        queue = context.Queue()
        process = context.Process(target=extra_memory, args=(name, args, queue))
        process.start()
        memory[name] = queue.get()
        process.join()
    functions = loss_functions(args)
    times = measure(functions, args)
    report('mmpretrain', times['mmpretrain'])
    report('mmdense', times['mmdense'], times['mmpretrain'])
    print(
        f'extra memory: mmpretrain {memory["mmpretrain"] / 2**20:.0f} MiB, mmdense '
        f'{memory["mmdense"] / 2**20:.0f} MiB   × {memory["mmdense"] / memory["mmpretrain"]:.3f}'
    )
    values = {name: function() for name, function in functions.items()}
    print(f'loss: mmpretrain {values["mmpretrain"]:.6f}, mmdense {values["mmdense"]:.6f}\n')


# ------------------------------------------------------------------------------------------- step


def floor_functions(model, args):
    """The parts of the floor; model is ours, its twin is the other view's."""
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    with torch.no_grad(), autocast(args):
        feature = model.backbone(images)[-1]
    cells = feature.size(2) * feature.size(3)
    rows = args.batch_size * (cells + 1)
    query = normalize(torch.randn(rows, 128, device=args.device), dim=1)
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    matrix = torch.empty(rows, args.queue_len, device=args.device)

    def backbone():
        with autocast(args):
            out = model.backbone(images)[-1]
        out.backward(torch.ones_like(out))

    def twin_backbone():
        with torch.no_grad(), autocast(args):
            model.encoder_k.module[0](images)

    def necks():
        leaf = feature.detach().requires_grad_()
        with autocast(args):
            out = model.neck((leaf,))
        torch.autograd.backward(out, [torch.ones_like(o) for o in out])
        with torch.no_grad(), autocast(args):
            model.encoder_k.module[1]((feature,))

    def products():
        torch.mm(query, queue, out=matrix)

    def softmax():
        torch.softmax(matrix, dim=1, out=matrix)

    def gradient():
        torch.mm(matrix, queue.t())

    return {f.__name__: f for f in (backbone, twin_backbone, necks, products, softmax, gradient)}


def benchmark_step(args):
    print(
        f'Step: R{args.depth}, batch {args.batch_size}, {args.size} px, K = {args.queue_len}, '
        f'{args.device}{", fp16 autocast" if args.amp else ""}, {torch.get_num_threads()} threads'
    )
    neck = dict(type='mmdense.DenseCLNeck', out_channels=128)
    ours = build('mmdense', 'DenseCL', dict(type='InfoNCEHead', temperature=0.2), neck, args)
    neck = dict(type='mmpretrain.DenseCLNeck', out_channels=128)
    theirs = build('mmpretrain', 'DenseCL', their_head(), neck, args)
    neck = dict(type='mmpretrain.MoCoV2Neck', out_channels=128)
    moco = build('mmpretrain', 'MoCo', their_head(), neck, args)
    views = [
        torch.randn(args.batch_size, 3, args.size, args.size, device=args.device) for _ in range(2)
    ]

    def step(model):
        def run():
            model.zero_grad()
            with autocast(args):
                loss = sum(model.loss(views, None).values())
            loss.backward()

        return run

    parts = floor_functions(ours, args)
    models = {
        'mmdense DenseCL': step(ours),
        'mmpretrain DenseCL': step(theirs),
        'mmpretrain MoCo v2': step(moco),
    }
    times = measure({**parts, **models}, args)
    floor = [sum(t) for t in zip(*(times[name] for name in parts))]
    bare = [sum(t) for t in zip(times['backbone'], times['twin_backbone'])]
    for name in parts:
        report(f'  {name}', times[name])
    report('bare backbone', bare)
    report('floor', floor, bare)
    print('… over the bare backbone:')
    for name in models:
        report(name, times[name], bare)
    print('… over the floor:')
    for name in models:
        report(name, times[name], floor)
    report('mmdense DenseCL over MoCo v2', times['mmdense DenseCL'], times['mmpretrain MoCo v2'])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', nargs='*', choices=['loss', 'step', []], default=[])
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--amp', action='store_true', help='fp16 autocast')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--depth', type=int, default=50)
    parser.add_argument('--batch-size', type=int, default=16, help='of the step')
    parser.add_argument('--batch-size-loss', type=int, default=32)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--queue-len', type=int, default=65536)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.device == 'cuda':
        torch.backends.cudnn.benchmark = True
    if 'loss' in args.what or not args.what:
        benchmark_loss(args)
    if 'step' in args.what or not args.what:
        benchmark_step(args)


if __name__ == '__main__':
    main()
