# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Copy the images of a folder, an LMDB or a zip into one zip (docs/data.md):
python tools/convert_dataset.py SRC DST.zip"""

import argparse
import os
import os.path as osp
import sys
import time

import cv2
from torch.hub import tqdm  # or its stand-in
from torch.utils.data import DataLoader, Dataset

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings()  # before the imports below

from mmdense.datasets import UnlabeledDataset, UnreadableImageError, decode_image
from mmdense.datasets.storage import check_names, write_zip
from mmdense.utils.errors import (
    DataError,
    one_line_errors,
)


class Files(Dataset):
    """Yield (path, content, '') for each image, or (path, None, reason)."""

    def __init__(self, dataset, indices, check):
        self.dataset, self.indices, self.check = dataset, indices, check

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        try:
            path, content = self.dataset.read(self.indices[i])
        except UnreadableImageError as e:
            return e.path, None, e.reason
        if self.check:
            try:
                decode_image(content)
            except ValueError as e:
                return path, None, str(e)
        return path, content, ''


class Progress:
    """Show a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total, seconds=10):
        self.total, self.seconds = total, seconds
        self.done = self.bytes = 0
        self.start = self.last = time.monotonic()
        self.bar = tqdm(total=total, unit=' images', disable=not sys.stderr.isatty())

    def update(self, size):
        self.done += 1
        self.bytes += size
        self.bar.update()
        now = time.monotonic()
        if not sys.stderr.isatty() and now - self.last >= self.seconds:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            print(
                f'{self.done:,} of {self.total:,} images, {self.bytes / 1e9:.2f} GB, '
                f'{rate:,.0f} images/s, {left:,.0f} s left',
                file=sys.stderr,
                flush=True,
            )

    def close(self):
        self.bar.close()


def relative_names(dataset):
    """Return name below the data set's folder → index of the image."""
    root = dataset.data_prefix['img_path']
    start = f'{root.rstrip("/")}/' if root else ''
    indices = {}
    for i in range(len(dataset)):
        path = dataset.get_data_info(i)['img_path']
        name = osp.normpath(path[len(start) :])
        if not path.startswith(start) or name.startswith(('../', '/')):
            raise DataError(
                f'{path} is not below {root or os.curdir}, which names are relative to: give the '
                'folder that all images are below'
            )
        indices.setdefault(name, i)  # once, if a list has it twice
    return indices


def convert(source, path, ann_file='', check=False, num_workers=0, overwrite=False):
    """Copy, and return (number of images, their bytes, number of images left out)."""
    with write_zip(path, overwrite) as add:
        dataset = UnlabeledDataset(source, ann_file and osp.abspath(ann_file))
        indices = relative_names(dataset)
        names = list(indices)
        check_names(path, names)
        cv2.setNumThreads(0)  # of each worker
        files = DataLoader(
            Files(dataset, list(indices.values()), check),
            batch_size=None,
            num_workers=num_workers,
            collate_fn=tuple,
            prefetch_factor=16 if num_workers else None,
        )
        progress, left_out = Progress(len(names)), 0
        for name, (file, content, reason) in zip(names, files):
            if content is None:
                left_out += 1
                tqdm.write(f'left out: {file}: {reason}', file=sys.stderr)
            else:
                add(name, content)
            progress.update(len(content or b''))
        progress.close()
        if left_out == len(names):
            raise DataError(f'none of the {left_out} images of {dataset.source} can be read')
    return len(names) - left_out, progress.bytes, left_out


def is_found(path, number):
    """Return whether a search of the archive finds all images: a list may name others."""
    try:
        return len(UnlabeledDataset(data_root=path)) == number
    except DataError:
        return False


def main():
    parser = argparse.ArgumentParser(description='Copy images into one zip')
    parser.add_argument('source', metavar='SRC', help='a folder of images, a zip or an LMDB')
    parser.add_argument('path', metavar='DST', help='the file to write: .zip')
    parser.add_argument('--ann-file', default='', help='a .txt or COCO .json: the images it names')
    parser.add_argument(
        '--check', action='store_true', help='decode each image, and leave out what is broken'
    )
    parser.add_argument(
        '--num-workers',
        type=int,
        default=min(16, os.cpu_count() or 1),
        help='processes that read and decode',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace DST if it is there')
    args = parser.parse_args()
    with one_line_errors(OSError):
        number, size, left_out = convert(
            args.source, args.path, args.ann_file, args.check, args.num_workers, args.overwrite
        )
        print(f'{args.path}: {number:,} images, {size:,} bytes; {left_out:,} left out')
        root, prefix = osp.split(args.path)
        use = dict(data_root=root, data_prefix=prefix) if root else dict(data_root=prefix)
        if args.ann_file and not is_found(args.path, number):
            use['ann_file'] = osp.relpath(args.ann_file, root or None)
        use = ', '.join(f'{key}={value!r}' for key, value in use.items())
        print(f'train_dataloader = dict(dataset=dict({use}))')


if __name__ == '__main__':
    main()
