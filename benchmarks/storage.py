# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Random reads from a folder, a zip and an LMDB, by UnlabeledDataset.read().

    python benchmarks/storage.py [--entries 1000 10000 100000 1000000] [--images 3000]

First of a thousand to a million entries of 200 to 1,200 bytes (of a folder at most --most-files),
so that the way to an entry is measured and not its bytes. They were just written, and are in the
operating system's cache. The list is made in a process of its own: seconds, what it takes in memory
once it is there, and by how much the process grew at most.

Then of --images entries of 60,000 to 260,000 bytes, as large as COCO's, each round before and after
the operating system has them in its cache (Linux).

All take turns, round after round; printed are the median and the range over rounds. It needs 2.5 GB
on the disk, and gives them back.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from statistics import median

import lmdb

from mmdense.datasets import UnlabeledDataset
from mmdense.datasets.storage import write_zip

SUFFIXES = {'folder': '', 'zip': '.zip', 'LMDB': '.lmdb'}


def name(i):
    return f'{i // 1000:04}/{i:08}.jpg'


def contents(number, low, high):
    rng = random.Random(number)
    noise = os.urandom(1 << 22)
    for i in range(number):
        size = rng.randint(low, high)
        start = rng.randrange(len(noise) - size)
        yield name(i), noise[start : start + size]


def write_lmdb(path, *args):
    number, _, high = args
    # a value has pages of its own, of 4096 bytes
    size = number * (high + 8192) + (1 << 24)
    environment = lmdb.open(path, subdir=False, map_size=size, lock=False, sync=False)
    with environment.begin(write=True) as transaction:
        for file, content in contents(*args):
            transaction.put(file.encode(), content)
    environment.sync(True)
    environment.close()


def write(path, *args):
    suffix = os.path.splitext(path)[1]
    if suffix == '.zip':
        with write_zip(path) as add:
            for item in contents(*args):
                add(*item)
        return
    if suffix == '.lmdb':
        write_lmdb(path, *args)
        return
    for file, content in contents(*args):
        file = os.path.join(path, file)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, 'wb') as f:
            f.write(content)


def resident(field):
    """Bytes of this process that are, or at most were, in memory (Linux)."""
    with open('/proc/self/status') as f:
        (line,) = (line for line in f if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure_list(path, clock, sender):
    before, start = resident('VmRSS'), clock()
    dataset = UnlabeledDataset(data_root=path)
    seconds = clock() - start
    held = dataset.data_bytes.nbytes + dataset.data_address.nbytes
    sender.send((seconds, held, resident('VmHWM') - before))


def in_a_process(function, *args):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=function, args=(*args, sender))
    process.start()
    sender.close()
    result = receiver.recv()  # EOFError when the process failed
    process.join()
    return result


def microseconds_a_read(dataset, indices, clock=time.perf_counter):
    start = clock()
    for i in indices:
        dataset.read(i)
    return (clock() - start) / len(indices) * 1e6


def sample(dataset, number, seed):
    return random.Random(seed).choices(range(len(dataset)), k=number)


def spread(values, form):
    return f'{form} [{form} – {form}]'.format(median(values), min(values), max(values))


def small_entries(folder, args):
    clock = time.process_time if args.clock == 'cpu' else time.perf_counter
    paths = {}
    for number in args.entries:
        for kind, suffix in SUFFIXES.items():
            if kind != 'folder' or number <= args.most_files:
                paths[kind, number] = os.path.join(folder, f'{number}{suffix}')
                write(paths[kind, number], number, 200, 1200)
    lists = {key: [] for key in paths}
    for _ in range(args.list_rounds):
        for key, path in paths.items():
            lists[key].append(in_a_process(measure_list, path, clock))
    datasets = {key: UnlabeledDataset(data_root=path) for key, path in paths.items()}
    reads = {key: [] for key in paths}
    for i in range(args.rounds + 1):
        for key, dataset in datasets.items():
            time_of_read = microseconds_a_read(dataset, sample(dataset, args.reads, i), clock)
            if i:  # after one to warm up
                reads[key].append(time_of_read)
    print('| | entries | µs a read | s to list | list, MB | at most, MB |')
    print('| --- | --- | --- | --- | --- | --- |')
    for (kind, number), times in reads.items():
        seconds, held, peak = zip(*lists[kind, number])
        print(
            f'| {kind} | {number:,} | {spread(times, "{:.1f}")} | {spread(seconds, "{:.2f}")} '
            f'| {held[0] / 1e6:.1f} | {median(peak) / 1e6:.0f} |'
        )


def send_dataset(path, sender):
    sender.send(UnlabeledDataset(data_root=path))


def measure_reads(dataset, indices, sender):
    sender.send([microseconds_a_read(dataset, indices) for _ in range(2)])


def forget(path):
    """Has the operating system take files out of its cache; none may be mapped into memory."""
    for parent, _, names in os.walk(path) if os.path.isdir(path) else [('', '', [path])]:
        for file in names:
            fd = os.open(os.path.join(parent, file), os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def images(folder, args):
    paths = {kind: os.path.join(folder, f'images{suffix}') for kind, suffix in SUFFIXES.items()}
    for path in paths.values():
        write(path, args.images, 60_000, 260_000)
    # In processes of their own, for LMDB keeps what it read mapped.
    datasets = {kind: in_a_process(send_dataset, path) for kind, path in paths.items()}
    reads = {kind: [] for kind in paths}
    for i in range(args.rounds):
        for kind, dataset in datasets.items():
            forget(paths[kind])
            indices = sample(dataset, min(200, args.images), i)
            reads[kind].append(in_a_process(measure_reads, dataset, indices))
    print('\n| | µs an image | from the cache |')
    print('| --- | --- | --- |')
    for kind, times in reads.items():
        print('|', ' | '.join([kind, *(spread(t, '{:.0f}') for t in zip(*times))]), '|')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--entries', type=int, nargs='*', default=[10**i for i in (3, 4, 5, 6)])
    parser.add_argument('--most-files', type=int, default=10**5, help='of a folder')
    parser.add_argument('--images', type=int, default=3000)
    parser.add_argument('--reads', type=int, default=5000, help='of a round')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--list-rounds', type=int, default=3)
    parser.add_argument(
        '--clock',
        default='wall',
        choices=['wall', 'cpu'],
        help='of the first table; cpu: what the process itself used, for it waits for no disk',
    )
    parser.add_argument('--folder', help='where to write; defaults to that of temporary files')
    args = parser.parse_args()
    for part in (small_entries, images):
        folder = tempfile.mkdtemp(dir=args.folder)
        try:
            part(folder, args)
        finally:
            shutil.rmtree(folder)


if __name__ == '__main__':
    main()
