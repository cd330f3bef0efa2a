# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find label maps among images: folders of segmentation data sets have both."""

import glob
import os.path as osp
import re
from collections import Counter, defaultdict
from typing import Callable, Dict, List, NamedTuple, Sequence, Set, Tuple

import numpy as np

from mmdense.datasets.transforms.loading import UnreadableImageError, read_values

_LOSSLESS = ('.png', '.bmp', '.tif', '.tiff', '.gif', '.pgm', '.ppm')
_MOST = 64  # files that are decoded
_VALUES = 64  # different values of a label map, of which a photograph has more
_SIDE = 256  # pixels along a side that are looked at


class LabelMaps(NamedTuple):
    """Describe label maps among images.

    Attributes:
        exclude (list[str]): Patterns of those whose images are there: to be left out.
        count (int): Number of files that these fit.
        suspects (list[str]): Patterns of files that look alike, without an image to each.
        suspect_count (int): Number of files that these fit.
    """

    exclude: List[str]
    count: int
    suspects: List[str]
    suspect_count: int


_Key = Tuple[str, str, str]  # folder, ending in '_NAME', file format


def find_label_maps(names: Sequence[str], read: Callable[[int], bytes]) -> LabelMaps:
    """Find label maps by their few values, and by an image of the same name.

    A group of files (of one folder, format and ending such as ``_mask``) is one of label maps where
    all files of a sample have few values, or flat regions. It is left out where most of the sample
    have an image of the same name elsewhere.

    Args:
        names (Sequence[str]): Paths of the images below the folder that is searched, with ``/``.
        read (Callable[[int], bytes]): Returns the content of the i-th.
    """
    if not any(name.lower().endswith(_LOSSLESS) for name in names):
        return LabelMaps([], 0, [], 0)
    groups = _group_files(names)
    suspects = _select_suspects(groups, read)
    if not suspects:
        return LabelMaps([], 0, [], 0)
    stems = {
        stem
        for key, members in groups.items()
        if key not in suspects
        for i in members
        for stem in _image_stems(names[i], key[1])
    }
    paired = {
        key
        for key in suspects
        if np.mean([_has_image(names[i], stems) for i in groups[key]]) >= 0.5
    }
    alone = suspects - paired
    return LabelMaps(
        _patterns(paired, groups),
        sum(len(groups[key]) for key in paired),
        _patterns(alone, groups),
        sum(len(groups[key]) for key in alone),
    )


def _group_files(names: Sequence[str]) -> Dict[_Key, List[int]]:
    """Group files by folder, ending and format; by fewer levels of folders where these are many."""
    parts = [(*osp.split(name), *osp.splitext(name)) for name in names]
    tails: Dict[Tuple[str, str], Counter] = defaultdict(Counter)
    for folder, _, stem, kind in parts:
        tails[folder, kind.lower()][_tail(stem)] += 1
    depth = max((folder.count('/') + 1 for folder, *_ in parts), default=0)
    while True:
        groups: Dict[_Key, List[int]] = defaultdict(list)
        for i, (folder, _, stem, kind) in enumerate(parts):
            counts, tail = tails[folder, kind.lower()], _tail(stem)
            if counts[tail] < max(2, 0.05 * sum(counts.values())):
                tail = ''
            groups['/'.join(folder.split('/')[:depth]), tail, kind.lower()].append(i)
        if len(groups) <= _MOST or depth == 0:
            return groups
        depth -= 1


def _tail(stem: str) -> str:
    """Return '_mask' of 'a/b_mask'; '' where the name ends in no word."""
    match = re.search(r'[_.\- ][A-Za-z][A-Za-z0-9]*$', osp.basename(stem))
    return match.group() if match else ''


def _select_suspects(groups: Dict[_Key, List[int]], read: Callable[[int], bytes]) -> Set[_Key]:
    """Return the groups whose files look like label maps."""
    lossless = [key for key in groups if key[2] in _LOSSLESS]
    each = max(2, _MOST // max(len(lossless), 1)) if len(lossless) <= _MOST else 1
    found = set()
    for key in lossless[:: max(1, len(lossless) // _MOST)]:
        members = groups[key]
        chosen = np.unique(np.linspace(0, len(members) - 1, min(each, 8)).round().astype(int))
        looks = []
        for n in chosen:
            try:
                looks.append(looks_like_labels(read_values(read(members[n]))))
            except (ValueError, UnreadableImageError):  # others say so
                continue
            if not looks[-1]:
                break
        if looks and all(looks):
            found.add(key)
    return found


def looks_like_labels(values: np.ndarray) -> bool:
    """Return whether an image has few values, or flat regions with sharp ends between them.

    Args:
        values (np.ndarray): Values of a file, (H, W, C).
    """
    step = max(1, min(values.shape[:2]) // _SIDE)
    if values.shape[2] in (2, 4):  # alpha
        values = values[..., :-1]
    values = np.ascontiguousarray(values[::step, ::step])
    rows = values.reshape(-1, values.shape[2])
    codes = np.unique(rows, axis=0, return_inverse=True)[1].reshape(values.shape[:2])
    counts = np.bincount(codes.ravel())
    if len(counts) <= min(_VALUES, codes.size // 8):
        return True
    left, right = codes[:, :-1], codes[:, 1:]
    common = counts.argmax()  # of a background, which photographs may have too
    inside = (left != common) | (right != common)
    return bool(inside.any()) and float((left == right)[inside].mean()) >= 0.8


def _image_stems(name: str, tail: str) -> List[str]:
    """Return names under which an image's label map may be: without format, and ending."""
    stem = osp.splitext(osp.basename(name))[0]
    return [stem, stem[: -len(tail)]] if tail else [stem]


def _has_image(name: str, stems: Set[str]) -> bool:
    """Return whether there is an image of the name, or of its beginning up to a separator."""
    stem = osp.splitext(osp.basename(name))[0]
    while stem:
        if stem in stems:
            return True
        stem = re.sub(r'(^|[_.\- ])[^_.\- ]*$', '', stem)
    return False


def _patterns(keys: Set[_Key], groups: Dict[_Key, List[int]]) -> List[str]:
    """Return patterns of ``exclude`` that fit the files of some groups and no others."""
    others = {key for key in groups if key not in keys}
    found = set()
    for folder, tail, kind in keys:
        parts = folder.split('/') if folder else []
        above = ('/'.join(parts[:n]) for n in range(1, len(parts) + 1))
        free = (one for one in above if not any(_is_below(key[0], one) for key in others))
        pattern = next(free, None)
        if pattern is None:
            start = f'{glob.escape(folder)}/' if folder else ''
            pattern = f'{start}*{glob.escape(tail)}{kind}'
            found.add(pattern)
        else:
            found.add(glob.escape(pattern))
    return sorted(found)


def _is_below(folder: str, other: str) -> bool:
    return folder == other or folder.startswith(f'{other}/')
