# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Load a trained algorithm that groups pixels, and count the pixels of its groups."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mmdense.checkpoints import read_checkpoint
from mmdense.checkpoints.backbones import load_algorithm
from mmdense.datasets import default_collate
from mmdense.models import SlotCon, registered_algorithms
from mmdense.models.selfsup.grouping import GroupsPixels
from mmdense.models.utils import best_groups
from mmdense.utils.errors import CheckpointError


def grouping_algorithm(content: Any) -> Optional[type]:
    """Return the algorithm whose groups of pixels a training checkpoint holds, None without.

    Args:
        content (Any): Content of a file.

    Returns:
        type | None: A subclass of :class:`~mmdense.models.selfsup.grouping.GroupsPixels`.
    """
    tensors = content.get('state_dict') if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        return None
    kinds = (kind for kind in registered_algorithms() if issubclass(kind, GroupsPixels))
    return next((kind for kind in kinds if kind.group_tensor in tensors), None)


def load_grouping(checkpoint: str, kind: type, config: Optional[str] = None) -> GroupsPixels:
    """Build a trained algorithm with what its groups need, in eval mode.

    Args:
        checkpoint (str): A training checkpoint.
        kind (type): The result of :func:`grouping_algorithm`.
        config (str, optional): The config of the run, see
            :func:`~mmdense.checkpoints.backbones.load_algorithm`.

    Returns:
        GroupsPixels: On the CPU.

    Raises:
        CheckpointError: When it holds no config, or does not fit it.
        InputError: When ``config`` is not of that algorithm.
    """
    names = dict(part=kind.group_part, part_name='teacher') if kind.group_part else {}
    return load_algorithm(checkpoint, config, kind, **names)


def load_slotcon(checkpoint: str, config: Optional[str] = None) -> SlotCon:
    """Build a trained SlotCon with its teacher's weights, in eval mode.

    Args:
        checkpoint (str): A training checkpoint.
        config (str, optional): The config of the run, see
            :func:`~mmdense.checkpoints.backbones.load_algorithm`.

    Returns:
        SlotCon: On the CPU.

    Raises:
        CheckpointError: When it is no checkpoint, of another algorithm, holds
            no config, or does not fit it.
        InputError: When ``config`` is not SlotCon's.
    """
    content = read_checkpoint(checkpoint)
    meta = content.get('meta') if isinstance(content, dict) else None
    about = meta.get('mmdense') if isinstance(meta, dict) else None
    algorithm = about.get('algorithm', 'SlotCon') if isinstance(about, dict) else 'SlotCon'
    if algorithm != 'SlotCon':
        raise CheckpointError(
            f'{checkpoint} is of {algorithm}, which has no prototypes; a checkpoint of SlotCon is '
            'needed'
        )
    if grouping_algorithm(content) is not SlotCon:
        raise CheckpointError(
            f'{checkpoint} holds no SlotCon with its prototypes: take a checkpoint of the '
            'training run (epoch_*.pth), not an exported backbone'
        )
    return load_grouping(checkpoint, SlotCon, config)


class Survey(NamedTuple):
    """Tell how P prototypes are used over a folder.

    Attributes:
        pixels (Tensor): P, the number of pixels that each explains best.
        scores (Tensor): P×k, descending: of its k nearest segments the mean
            cosine of their pixels; −inf where there are fewer.
        images (Tensor): P×k, the indices of their images.
        readable (List[int]): Images that took part.
        unreadable (List[Tuple[str, str]]): Path and reason of those that could
            not be read.
    """

    pixels: Tensor
    scores: Tensor
    images: Tensor
    readable: List[int]
    unreadable: List[Tuple[str, str]]

    def entropy(self) -> float:
        """Return the entropy of the pixels over the prototypes, in bits: 0 to log2 P."""
        share = self.pixels[self.pixels > 0] / self.pixels.sum()
        return float(-(share * share.log2()).sum()) + 0.0  # not −0


@torch.no_grad()
def survey(model: SlotCon, loader: DataLoader, nearest: int = 6) -> Survey:
    """Count pixels, and find the nearest segments of each prototype.

    Images are ranked as by the published ``viz_slots.py``: by the mean cosine
    of the prototype and the locations that it is best for; here of pixels,
    after upsampling, and segments smaller than one grid cell are left out.
    Memory does not grow with the images.

    Args:
        model (SlotCon): In eval mode, on any device.
        loader (DataLoader): Of :func:`image_loader`.
        nearest (int): k. Defaults to 6.

    Returns:
        Survey: On the CPU.

    Raises:
        DataError: When no image can be read (of the loader's data set).
    """
    num = model.num_groups
    pixels = torch.zeros(num, dtype=torch.float64)
    scores = torch.full((num, nearest), -torch.inf)
    images = torch.full((num, nearest), -1)
    readable, unreadable = [], []
    for batch in loader:
        labels, best, cell = _segment(model, batch)
        for i, sample in enumerate(batch['data_samples']):
            if sample.unreadable:  # and another image in its place
                unreadable.append(sample.unreadable[0])
                continue
            readable.append(sample.sample_idx)
            area = labels[i].flatten().bincount(minlength=num).double()
            total = labels[i].flatten().bincount(best[i].flatten(), minlength=num)
            mean = (total / area).masked_fill(area < cell, -torch.inf).float()
            pixels += area
            scores, order = torch.cat([scores, mean[:, None]], dim=1).topk(nearest, dim=1)
            images = torch.cat([images, torch.full((num, 1), sample.sample_idx)], dim=1)
            images = images.gather(1, order)
    return Survey(pixels, scores, images, readable, unreadable)


class Picture(NamedTuple):
    """Hold an image and the prototypes of its pixels.

    Attributes:
        path (str): The file.
        image (np.ndarray): H×W×3 uint8, RGB.
        labels (np.ndarray): H×W, prototypes.
    """

    path: str
    image: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def segment_images(
    model: SlotCon, loader: DataLoader, indices: Sequence[int]
) -> Dict[int, Picture]:
    """Segment some of the images again, to be drawn.

    Args:
        model (SlotCon): As in :func:`survey`.
        loader (DataLoader): The same.
        indices (Sequence[int]): Indices of images of its data set.

    Returns:
        Dict[int, Picture]: By index.
    """
    chosen = Subset(loader.dataset, sorted(set(indices)))
    pictures = {}
    batches = DataLoader(
        chosen, loader.batch_size, num_workers=loader.num_workers, collate_fn=default_collate
    )
    for batch in batches:
        labels, _, _ = _segment(model, batch)
        images = batch['inputs'].flip(1).permute(0, 2, 3, 1).cpu().numpy()  # BGR to RGB
        for sample, image, label in zip(batch['data_samples'], images, labels):
            pictures[sample.sample_idx] = Picture(sample.img_path, image, label.numpy())
    return pictures


@torch.no_grad()
def group_pixels(
    model: GroupsPixels, images: Sequence[np.ndarray], names: Sequence[str]
) -> List[Picture]:
    """Find the groups of the pixels of images in their own shapes.

    Args:
        model (GroupsPixels): In eval mode.
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        names (Sequence[str]): Names of the images.

    Returns:
        List[Picture]: One an image.
    """
    pictures = []
    for image, name in zip(images, names):
        bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
        labels, _, _ = _segment(model, dict(inputs=bgr[None], data_samples=None))
        pictures.append(Picture(name, image, labels[0].numpy()))
    return pictures


def _segment(model: GroupsPixels, batch: dict) -> Tuple[Tensor, Tensor, float]:
    """Return the groups of pixels and their scores, N×H×W, and the pixels of a grid cell."""
    size = batch['inputs'].shape[-2:]
    scores = model.group_scores(model.data_preprocessor(batch)['inputs'])
    labels, best = best_groups(scores, size)
    return labels.cpu(), best.double().cpu(), size.numel() / scores.shape[-2:].numel()
