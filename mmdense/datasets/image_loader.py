# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from mmdense.datasets import UnlabeledDataset, default_collate


def image_loader(folder: str, size: int, batch_size: int = 16, num_workers: int = 0) -> DataLoader:
    """The images of a folder, all of one size, in order.

    As in the published evaluation the short side is scaled and the middle cut
    out. Images that cannot be read come as others with ``unreadable`` set, see
    :class:`~mmdense.datasets.UnlabeledDataset`.

    Args:
        folder (str): Searched with its sub-folders.
        size (int): Side of the square in pixels.
        batch_size (int): Images a batch. Defaults to 16.
        num_workers (int): Processes that load. Defaults to 0, this one.

    Returns:
        DataLoader: Batches for a data preprocessor, ``inputs`` N×3×size×size
        uint8, BGR.
    """
    pipeline = [
        dict(type='mmdense.LoadImage'),
        dict(
            type='mmpretrain.ResizeEdge',
            scale=size,
            edge='short',
            interpolation='bicubic',
            backend='pillow',
        ),
        dict(type='mmpretrain.CenterCrop', crop_size=size),
        dict(type='mmpretrain.PackInputs', meta_keys=('img_path', 'sample_idx')),
    ]
    with DefaultScope.overwrite_default_scope('mmdense'):
        dataset = UnlabeledDataset(data_root=folder, pipeline=pipeline)
    return _loader(dataset, batch_size, num_workers)


def _loader(dataset, batch_size: int, num_workers: int) -> DataLoader:
    return DataLoader(
        dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=default_collate
    )
