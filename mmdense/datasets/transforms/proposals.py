# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Proposals: boxes of an image that may hold an object, from a file, of a grid or drawn at random.

A box is ``(x0, y0, x1, y1)`` in [0, 1] of the width and height of the image as loaded, upright,
between the pixels' outer corners, as the boxes of views (views.py) but never flipped. Proposals
stay in the image's coordinates whatever crops and flips follow; a loss maps them into a view by the
view's box (models/layers/regions.py).
"""

import json
import os
import os.path as osp
import struct
import zipfile
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from mmcv.transforms import BaseTransform

from mmdense.registry import TRANSFORMS
from mmdense.utils.checks import check_counts, check_whole
from mmdense.utils.errors import DataError, InputError

from .loading import UnreadableImageError

RANDOM, GRID = 'random', 'grid'
# Windows of a half and of a third of the image's sides, at steps of half a window.
_GRID = np.array(
    [
        (x / (2 * n), y / (2 * n), x / (2 * n) + 1 / n, y / (2 * n) + 1 / n)
        for n in (2, 3)
        for y in range(2 * n - 1)
        for x in range(2 * n - 1)
    ],
    np.float32,
)
KEYS = ('proposals', 'proposal_ids', 'proposal_scores')


class Proposals(NamedTuple):
    """Hold the proposals of one image: R boxes, scores or None, and positions in the list."""

    boxes: np.ndarray
    scores: Optional[np.ndarray]
    ids: np.ndarray


@TRANSFORMS.register_module()
class LoadProposals(BaseTransform):
    """Load the proposals of an image from a file, take those of a grid, or draw random boxes.

    It stands between ``LoadImage`` and ``PackInputs``; before ``MultiView`` if a transform of views
    needs proposals. mmdense's ``PackInputs`` packs them as tensors, as many as each image has.

    A file is read once, when the transform is built; the arrays of an uncompressed ``.npz``, as
    tools/make_proposals.py writes it, are mapped into memory instead. Three formats are known:

    - ``.json``, relative path of an image → its boxes R×4, or
      ``dict(boxes=..., scores=...)``, as fractions.
    - ``.json`` of COCO: ``images`` and ``annotations`` with ``bbox`` (x, y, width, height in
      pixels) and an optional ``score``. Crowds are left out.
    - ``.npz``, of all images: ``names`` (n relative paths), ``counts`` (n, boxes of each),
      ``boxes`` (M×4, one image after the other), optionally ``scores`` (M) and ``sizes`` (n×2,
      width and height), which the boxes are divided by, so that whole pixels take two bytes each.
      A name may come several times: each time the image is loaded one of its lists is drawn, as
      DETReg (https://arxiv.org/abs/2106.04550) draws from selective search anew.

    Boxes are cut at the image's borders; those without an area are left out. An image without a
    box is legal, one that the file does not name is an error.

    The grid needs no file: 9 windows of half the image's sides and 25 of a third, at steps of half
    a window, the same in every image (ours).

    Random boxes are those of UP-DETR (https://arxiv.org/abs/2011.09094): width and height are
    uniform on the whole pixels from ``min_size`` to the image's side less ``min_size``, then the
    place is uniform.

    Randomness is NumPy's, which :class:`~mmdense.datasets.UnlabeledDataset` seeds from the sample's
    number: a resumed run draws the same.

    **Required Keys:** ``img_path`` (str); for random boxes ``img_shape`` (tuple[int, int])

    **Added Keys:**

    - ``proposals`` (np.ndarray): R×4 float32.
    - ``proposal_ids`` (np.ndarray): R int64, position of each box in the image's list.
    - ``proposal_scores`` (np.ndarray): R float32, if the file has scores.

    Args:
        source (str): The file, 'grid' or 'random'.
        data_root (str): The folder, zip or LMDB that names in the file are relative to. Defaults
            to '', names are the paths that the data set gives.
        max_num (int, optional): The largest number of boxes of an image; for 'random' their
            number, required there. Defaults to None, all.
        shuffle (bool): Whether ``max_num`` takes a random choice, in the order of the file, instead
            of the first ones. Defaults to False.
        min_size (int): Least side of random boxes, in pixels. Defaults to 8.
        min_num (int): The smallest number of boxes of an image; the data set takes another image
            in place of one with fewer. Defaults to 0.

    Raises:
        InputError: An argument that is not as above.
        DataError: The file cannot be read, or does not name an image.

    Examples:
        >>> dict(type='LoadProposals', source='proposals.json', data_root='data/coco/train2017')
        >>> dict(type='LoadProposals', source='random', max_num=10)
    """

    def __init__(
        self,
        source: str,
        data_root: str = '',
        max_num: Optional[int] = None,
        shuffle: bool = False,
        min_size: int = 8,
        min_num: int = 0,
    ) -> None:
        if max_num is not None or source == RANDOM:
            check_counts(max_num=max_num)
        check_counts(min_size=min_size)
        check_whole(0, min_num=min_num)
        self.source = source
        self.data_root = data_root
        self.max_num = max_num
        self.shuffle = shuffle
        self.min_size = min_size
        self.min_num = min_num
        self._table = None if source in (RANDOM, GRID) else ProposalTable.read(source)

    def transform(self, results: dict) -> dict:
        """Add the proposals to ``results``.

        Raises:
            DataError: The file does not name the image.
            UnreadableImageError: The image is too small for random boxes, or has too few boxes; the
                data set takes another one.
        """
        if self.source == RANDOM:
            found = self._draw(results)
        elif self.source == GRID:
            found = self._select(Proposals(_GRID, None, np.arange(len(_GRID))))
        else:
            found = self._select(self._table.find(self._name(results['img_path'])))
        if len(found.boxes) < self.min_num:
            reason = f'it has {len(found.boxes)} proposals, at least {self.min_num} are needed'
            raise UnreadableImageError(results['img_path'], reason)
        results['proposals'] = found.boxes
        results['proposal_ids'] = found.ids
        if found.scores is not None:
            results['proposal_scores'] = found.scores
        return results

    def _name(self, path: str) -> str:
        """Return the name of an image in the file."""
        if not self.data_root:
            return path
        name = osp.relpath(path, self.data_root)
        if name.startswith(os.pardir):
            raise DataError(
                f'LoadProposals: image {path} is not below data_root={self.data_root!r}, which the '
                f'names in {self.source} are relative to'
            )
        return name

    def _select(self, found: Proposals) -> Proposals:
        """Cut the boxes at the borders, and take ``max_num`` of them."""
        boxes = found.boxes.clip(0, 1)
        keep = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        if self.max_num is not None and len(keep) > self.max_num:
            if self.shuffle:
                keep = np.sort(np.random.permutation(keep)[: self.max_num])
            keep = keep[: self.max_num]
        scores = None if found.scores is None else found.scores[keep]
        return Proposals(boxes[keep], scores, found.ids[keep])

    def _draw(self, results: dict) -> Proposals:
        """Draw ``max_num`` random boxes."""
        height, width = results['img_shape'][:2]
        if min(height, width) < 2 * self.min_size:
            raise UnreadableImageError(
                results['img_path'],
                f'its {width} × {height} pixels are too few for random proposals of at least '
                f'{self.min_size} pixels',
            )
        number = self.max_num
        # + 1: NumPy leaves the upper end out
        w = np.random.randint(self.min_size, width - self.min_size + 1, number)
        h = np.random.randint(self.min_size, height - self.min_size + 1, number)
        left = np.random.randint(0, width - w)
        top = np.random.randint(0, height - h)
        corners = np.stack([left, top, left + w, top + h], axis=1)
        boxes = (corners / [width, height, width, height]).astype(np.float32)
        return Proposals(boxes, None, np.arange(number))

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(source={self.source!r}, data_root={self.data_root!r}, '
            f'max_num={self.max_num}, shuffle={self.shuffle}, min_size={self.min_size}, '
            f'min_num={self.min_num})'
        )


class ProposalTable:
    """Hold the proposals of many images in a few arrays, which forked workers share.

    Args:
        source (str): The file, for messages.
        names (list[str]): Relative path of the image of each list.
        counts (np.ndarray): Number of boxes of each list.
        boxes (np.ndarray): Boxes M×4, list by list.
        scores (np.ndarray, optional): Scores M of the boxes.
        sizes (np.ndarray, optional): Width and height of each list's image, if boxes are pixels.

    Raises:
        DataError: The arrays do not fit together.
    """

    def __init__(
        self,
        source: str,
        names: List[str],
        counts: np.ndarray,
        boxes: np.ndarray,
        scores: Optional[np.ndarray] = None,
        sizes: Optional[np.ndarray] = None,
    ) -> None:
        if not len(names):
            raise DataError(f'{source} holds no list of proposals')
        total = int(np.sum(counts))
        shapes = dict(
            counts=(counts, (len(names),)),
            boxes=(boxes, (total, 4)),
            scores=(scores, (total,)),
            sizes=(sizes, (len(names), 2)),
        )
        for name, (array, shape) in shapes.items():
            if array is not None and (array.shape != shape or array.dtype.kind not in 'iuf'):
                raise DataError(
                    f'{source}: {name} must be numbers of shape {shape}, got {array.dtype} of '
                    f'shape {array.shape}'
                )
        # whole numbers are finite: a mapped file is not read for that
        finite = boxes.dtype.kind in 'iu' or np.isfinite(boxes).all()
        if not finite or (sizes is not None and not (sizes > 0).all()):
            raise DataError(f'{source}: boxes must be finite and sizes above 0')
        if sizes is None and total and boxes.max() > 2:
            raise DataError(
                f'{source}: boxes must be fractions of the image, got {boxes.max()}; boxes in '
                'pixels need sizes, or a COCO json'
            )
        # Sorted bytes in one array: a dict of a million names would be copied by every worker.
        encoded = np.array([os.fsencode(osp.normpath(name)) for name in names])
        self._order = np.argsort(encoded, kind='stable')
        self._names = encoded[self._order]
        self._offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._boxes, self._scores, self._sizes = boxes, scores, sizes
        self.source = source

    @classmethod
    def read(cls, path: str) -> 'ProposalTable':
        """Read a file of proposals; :class:`LoadProposals` lists the formats.

        Raises:
            DataError: The file cannot be read, or is of none of the formats.
        """
        kind = osp.splitext(path)[1].lower()
        if kind not in ('.json', '.npz'):
            raise InputError(
                f"LoadProposals: source must be 'grid', 'random', a .json or a .npz, got {path}"
            )
        try:
            if kind == '.npz':
                arrays = _read_npz(path)
            else:
                with open(path, encoding='utf-8') as file:
                    arrays = _read_json(json.load(file))
        except OSError as e:
            raise DataError(f'cannot read the proposals {path}: {e.strerror or e}') from None
        # a damaged zip, no json, a missing key, ragged lists
        except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as e:
            reason = ' '.join(str(e).split())
            raise DataError(
                f'cannot read the proposals {path}: {type(e).__name__}: {reason}'
            ) from None
        return cls(path, **arrays)

    def find(self, name: str) -> Proposals:
        """Return the proposals of an image; of several lists a random one.

        Args:
            name (str): Relative path of the image.

        Returns:
            Proposals: Fractions, float32, with boxes as the file has them.

        Raises:
            DataError: There is no list for the image.
        """
        key = np.array(os.fsencode(osp.normpath(name)))
        first, end = (int(np.searchsorted(self._names, key, side)) for side in ('left', 'right'))
        if first == end:
            known = os.fsdecode(self._names[0])
            raise DataError(
                f'{self.source} has no proposals of {name}: it names {len(self._names)} lists, the '
                f'first for {known}; check data_root of LoadProposals'
            )
        row = self._order[first if end - first == 1 else np.random.randint(first, end)]
        part = slice(self._offsets[row], self._offsets[row + 1])
        boxes = self._boxes[part].astype(np.float32)
        if self._sizes is not None:
            boxes /= np.tile(self._sizes[row], 2).astype(np.float32)
        scores = None if self._scores is None else self._scores[part].astype(np.float32)
        return Proposals(boxes, scores, np.arange(len(boxes)))


def _read_npz(path: str) -> Dict[str, Any]:
    """Return the arguments of :class:`ProposalTable` from a file of arrays."""
    with np.load(path, allow_pickle=False) as file:
        optional = {key: file[key] for key in ('scores', 'sizes') if key in file}
        names = [str(name) for name in file['names']]
        boxes = _map_array(path, file.zip.getinfo('boxes.npy'))
        if boxes is None:
            boxes = file['boxes']
        return dict(names=names, counts=file['counts'], boxes=boxes, **optional)


def _map_array(path: str, entry: zipfile.ZipInfo) -> Optional[np.ndarray]:
    """Map an array of a .npz into memory; None where it is compressed or empty."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return None
    with open(path, 'rb') as file:
        file.seek(entry.header_offset + 26)
        file.seek(sum(struct.unpack('<HH', file.read(4))), os.SEEK_CUR)  # name and extra field
        version = np.lib.format.read_magic(file)
        read = getattr(np.lib.format, f'read_array_header_{version[0]}_0')
        shape, columns_first, kind = read(file)
        if columns_first or kind.hasobject or 0 in shape:
            return None
        return np.memmap(path, kind, 'r', file.tell(), shape)


def _read_json(content: Any) -> Dict[str, Any]:
    """Return the arguments of :class:`ProposalTable` from a json of either kind."""
    if isinstance(content.get('images'), list) and 'annotations' in content:
        return _from_coco(content)
    entries = [x if isinstance(x, dict) else dict(boxes=x) for x in content.values()]
    boxes = [np.array(entry['boxes'], np.float32).reshape(-1, 4) for entry in entries]
    scores = [entry.get('scores') for entry in entries]
    if any(one is None for one in scores):
        scores = None
    return dict(
        names=list(content),
        counts=np.array([len(one) for one in boxes], np.int64),
        boxes=np.concatenate([*boxes, np.zeros((0, 4), np.float32)]),
        scores=None if scores is None else np.array(sum(scores, []), np.float32),
    )


def _from_coco(content: dict) -> Dict[str, Any]:
    """Return the arguments of :class:`ProposalTable` from a COCO json."""
    images: List[dict] = content['images']
    rows = {image['id']: i for i, image in enumerate(images)}
    found: List[Tuple[int, list, Optional[float]]] = [
        (rows[one['image_id']], one['bbox'], one.get('score'))
        for one in content['annotations']
        if not one.get('iscrowd')
    ]
    found.sort(key=lambda one: one[0])  # stable: an image's boxes keep their order
    boxes = np.array([box for _, box, _ in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scored = bool(found) and all(score is not None for _, _, score in found)
    return dict(
        names=[image['file_name'] for image in images],
        counts=np.bincount(np.array([row for row, _, _ in found], np.int64), minlength=len(images)),
        boxes=boxes,
        scores=np.array([score for _, _, score in found], np.float32) if scored else None,
        sizes=np.array([(image['width'], image['height']) for image in images]),
    )
