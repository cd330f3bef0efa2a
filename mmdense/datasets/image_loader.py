# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Union

from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from mmdense.datasets import LoadImage, UnlabeledDataset, default_collate


def image_loader(
    images: Union[str, dict],
    size: int,
    batch_size: int = 16,
    num_workers: int = 0,
    load: Optional[LoadImage] = None,
) -> DataLoader:
    """Build a loader of images, all of one size, in order.

    The short side is scaled and the center cut out, as in the published evaluation. An image that
    cannot be read is replaced by another with ``unreadable`` set, see
    :class:`~mmdense.datasets.UnlabeledDataset`.

    Args:
        images (str | dict): Their folder, with its sub-folders; or arguments of the data set.
        size (int): Side of the square in pixels.
        batch_size (int): Images of a batch. Defaults to 16.
        num_workers (int): Processes that load. Defaults to 0, this process.
        load (LoadImage, optional): Reads the images. Defaults to ``LoadImage()``.

    Returns:
        DataLoader: Batches for a data preprocessor, ``inputs`` N×C×size×size
        uint8, BGR with 3 channels.
    """
    load = load or LoadImage()
    pipeline = [
        load,
        dict(
            type='mmpretrain.ResizeEdge',
            scale=size,
            edge='short',
            interpolation='bicubic',
            backend='pillow' if load.channels == 3 else 'cv2',
        ),
        dict(type='mmpretrain.CenterCrop', crop_size=size),
        dict(type='mmdense.PackInputs', meta_keys=('img_path', 'sample_idx')),
    ]
    with DefaultScope.overwrite_default_scope('mmdense'):
        images = images if isinstance(images, dict) else dict(data_root=images)
        dataset = UnlabeledDataset(**images, pipeline=pipeline)
    return DataLoader(
        dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=default_collate
    )
