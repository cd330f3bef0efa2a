# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find label maps among images: folders of segmentation data sets have both."""

import glob
import os.path as osp
import re
from collections import Counter, defaultdict
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from mmdense.datasets.transforms.loading import UnreadableImageError, read_values

_LOSSLESS = ('.png', '.bmp', '.tif', '.tiff', '.gif', '.pgm', '.ppm', '.webp', '.npy')
_LOSSY = ('.jpg', '.jpeg', '.jfif')
_MOST = 64  # files that are decoded
_MOST_JPEGS = 50_000  # files: data sets of more, of JPEGs alone, are of photographs
_VALUES = 64  # different values of a label map, of which a photograph has more
_FEW = 16  # of a label map, smooth or not
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


_Key = Tuple[str, str, str]  # folder; ending in '_NAME' or beginning with 'NAME_'; file format


def find_label_maps(names: Sequence[str], read: Callable[[int], bytes]) -> LabelMaps:
    """Find label maps by their few values, and by an image of the same name.

    A group of files (of one folder, format and ending such as ``_mask``, or beginning) is one of
    label maps where all files of a sample have few values, or flat regions. It is left out where
    most of the sample have an image of the same name elsewhere, or, where each image has a folder
    of its own, in that folder. JPEGs are label maps where they are black and white.

    Args:
        names (Sequence[str]): Paths of the images below the folder that is searched, with ``/``.
        read (Callable[[int], bytes]): Returns the content of the i-th.
    """
    lossless = any(name.lower().endswith(_LOSSLESS) for name in names)
    if not lossless and len(names) > _MOST_JPEGS:
        return LabelMaps([], 0, [], 0)
    groups = _group_files(names)
    suspects = _select_suspects(names, groups, read)
    images = groups.keys() - suspects if suspects else ()
    stems = {stem for key in images for i in groups[key] for stem in _image_stems(names[i], key[1])}
    paired = {
        key
        for key in suspects
        if np.mean([_has_image(names[i], key[1], stems) for i in groups[key]]) >= 0.5
    }
    in_samples = None if paired else _find_in_samples(names, read)
    if in_samples is not None:
        return in_samples
    alone = suspects - paired
    return LabelMaps(
        _patterns(paired, groups),
        sum(len(groups[key]) for key in paired),
        _patterns(alone, groups),
        sum(len(groups[key]) for key in alone),
    )


def _find_in_samples(names: Sequence[str], read: Callable[[int], bytes]) -> Optional[LabelMaps]:
    """Find label maps where each image has a folder of its own: ``7/image.png`` and
    ``7/mask.png``, or ``7/images/a.png`` and ``7/masks/b.png``; None without any."""
    parts = [name.split('/') for name in names]
    for level in (1, 2):
        if any(len(path) <= level for path in parts):
            break
        samples = ['/'.join(path[:-level]) for path in parts]
        groups: Dict[_Key, List[int]] = defaultdict(list)
        for i, path in enumerate(parts):
            groups[path[-level], '', osp.splitext(path[-1])[1].lower()].append(i)
        if not 2 <= len(groups) <= min(_MOST, len(set(samples)) / 2):
            continue
        suspects = _select_suspects(names, groups, read)
        others = {key[0] for key in groups if key not in suspects}
        images = {samples[i] for key in groups if key not in suspects for i in groups[key]}
        paired = {
            key
            for key in suspects
            if key[0] not in others and np.mean([samples[i] in images for i in groups[key]]) >= 0.5
        }
        if paired:
            count = sum(len(groups[key]) for key in paired)
            return LabelMaps(sorted({glob.escape(key[0]) for key in paired}), count, [], 0)
    return None


def _group_files(names: Sequence[str]) -> Dict[_Key, List[int]]:
    """Group files by folder, ending and format; by fewer levels of folders where these are many."""
    parts = [(*osp.split(name), *osp.splitext(name)) for name in names]
    tails: Dict[Tuple[str, str], Counter] = defaultdict(Counter)
    heads: Dict[Tuple[str, str], Counter] = defaultdict(Counter)
    for folder, _, stem, kind in parts:
        tails[folder, kind.lower()][_tail(stem)] += 1
        heads[folder, kind.lower()][_head(stem)] += 1
    depth = max((folder.count('/') + 1 for folder, *_ in parts), default=0)
    while True:
        groups: Dict[_Key, List[int]] = defaultdict(list)
        for i, (folder, _, stem, kind) in enumerate(parts):
            part = ''
            for found, counts in ((_tail(stem), tails), (_head(stem), heads)):
                number = counts[folder, kind.lower()]
                if not part and number[found] >= max(2, 0.05 * sum(number.values())):
                    part = found
            groups['/'.join(folder.split('/')[:depth]), part, kind.lower()].append(i)
        if len(groups) <= _MOST or depth == 0:
            return groups
        depth -= 1


def _tail(stem: str) -> str:
    """Return '_mask' of 'a/b_mask'; '' where the name ends in no word."""
    match = re.search(r'[_.\- ][A-Za-z][A-Za-z0-9]*$', osp.basename(stem))
    return match.group() if match else ''


def _head(stem: str) -> str:
    """Return 'mask_' of 'a/mask_1'; '' where the name begins with no word."""
    match = re.match(r'[A-Za-z][A-Za-z0-9]*[_.\- ]', osp.basename(stem))
    return match.group() if match else ''


def _is_head(part: str) -> bool:
    return bool(part) and not part[-1].isalnum()


def _select_suspects(
    names: Sequence[str], groups: Dict[_Key, List[int]], read: Callable[[int], bytes]
) -> Set[_Key]:
    """Return the groups whose files look like label maps. JPEGs are read only where another group
    has files of the same names."""
    keys = [key for key in groups if key[2] in _LOSSLESS]
    keys += _select_namesakes(names, groups)
    each = max(2, _MOST // max(len(keys), 1)) if len(keys) <= _MOST else 1
    found = set()
    for key in keys[:: max(1, len(keys) // _MOST)]:
        members = groups[key]
        chosen = np.unique(np.linspace(0, len(members) - 1, min(each, 8)).round().astype(int))
        check = looks_like_labels if key[2] in _LOSSLESS else is_black_and_white
        looks = []
        for n in chosen:
            try:
                looks.append(check(read_values(read(members[n]))))
            except (ValueError, UnreadableImageError):  # others say so
                continue
            if not looks[-1]:
                break
        if looks and all(looks):
            found.add(key)
    return found


def _select_namesakes(names: Sequence[str], groups: Dict[_Key, List[int]]) -> List[_Key]:
    """Return the groups of JPEGs most of which have the name of a file of another group."""
    keys = [key for key in groups if key[2] in _LOSSY]
    if not keys or len(groups) == 1:
        return []
    owners: Dict[str, Optional[_Key]] = {}  # by name; None for several groups
    for key, members in groups.items():
        for i in members:
            stem = osp.splitext(osp.basename(names[i]))[0]
            owners[stem] = key if owners.get(stem, key) == key else None
    return [
        key
        for key in keys
        if np.mean(
            [
                any(owners.get(stem, key) != key for stem in _beginnings(names[i]))
                for i in groups[key][:_MOST]
            ]
        )
        >= 0.5
    ]


def is_black_and_white(values: np.ndarray) -> bool:
    """Return whether nearly all values of a JPEG, (H, W, C), are at one of two ends, and some at
    each: a mask of one class."""
    dark, bright = float((values < 16).mean()), float((values > 239).mean())
    return dark + bright >= 0.97 and min(dark, bright) >= 0.001


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
    left, right = codes[:, :-1], codes[:, 1:]
    if len(counts) <= min(_VALUES, codes.size // 8):
        return len(counts) <= _FEW or not _is_smooth(values)
    common = counts.argmax()  # of a background, which photographs may have too
    inside = (left != common) | (right != common)
    return bool(inside.any()) and float((left == right)[inside].mean()) >= 0.8


def _is_smooth(values: np.ndarray) -> bool:
    """Return whether neighbors differ by little, and do differ: of a photograph in the dark, or
    from an infrared camera."""
    values = values.astype(np.float64)
    steps = np.abs(np.diff(values, axis=1)).max(2)
    little = np.ptp(values) / 8
    return float((steps <= little).mean()) >= 0.9 and float((steps == 0).mean()) < 0.8


def _image_stems(name: str, part: str) -> List[str]:
    """Return names under which an image's label map may be: without format, and ending or
    beginning."""
    stem = osp.splitext(osp.basename(name))[0]
    if not part:
        return [stem]
    return [stem, stem[len(part) :] if _is_head(part) else stem[: -len(part)]]


def _has_image(name: str, part: str, stems: Set[str]) -> bool:
    """Return whether there is an image of the name, of its beginning up to a separator, or
    without the beginning of its group."""
    if _is_head(part) and _image_stems(name, part)[1] in stems:
        return True
    return any(stem in stems for stem in _beginnings(name))


def _beginnings(name: str) -> Iterator[str]:
    """Yield the name of a file without its format, and its beginnings up to each separator."""
    stem = osp.splitext(osp.basename(name))[0]
    while stem:
        yield stem
        stem = re.sub(r'(^|[_.\- ])[^_.\- ]*$', '', stem)


def _patterns(keys: Set[_Key], groups: Dict[_Key, List[int]]) -> List[str]:
    """Return patterns of ``exclude`` that fit the files of some groups and no others."""
    others = {key for key in groups if key not in keys}
    found = set()
    for folder, part, kind in keys:
        parts = folder.split('/') if folder else []
        above = ('/'.join(parts[:n]) for n in range(1, len(parts) + 1))
        free = (one for one in above if not any(_is_below(key[0], one) for key in others))
        pattern = next(free, None)
        if pattern is None:
            start = f'{glob.escape(folder)}/' if folder else ''
            name = glob.escape(part)
            found.add(f'{start}{name}*{kind}' if _is_head(part) else f'{start}*{name}{kind}')
        else:
            found.add(glob.escape(pattern))
    return sorted(found)


def _is_below(folder: str, other: str) -> bool:
    return folder == other or folder.startswith(f'{other}/')
