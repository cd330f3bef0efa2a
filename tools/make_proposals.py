# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Propose boxes in the images of a folder, a zip or a COCO json, once before training
(docs/data.md): python tools/make_proposals.py IMAGES OUT.npz --method selective-search-fast

It needs NumPy and OpenCV alone, and nothing of mmdense: selective search comes with
opencv-contrib-python-headless, which replaces the files of the plain package, and therefore runs
in an environment of its own (requirements/proposals.txt).
"""

import argparse
import ctypes
import json
import os
import shutil
import sys
import time
import zipfile
import zlib
from contextlib import ExitStack
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np

ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.tif', '.tiff', '.ppm', '.pgm')
PART = 512  # images of a file that a stopped run keeps
SIDE = 128  # of the images of selective-search-128
SCALES = (150, 300, 450)  # k of graph segmentation, as in selective search's fast setting


class Failure(Exception):
    """Says in one line what is wrong."""


# ---------------------------------------------------------------- boxes (x, y, width, height)


def grid(image):
    """Return windows of a half and of a third of the sides, at steps of half a window."""
    height, width = image.shape[:2]
    rects = []
    for n in (2, 3):
        w, h = width // n, height // n
        steps = range(2 * n - 1)
        rects += [(x * width // (2 * n), y * height // (2 * n), w, h) for y in steps for x in steps]
    return np.array(rects)


def felzenszwalb(image):
    """Return the boxes of the segments of three graph segmentations."""
    from skimage.segmentation import felzenszwalb as segment

    found = []
    for scale in SCALES:
        labels = segment(image[..., ::-1], scale=scale, sigma=0.8, min_size=100)
        count = labels.max() + 1
        rows, columns = np.indices(labels.shape)
        start, end = np.full((count, 2), labels.size), np.zeros((count, 2), int)
        for axis, place in enumerate((columns, rows)):
            np.minimum.at(start[:, axis], labels.ravel(), place.ravel())
            np.maximum.at(end[:, axis], labels.ravel(), place.ravel() + 1)
        found.append(np.hstack([start, end - start]))
    return np.concatenate(found)


def selective_search(image, strategy):
    """Return the boxes of OpenCV's selective search of a BGR image."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    getattr(search, f'switchTo{strategy}')()
    return search.process()


def selective_search_128(image, seed):
    """Return the boxes of selective search in an image of 128×128 pixels, whose channels are in
    RGB order, in the random order of a seed: DETReg's (arXiv 2106.04550)."""
    # OpenCV draws the order by the C library, and by nothing else
    ctypes.CDLL(None).srand(seed)
    small = cv2.resize(image[..., ::-1], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return selective_search(small, 'SelectiveSearchFast')


METHODS = {
    'grid': grid,
    'felzenszwalb': felzenszwalb,
    'selective-search-fast': partial(selective_search, strategy='SelectiveSearchFast'),
    'single': partial(selective_search, strategy='SingleStrategy'),
    'selective-search-128': partial(selective_search_128, seed=0),
}


def select_shapes(rects):
    """Keep boxes with 1/3 < width / height < 3 and a root of the area above 20 px."""
    width, height = rects[:, 2], rects[:, 3]
    shaped = (3 * width > height) & (width < 3 * height)
    return rects[shaped & (np.sqrt(width * height) > 20)]


def suppress(rects, scores, limit=0.5):
    """Return the places of the boxes that are left, by falling score: from the highest score on,
    each takes away those whose IoU with it is above the limit."""
    start, end = rects[:, :2], rects[:, :2] + rects[:, 2:]
    area = rects[:, 2] * rects[:, 3]
    order, kept = np.argsort(-scores, kind='stable'), []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        sides = np.minimum(end[first], end[order]) - np.maximum(start[first], start[order])
        shared = np.maximum(sides, 0).prod(axis=1)
        order = order[shared <= limit * (area[first] + area[order] - shared)]
    return np.array(kept, int)


def propose(image, name, method, draws, keep):
    """Return the boxes of each draw, corners x0, y0, x1, y1 in whole pixels, and their numbers
    before the selection, after it by shape, and after the suppression.

    Scores are random, seeded by the image's name: another machine draws the same. OpenCV gives the
    same set of boxes in every run, but not the same order: it is sorted first.
    """
    if method == 'selective-search-128':
        return propose_in_order(image, name, draws, keep)
    found = np.asarray(METHODS[method](image)).reshape(-1, 4).astype(np.int64)
    shaped = np.unique(select_shapes(found), axis=0)
    lists, left = [], 0
    for draw in range(draws):
        seed = [zlib.crc32(name.encode('utf-8', 'surrogateescape')), draw]
        scores = np.random.default_rng(seed).uniform(0.01, 1, len(shaped))
        kept = suppress(shaped, scores)
        left = len(kept)
        rects = shaped[kept[:keep]]
        lists.append(np.hstack([rects[:, :2], rects[:, :2] + rects[:, 2:]]))
    return lists, (len(found), len(shaped), left)


def propose_in_order(image, name, draws, keep):
    """Return the first boxes of each draw's selective search as :func:`propose` does, in pixels of
    an image of 128×128; nothing is selected or suppressed."""
    lists = []
    for draw in range(draws):
        seed = zlib.crc32(f'{draw} {name}'.encode('utf-8', 'surrogateescape'))
        rects = np.asarray(selective_search_128(image, seed)).reshape(-1, 4).astype(np.int64)
        lists.append(np.hstack([rects[:, :2], rects[:, :2] + rects[:, 2:]])[:keep])
    return lists, (len(rects),) * 3


# ---------------------------------------------------------------- images


class Images:
    """List and read the images of a folder, a zip or a COCO json.

    Args:
        path (str): The folder, the zip or the json.
        prefix (str): The folder or zip that the json's paths are relative to.
    """

    def __init__(self, path, prefix=''):
        self.root = path
        if path.lower().endswith('.json'):
            self.root = prefix or os.path.dirname(path) or os.curdir
            with open(path, encoding='utf-8') as file:
                self.names = [image['file_name'] for image in json.load(file)['images']]
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                self.names = [name for name in archive.namelist() if self._is_image(name)]
        elif os.path.isdir(path):
            files = Path(path).rglob('*')
            relative = (file.relative_to(path).as_posix() for file in files if file.is_file())
            self.names = [name for name in relative if self._is_image(name)]
        else:
            raise Failure(f'{path} is no folder, zip or COCO json')
        self.names = sorted(set(self.names))
        if not self.names:
            raise Failure(f'{path} names no image ({" ".join(ENDINGS)})')
        self.zipped, self._archive = zipfile.is_zipfile(self.root), None

    @staticmethod
    def _is_image(name):
        return name.lower().endswith(ENDINGS) and not os.path.basename(name).startswith('.')

    def read(self, name):
        """Return the upright image, H×W×3, BGR; None where it cannot be read."""
        try:
            if self.zipped:
                self._archive = self._archive or zipfile.ZipFile(self.root)
                content = self._archive.read(name)
            else:
                content = Path(self.root, name).read_bytes()
            return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, cv2.error):
            return None


class Worker:
    """Propose boxes in one image after the other, in one of several processes.

    Args:
        images (Images): The images.
        settings (dict): ``method``, ``draws`` and ``keep``.
    """

    current = None

    def __init__(self, images, settings):
        self.images, self.settings = images, settings

    def __call__(self, name):
        """Return the name, the image's width and height, its lists and numbers; the name alone
        where the image cannot be read."""
        image = self.images.read(name)
        if image is None:
            return (name,)
        lists, numbers = propose(image, name, **self.settings)
        small = self.settings['method'] == 'selective-search-128'
        return name, (SIDE, SIDE) if small else image.shape[1::-1], lists, numbers

    @staticmethod
    def start(images, settings):
        cv2.setNumThreads(1)
        Worker.current = Worker(images, settings)

    @staticmethod
    def call(name):
        return Worker.current(name)


# ---------------------------------------------------------------- files


def pack(results, draws):
    """Return the arrays of a file (docs/data.md) from results of :class:`Worker`, and
    ``unreadable`` and ``numbers``."""
    found = [result for result in results if len(result) > 1]
    lists = [boxes for _, _, image_lists, _ in found for boxes in image_lists]
    boxes = np.concatenate([np.zeros((0, 4), np.int64), *lists])
    small = not len(boxes) or boxes.max() < 2**15
    return dict(
        names=np.array([name for name, *_ in found for _ in range(draws)], dtype=str),
        counts=np.array([len(part) for part in lists], np.int32),
        boxes=boxes.astype(np.int16 if small else np.int32),
        sizes=np.array([size for _, size, *_ in found for _ in range(draws)], np.int32).reshape(
            -1, 2
        ),
        unreadable=np.array([result[0] for result in results if len(result) == 1], dtype=str),
        numbers=np.array([numbers for *_, numbers in found], np.int64).reshape(-1, 3),
    )


def save(path, arrays):
    """Write an uncompressed .npz, complete or not at all."""
    unfinished = Path(f'{path}.unfinished')
    with open(unfinished, 'wb') as file:
        np.savez(file, **arrays)
    os.replace(unfinished, path)


def join(paths):
    """Return the arrays of several files, one after the other."""
    parts = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            parts.append(dict(file))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def open_folder(out, images, settings):
    """Return the folder of the parts of a run, which a stopped one with the same settings has
    left."""
    folder, about = (
        Path(f'{out}.parts'),
        dict(settings, names=zlib.crc32('\n'.join(images.names).encode())),
    )
    path = folder / 'settings.json'
    if path.is_file() and json.loads(path.read_text()) != about:
        raise Failure(
            f'{folder} is of a run with other images or settings: finish that one, or delete it'
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about))
    return folder


class Progress:
    """Show a bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, total, done):
        self.total, self.first, self.done = total, done, done
        self.begin = self.last = time.monotonic()
        self.bar = sys.stderr.isatty()

    def step(self):
        self.done += 1
        now = time.monotonic()
        if now - self.last < (0.2 if self.bar else 30) and self.done < self.total:
            return
        self.last, rate = now, (self.done - self.first) / max(now - self.begin, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9) / 60
        text = f'{self.done} of {self.total} images, {rate:.1f} a second, {left:.0f} min left'
        if self.bar:
            full = 30 * self.done // self.total
            text = f'\r[{"#" * full}{"." * (30 - full)}] {text}  '
        print(text, end='' if self.bar and self.done < self.total else '\n', file=sys.stderr)


def make(images, out, settings, workers):
    """Write the proposals of all images.

    Args:
        images (Images): The images.
        out (str): The file.
        settings (dict): ``method``, ``draws`` and ``keep``.
        workers (int): Number of processes.

    Returns:
        dict: The arrays of the file, and ``unreadable`` and ``numbers``.
    """
    folder = open_folder(out, images, settings)
    starts = range(0, len(images.names), PART)
    paths = [folder / f'{start:09d}.npz' for start in starts]
    done = sum(min(PART, len(images.names) - s) for s, p in zip(starts, paths) if p.is_file())
    progress = Progress(len(images.names), done)
    with ExitStack() as stack:
        call = partial(map, Worker(images, settings))
        if workers > 1:
            pool = stack.enter_context(Pool(workers, Worker.start, (images, settings)))
            call = partial(pool.imap, Worker.call)
        for start, path in zip(starts, paths):
            if path.is_file():
                continue
            results = []
            for result in call(images.names[start : start + PART]):
                results.append(result)
                progress.step()
            save(path, pack(results, settings['draws']))
    arrays = join(paths)
    if not len(arrays['names']):
        raise Failure(f'no image of {images.root} can be read')
    save(out, {key: arrays[key] for key in ('names', 'counts', 'boxes', 'sizes')})
    shutil.rmtree(folder)
    return arrays


def check_method(method):
    """Say what a method lacks."""
    if method == 'felzenszwalb':
        try:
            import skimage.segmentation  # noqa: F401
        except ImportError:
            raise Failure(
                "felzenszwalb needs scikit-image: pip install 'mmdense[proposals]'"
            ) from None
    ximgproc = getattr(getattr(cv2, 'ximgproc', None), 'segmentation', None)
    if isinstance(METHODS[method], partial) and not hasattr(
        ximgproc, 'createSelectiveSearchSegmentation'
    ):
        raise Failure(
            f'{method} needs opencv-contrib-python-headless, which replaces the plain OpenCV: make '
            'an environment of its own by `python -m venv proposals && proposals/bin/pip install '
            '-r requirements/proposals.txt`, and run this tool with proposals/bin/python'
        )


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Propose boxes in images, for LoadProposals.')
    parser.add_argument('images', metavar='IMAGES', help='a folder, a zip or a COCO json')
    parser.add_argument('out', metavar='OUT', help='the .npz to write')
    parser.add_argument('--method', choices=METHODS, default='grid', help='default: grid')
    parser.add_argument(
        '--draws', type=int, default=1, metavar='N', help='random lists of an image; default: 1'
    )
    parser.add_argument(
        '--keep', type=int, default=50, metavar='N', help='boxes of a list at most; default: 50'
    )
    parser.add_argument('--prefix', default='', metavar='DIR', help='what a json is relative to')
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count(), metavar='N', help='default: one a core'
    )
    args = parser.parse_args(argv)
    for name in ('draws', 'keep', 'workers'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1')
    if not args.out.endswith('.npz'):
        parser.error('OUT must end in .npz')
    return args


def main(argv=None):
    """Make the file, and print what it holds."""
    args = parse_args(argv)
    settings = dict(method=args.method, draws=args.draws, keep=args.keep)
    begin = time.monotonic()
    try:
        check_method(args.method)
        arrays = make(Images(args.images, args.prefix), args.out, settings, args.workers)
    except (Failure, OSError, KeyError, json.JSONDecodeError) as error:
        print(f'make_proposals: {error}', file=sys.stderr)
        return 1
    for name in arrays['unreadable']:
        print(f'skipped, cannot be read: {name}', file=sys.stderr)
    found, shaped, left = arrays['numbers'].mean(axis=0)
    images = len(arrays['numbers'])
    print(
        f'{args.out}: {images} images, {len(arrays["boxes"])} boxes, '
        f'{os.path.getsize(args.out) / 1e6:.3g} MB, {time.monotonic() - begin:.0f} s. An image has '
        f'{found:.0f} boxes, {shaped:.0f} of a fitting shape, {left:.0f} after the suppression, '
        f'{len(arrays["boxes"]) / images / args.draws:.1f} in a list'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
