# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Measure how a step scales with the batch, and over processes.

    python benchmarks/scale.py batches --depth 18 --size 64 --batch-sizes 4 8 16 32     # a CPU
    python benchmarks/scale.py batches --device cuda --amp float16 --batch-sizes 32 64 128 256
    python benchmarks/scale.py processes --depth 18 --size 64 --batch-size 8

batches    images per second, and the peak memory of a step with its model, by batch
processes  seconds a step in 1, 2 and 4 gloo processes, a batch and a thread each, on this machine's
           cores: a process more is a batch more. What they send is counted in docs/scaling.md.

Ours beside mmpretrain's of the same name.
"""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import common
import methods
import models
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmdense.utils.memory import keep_freed_memory


def compare_batches(args):
    ours, theirs = models.both(args.algorithm)
    keep_freed_memory()
    rows = []
    for batch_size in args.batch_sizes:
        args.batch_size = batch_size
        words = [f'R{args.depth}', f'{args.size} px', f'K = {args.queue_len}']
        setting = common.setting(args, f'batch {batch_size}', *words)
        times = common.measure({name: models.step(name, args) for name in (ours, theirs)}, args)
        rates = {name: [batch_size / t for t in seconds] for name, seconds in times.items()}
        what = f'{models.title(args.algorithm)}, batch {batch_size}'
        rows += common.rows(what, setting, 'images/s', rates[ours], {theirs: rates[theirs]})
        peak = {
            name: [common.peak_memory(models.step, name, args, dict(batch_size=2), whole=True)]
            for name in (ours, theirs)
        }
        rows += common.rows(f'{what}, memory', setting, 'MiB', peak[ours], {theirs: peak[theirs]})
    return rows


class Loss(torch.nn.Module):
    """An algorithm's loss as its forward, for DistributedDataParallel."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return sum(self.model(*batch, mode='loss').values())


def run_process(rank, number, names, args, port):
    """Seconds of each algorithm's step in each round, in one of several processes."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    timeout = timedelta(minutes=2)  # where another process has failed
    dist.init_process_group('gloo', timeout=timeout, rank=rank, world_size=number)
    common.prepare(args)
    keep_freed_memory()
    steps = {}
    for name in names:
        loss = Loss(models.algorithm(name, args))
        model = DistributedDataParallel(loss, broadcast_buffers=False)
        steps[name] = together(model, models.random_batch(name, args))
    times = common.measure(steps, args)
    dist.destroy_process_group()
    return times


def together(model, batch):
    """A step that starts in all processes at once and ends where the last one ends."""

    def run():
        dist.barrier()
        model.zero_grad()
        model(batch).backward()
        dist.barrier()

    return run


def compare_processes(args):
    names = models.both(args.algorithm)
    rows, alone = [], None
    for number in args.processes:
        ours, theirs = run_processes(number, names, args).values()
        words = [f'R{args.depth}', f'batch {args.batch_size} each', f'{args.size} px']
        setting = common.setting(args, *words, f'K = {args.queue_len}', '1 thread each')
        alone = alone or ours
        what = f'{models.title(args.algorithm)}, {number} process{"es" * (number > 1)}'
        unit = common.unit_of(ours)
        others = {names[1]: theirs, **({'one process': alone} if number > 1 else {})}
        rows += common.rows(what, setting, unit, ours, others)
    return rows


def run_processes(number, names, args):
    """The first process's seconds."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with ThreadPoolExecutor(number) as pool:
        results = [
            pool.submit(common.in_own_process, run_process, rank, number, names, args, port)
            for rank in range(number)
        ]
        return results[0].result()


def main():
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument('what', choices=['batches', 'processes'])
    common.add_model_options(parser)
    parser.add_argument('--algorithm', choices=methods.shipped(), default=methods.example())
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[8, 16, 32, 64])
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2, 4])
    args = parser.parse_args()
    common.prepare(args)
    compare = dict(batches=compare_batches, processes=compare_processes)[args.what]
    common.finish(args, compare(args))


if __name__ == '__main__':
    main()
