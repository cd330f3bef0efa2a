# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import List, Optional, Tuple

import torch
from torch.nn.functional import normalize

from mmdense.apis.inspection.tensors import Note
from mmdense.checkpoints.io import cached_path


def feature_health(
    checkpoint: str,
    folder: str,
    prefix: Optional[str] = None,
    num_images: int = 32,
    size: int = 224,
) -> Tuple[List[str], List[Note]]:
    """How the last stage's features of images are spread, beside a random network's.

    Args:
        checkpoint (str): Path or URL.
        folder (str): Of images, searched with its sub-folders.
        prefix (str, optional): Take the tensors below this prefix instead.
        num_images (int): At most, from all over the folder, at least 2. Defaults to 32.
        size (int): Side in pixels that images are cut to. Defaults to 224.

    Returns:
        tuple[list[str], list[Note]]: Rows of a table, and what they mean. ``std`` and ``rank``
        are those of :class:`~mmdense.engine.hooks.HealthMonitorHook`, of features before any
        projection, normalised to length 1: ``dense`` of cells, ``global`` of images.

    Raises:
        DataError: When there are no images, or fewer than two can be read.
    """
    from torch.utils.data import DataLoader, Subset

    from mmdense.checkpoints.backbones import load_backbones
    from mmdense.datasets import default_collate
    from mmdense.datasets.image_loader import image_loader
    from mmdense.evaluation.collapse import SIGNS, spread
    from mmdense.evaluation.feature_maps import stage_maps
    from mmdense.models.utils.batch_norm import calibrate
    from mmdense.utils.errors import DataError

    dataset = image_loader(folder, size).dataset
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).round().int()
    images = []
    for batch in DataLoader(Subset(dataset, chosen.tolist()), 1, collate_fn=default_collate):
        if not batch['data_samples'][0].get('unreadable'):
            images.append(batch['inputs'])
    if len(images) < 2:
        raise DataError(f'{folder} has {len(images)} image that can be read: two are needed')
    backbones = load_backbones(_local(checkpoint), prefix)
    inputs = [backbones.preprocessor(dict(inputs=x, data_samples=None))['inputs'] for x in images]
    calibrate(backbones.random, inputs)
    values = {}
    for name in ('pretrained', 'random'):
        maps = stage_maps(getattr(backbones, name), inputs)[-1]
        cells = torch.cat([m.flatten(1).t() for m in maps])
        features = {'dense': cells, 'global': torch.stack([m.mean((1, 2)) for m in maps])}
        for kind, x in features.items():
            for key, value in spread(normalize(x, dim=1)).items():
                values[name, f'{kind}_{key}'] = float(value)
    keys = [key for name, key in values if name == 'random']
    rows = [f'{"":10}  ' + '  '.join(f'{key:>11}' for key in keys)]
    for name in ('pretrained', 'random'):
        rows.append(f'{name:10}  ' + '  '.join(f'{values[name, key]:11.3g}' for key in keys))
    rows.append(
        'std: spread of the features, 0 all alike, 1 all around; rank: directions in which they '
        f'differ, 1 to {cells.size(1)};'
    )
    rows.append(
        'dense: of cells, global: of whole images; more is better; random: as without training'
    )
    notes = []
    for key in keys:
        value = values['pretrained', key]
        sign = next(sign for sign in SIGNS if key.endswith(sign.name))
        if sign.beyond(value, sign.bound):
            # images of one kind are alike without any fault
            level = 'warning' if key.startswith('dense') else 'note'
            notes.append(Note(level, f'{key} is {value:.3g}: {sign.meaning}'))
    if not notes:
        notes.append(Note('ok', f'no collapse: the features of {len(images)} images differ'))
    return rows, notes


def _local(checkpoint: str) -> str:
    """The path of a file that was read already."""
    return cached_path(checkpoint) if '://' in checkpoint else checkpoint
