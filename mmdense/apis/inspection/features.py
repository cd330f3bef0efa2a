# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Check the features that a checkpoint's backbone computes of images."""

import os.path as osp
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmdense.apis.inspection.tensors import Note

_NETWORKS = ('pretrained', 'random')


def feature_health(
    checkpoint: str,
    folder: str,
    prefix: Optional[str] = None,
    num_images: int = 32,
    size: int = 224,
) -> Tuple[List[str], List[Note]]:
    """Compare the spread of the last stage's features of images with a random network's.

    Args:
        checkpoint (str): Path or URL.
        folder (str): Folder of images, searched with its sub-folders.
        prefix (str, optional): Take the tensors below this prefix instead.
        num_images (int): At most, from all over the folder, at least 2. Defaults to 32.
        size (int): Side in pixels that images are cut to. Defaults to 224.

    Returns:
        tuple[list[str], list[Note]]: Rows of a table, and their meaning. ``std`` and ``rank``
        are those of :class:`~mmdense.engine.hooks.HealthMonitorHook`, of features before any
        projection, normalised to length 1: ``dense`` of locations, ``global`` of images.

    Raises:
        DataError: When there are no images, or fewer than two can be read.
    """
    from mmdense.checkpoints.backbones import load_backbones
    from mmdense.checkpoints.io import cached_path

    local = cached_path(checkpoint) if '://' in checkpoint else checkpoint  # it was read already
    backbones = load_backbones(local, prefix)
    images = _read_images(folder, num_images, size, backbones.load)
    values, channels = _measure_spread(backbones, images)
    return _tabulate(values, channels), _judge(values['pretrained'], len(images))


def _read_images(folder: str, num_images: int, size: int, load: Any) -> List[Tensor]:
    """Read images from all over a folder, each 1×C×H×W uint8.

    Raises:
        DataError: When fewer than two can be read.
    """
    from torch.utils.data import DataLoader, Subset

    from mmdense.apis.planning.survey import open_photographs
    from mmdense.datasets import default_collate
    from mmdense.datasets.image_loader import image_loader
    from mmdense.utils.errors import DataError

    channels = None if load.channels == 3 else load.channels
    found, _, _ = open_photographs([osp.abspath(osp.expanduser(folder))], channels=channels)
    dataset = image_loader(found, size, load=load).dataset
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).round().int()
    images = []
    for batch in DataLoader(Subset(dataset, chosen.tolist()), 1, collate_fn=default_collate):
        if not batch['data_samples'][0].get('unreadable'):
            images.append(batch['inputs'])
    if len(images) < 2:
        raise DataError(f'{folder} has {len(images)} image that can be read: two are needed')
    return images


def _measure_spread(
    backbones: Any, images: List[Tensor]
) -> Tuple[Dict[str, Dict[str, float]], int]:
    """Return ``std`` and ``rank`` by network and kind of features, and the number of channels."""
    from mmdense.evaluation.collapse import spread
    from mmdense.evaluation.feature_maps import stage_maps
    from mmdense.models.utils.batch_norm import calibrate

    inputs = [backbones.preprocessor(dict(inputs=x, data_samples=None))['inputs'] for x in images]
    calibrate(backbones.random, inputs)
    values: Dict[str, Dict[str, float]] = {}
    for name in _NETWORKS:
        maps = stage_maps(getattr(backbones, name), inputs)[-1]
        locations = torch.cat([m.flatten(1).t() for m in maps])
        features = {'dense': locations, 'global': torch.stack([m.mean((1, 2)) for m in maps])}
        values[name] = {
            f'{kind}_{key}': float(value)
            for kind, x in features.items()
            for key, value in spread(normalize(x, dim=1)).items()
        }
    return values, locations.size(1)


def _tabulate(values: Dict[str, Dict[str, float]], channels: int) -> List[str]:
    """Format a table of the networks' values, and explain it."""
    rows = [f'{"":10}  ' + '  '.join(f'{key:>11}' for key in values['random'])]
    for name in _NETWORKS:
        rows.append(f'{name:10}  ' + '  '.join(f'{v:11.3g}' for v in values[name].values()))
    return [
        *rows,
        'std: spread of the features, 0 all alike, 1 all around; rank: directions in which they '
        f'differ, 1 to {channels};',
        'dense: of locations, global: of complete images; random: as without training.',
        'These numbers show collapse: std near 0, rank near 1. They do not rank checkpoints: '
        'random weights can have more.',
        'To compare checkpoints, score them by labels: `mmdense pretrain --labels`, '
        'tools/evaluate_features.py.',
    ]


def _judge(values: Dict[str, float], num_images: int) -> List[Note]:
    """Compare the pretrained network's values with the bounds of collapse."""
    from mmdense.evaluation.collapse import THRESHOLDS

    notes = []
    for key, value in values.items():
        rule = next(rule for rule in THRESHOLDS if key.endswith(rule.name))
        if rule.is_violated(value, rule.bound):
            # images of one kind are alike without any fault
            level = 'warning' if key.startswith('dense') else 'note'
            notes.append(Note(level, f'{key} is {value:.3g}: {rule.meaning}'))
    return notes or [Note('ok', f'no collapse: the features of {num_images} images differ')]
