# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Count what a process exchanges with the others in a step, on 8, 64 and 512 GPUs.

    python benchmarks/exchange.py             # every algorithm's recipe; prints the table
    python benchmarks/exchange.py --write     # puts it into docs/scaling.md

A process group of PyTorch's for tests stands in for the others: it answers at once, whatever their
number. The step itself is real, of a few random images. SyncBN, which needs a GPU, is counted by
the calls of its layers.
"""

import argparse
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import distributed
from torch.nn import SyncBatchNorm
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmdense.registry import MODELS

DOCUMENT = Path(__file__).resolve().parents[1] / 'docs' / 'scaling.md'
WORLDS = (8, 64, 512)
CALLS = (
    *('all_gather', 'all_gather_into_tensor', 'all_gather_object', 'all_reduce', 'all_to_all'),
    *('all_to_all_single', 'barrier', 'broadcast', 'broadcast_object_list', 'gather', 'reduce'),
    *('reduce_scatter', 'reduce_scatter_tensor', 'scatter', 'send', 'recv', 'isend', 'irecv'),
)
# where a call takes what a process has to give
GIVEN = dict(all_gather=1, all_gather_into_tensor=1, all_to_all_single=1)

Counted = namedtuple('Counted', 'calls sync_bn gradients')  # each [(name, bytes)]


class Record(list):
    """(call, bytes that a process gives) of everything within."""

    def __enter__(self):
        self.originals = {name: getattr(distributed, name) for name in CALLS}
        for name in CALLS:
            setattr(distributed, name, self.wrap(name))
        return self

    def __exit__(self, *_):
        for name, original in self.originals.items():
            setattr(distributed, name, original)

    def wrap(self, name):
        def call(*args, **kwargs):
            given = args[GIVEN.get(name, 0)] if args else None
            number = given.numel() * given.element_size() if torch.is_tensor(given) else None
            self.append((name, number))
            result = self.originals[name](*args, **kwargs)
            if name == 'all_to_all_single':  # the others, which the group leaves out, give the same
                args[0].copy_(args[1])
            return result

        return call


@contextmanager
def processes(number):
    """Make this process the first of several, the others of which are not there."""
    distributed.init_process_group('fake', store=FakeStore(), rank=0, world_size=number)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def untrained(teacher):
    """Return the config of a teacher, or of several, without files: no weights are exchanged."""
    if isinstance(teacher, (list, tuple)):
        return [untrained(one) for one in teacher]
    return dict(teacher, checkpoint=None)


def count_step(config, batch):
    """Return what a process exchanges in a training step, within :func:`processes`.

    Args:
        config (dict): Of the algorithm.
        batch (tuple): Views and data samples of this process's images.

    Returns:
        Counted: The algorithm's own calls, SyncBN's, and those of the gradients.
    """
    torch.manual_seed(0)
    MessageHub.get_current_instance().update_info('max_iters', 1000)  # momentum schedules
    with DefaultScope.overwrite_default_scope('mmdense'):
        if 'teacher' in config:
            config['teacher'] = untrained(config['teacher'])
        model = MODELS.build(config)
    names = [name for name, part in model.named_modules() if isinstance(part, SyncBatchNorm)]
    model = revert_sync_batchnorm(model).train()
    sync_bn, gradients = [], []

    def note_norm(part, *_):
        channels = part.num_features
        sync_bn.append(('all_gather', 4 * (2 * channels + 1)))  # mean, deviation, number
        if torch.is_grad_enabled():
            sync_bn.append(('all_reduce', 4 * 2 * channels))

    def note_gradients(_, bucket):
        gradients.append(('all_reduce', bucket.buffer().numel() * bucket.buffer().element_size()))
        result = torch.futures.Future()
        result.set_result(bucket.buffer())
        return result

    for name in names:
        model.get_submodule(name).register_forward_hook(note_norm)
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    wrapped.register_comm_hook(None, note_gradients)
    for _ in range(2):  # in the first, DistributedDataParallel arranges its buckets
        del sync_bn[:], gradients[:]
        with Record() as record:
            sum(wrapped(*batch, mode='loss').values()).backward()
    return Counted(list(record), sync_bn, gradients)


def received(calls, world):
    """Return the bytes that a process receives: of each other as much as it gives, where all
    gather; else as much as it gives."""
    return sum(size * (world - 1 if name.startswith('all_gather') else 1) for name, size in calls)


def count_recipe(algorithm, args):
    """Return :class:`Counted` of an algorithm's recipe, by the number of processes."""
    import models  # needs mmpretrain's parts, which counting a given config does not

    path = models.config_path(algorithm)
    found = {}
    for world in WORLDS:
        torch.manual_seed(0)
        batch = models.random_batch(f'mmdense {algorithm}', args)
        with processes(world):
            found[world] = count_step(Config.fromfile(str(path)).model, batch)
    return found


def table(counted, images):
    """Return the lines of the table.

    Args:
        counted (dict[str, dict[int, Counted]]): By algorithm and number of processes.
        images (int): Of a process.
    """
    lines = [
        '| | calls | gives an image | receives an image: 8, 64, 512 GPUs | SyncBN: calls, gives '
        '| gradients: calls, gives |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for name, found in counted.items():
        first = found[WORLDS[0]]
        incoming = [show(received(found[world].calls, world) / images) for world in WORLDS]
        lines.append(
            f'| {name} | {per_world(found, lambda c: len(c.calls))} '
            f'| {per_world(found, lambda c: show(sum_bytes(c.calls) / images))} '
            f'| {", ".join(incoming)} '
            f'| {len(first.sync_bn)}, {show(sum_bytes(first.sync_bn))} '
            f'| {len(first.gradients)}, {show(sum_bytes(first.gradients))} |'
        )
    return lines


def per_world(found, value):
    """Return a value, or one for each number of processes where they differ."""
    values = [str(value(found[world])) for world in WORLDS]
    return values[0] if len(set(values)) == 1 else ', '.join(values)


def sum_bytes(calls):
    return sum(size for _, size in calls)


def show(size):
    """Return bytes in words."""
    for unit, scale in (('GB', 1e9), ('MB', 1e6), ('KB', 1e3)):
        if size >= scale:
            return f'{size / scale:.3g} {unit}'
    return f'{size:.0f} B'


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--write', action='store_true', help='put the table into docs/scaling.md')
    parser.add_argument('--batch-size', type=int, default=2, help='images of a process')
    args = parser.parse_args()
    vars(args).update(size=224, patch_size=64, device='cpu')
    import models
    from common import write_table

    counted = {models.title(name): count_recipe(name, args) for name in models.ALGORITHMS}
    lines = table(counted, args.batch_size)
    print('\n'.join(lines))
    if args.write:
        write_table(DOCUMENT, __file__, lines)


if __name__ == '__main__':
    main()
