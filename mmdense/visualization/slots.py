# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What SlotCon's prototypes stand for, counted and drawn.

A segment is the set of pixels of one image whose best prototype is the same.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from mmengine.config import Config
from mmengine.registry import DefaultScope
from scipy.ndimage import binary_dilation, distance_transform_edt
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mmdense.checkpoints import read_checkpoint, saved_model_config
from mmdense.datasets import UnlabeledDataset, default_collate
from mmdense.models import SlotCon
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError


def load_slotcon(checkpoint: str, config: Optional[str] = None) -> SlotCon:
    """A trained SlotCon with its teacher's weights, in eval mode.

    Args:
        checkpoint (str): A training checkpoint.
        config (str, optional): The config of the run. Defaults to the one that
            MMEngine wrote into the checkpoint, which is read as data: nothing
            in it runs.

    Returns:
        SlotCon: On the CPU.

    Raises:
        CheckpointError: When it is no checkpoint, of another algorithm, holds
            no config, or does not fit it.
        InputError: When ``config`` is not SlotCon's.
    """
    content = read_checkpoint(checkpoint)
    content = content if isinstance(content, dict) else {}
    meta = content.get('meta') if isinstance(content.get('meta'), dict) else {}
    about = meta.get('mmdense') if isinstance(meta.get('mmdense'), dict) else {}
    tensors = content.get('state_dict')
    prefix = 'encoder_k.module.'
    tensors = tensors if isinstance(tensors, dict) else {}
    teacher = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    if about.get('algorithm', 'SlotCon') != 'SlotCon':
        raise CheckpointError(
            f'{checkpoint} is of {about["algorithm"]}, which has no prototypes; a checkpoint of '
            'SlotCon is needed'
        )
    if 'grouping.slot_embed.weight' not in teacher:
        raise CheckpointError(
            f'{checkpoint} holds no SlotCon with its prototypes: take a checkpoint of the '
            'training run (epoch_*.pth), not an exported backbone'
        )
    if config is None:
        source = 'its own config'
        cfg = saved_model_config(meta, checkpoint)
        if cfg is None:
            raise CheckpointError(
                f'{checkpoint} does not say with which model it was trained: give the config of '
                'the run, --config'
            )
    else:
        source = config
        cfg = Config.fromfile(config).get('model') or {}
    with DefaultScope.overwrite_default_scope('mmdense'):
        if cfg.get('type') not in ('SlotCon', 'mmdense.SlotCon'):
            raise InputError(f'the model of {source} is {cfg.get("type")}, not SlotCon')
        model = MODELS.build(cfg)
    module = model.encoder_k.module
    got, wanted = (
        {k: tuple(v.shape) for k, v in tensors.items()}
        for tensors in (teacher, module.state_dict())
    )
    wrong = sorted(k for k in {**wanted, **got} if got.get(k) != wanted.get(k))
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{checkpoint} does not fit the model of {source}: {len(wrong)} of the teacher's "
            f'tensors differ, first {key} (file: {got.get(key, "none")}, model: '
            f'{wanted.get(key, "none")})'
        )
    module.load_state_dict(teacher)
    return model.eval()


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


class Survey(NamedTuple):
    """How P prototypes are used over a folder.

    Attributes:
        pixels (Tensor): P, how many are best explained by each.
        scores (Tensor): P×k, descending: of its k nearest segments the mean
            cosine of their pixels; −inf where there are fewer.
        images (Tensor): P×k, which images these are in.
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
        """Of the pixels over the prototypes, in bits: 0 to log2 P."""
        share = self.pixels[self.pixels > 0] / self.pixels.sum()
        return float(-(share * share.log2()).sum()) + 0.0  # not −0


@torch.no_grad()
def survey(model: SlotCon, loader: DataLoader, nearest: int = 6) -> Survey:
    """Counts pixels, and finds the nearest segments of each prototype.

    As the published ``viz_slots.py`` ranks images: by the mean cosine of the
    prototype and the cells that it is best for; here of pixels, after
    upsampling, and segments smaller than one cell are left out. Memory does
    not grow with the images.

    Args:
        model (SlotCon): In eval mode, on any device.
        loader (DataLoader): Of :func:`image_loader`.
        nearest (int): k. Defaults to 6.

    Returns:
        Survey: On the CPU.

    Raises:
        DataError: When no image can be read (of the loader's data set).
    """
    num = model.encoder_k.module['grouping'].slot_embed.num_embeddings
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
    """An image and the prototypes of its pixels.

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
    """Some of the images again, to be drawn.

    Args:
        model (SlotCon): As in :func:`survey`.
        loader (DataLoader): The same.
        indices (Sequence[int]): Which images of its data set.

    Returns:
        Dict[int, Picture]: By index.
    """
    chosen = Subset(loader.dataset, sorted(set(indices)))
    pictures = {}
    for batch in _loader(chosen, loader.batch_size, loader.num_workers):
        labels, _, _ = _segment(model, batch)
        images = batch['inputs'].flip(1).permute(0, 2, 3, 1).cpu().numpy()  # BGR to RGB
        for sample, image, label in zip(batch['data_samples'], images, labels):
            pictures[sample.sample_idx] = Picture(sample.img_path, image, label.numpy())
    return pictures


@torch.no_grad()
def group_pixels(
    model: SlotCon, images: Sequence[np.ndarray], names: Sequence[str]
) -> List[Picture]:
    """Images in their own shapes, and the prototypes of their pixels.

    Args:
        model (SlotCon): In eval mode.
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        names (Sequence[str]): Of the images.

    Returns:
        List[Picture]: One an image.
    """
    pictures = []
    for image, name in zip(images, names):
        bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
        labels, _, _ = _segment(model, dict(inputs=bgr[None], data_samples=None))
        pictures.append(Picture(name, image, labels[0].numpy()))
    return pictures


def _segment(model: SlotCon, batch: dict) -> Tuple[Tensor, Tensor, float]:
    """Prototypes of pixels and their scores, N×H×W; and pixels in a cell."""
    size = batch['inputs'].shape[-2:]
    scores = model.teacher_scores(model.data_preprocessor(batch)['inputs'])
    labels, best = model.best_prototypes(scores, size)
    return labels.cpu(), best.double().cpu(), size.numel() / scores.shape[-2:].numel()


def prototype_colours(pixels: Tensor) -> np.ndarray:
    """One colour a prototype; those that are used most differ most.

    Args:
        pixels (Tensor): P, as in :class:`Survey`.

    Returns:
        np.ndarray: P×3, RGB in [0, 1].
    """
    rank = pixels.argsort(descending=True, stable=True).argsort().numpy()
    # Hues a golden section apart, so that neighbours in rank are far apart; then the same in other
    # shades.
    shades = np.array([(0.85, 1.0), (0.9, 0.6), (0.4, 1.0)])
    hue = 0.618034 * rank % 1
    return hsv_to_rgb(np.column_stack([hue, shades[rank // 9 % 3]]))


def paint_groups(picture: Picture, colours: np.ndarray) -> np.ndarray:
    """An image in grey under the colours of its pixels' prototypes, with white borders.

    Args:
        picture (Picture): The image.
        colours (np.ndarray): P×3, of :func:`prototype_colours`.

    Returns:
        np.ndarray: H×W×3 in [0, 1].
    """
    grey = picture.image.mean(axis=2, keepdims=True) / 255
    overlay = 0.4 * grey + 0.6 * colours[picture.labels]
    overlay[_borders(picture.labels)] = 1
    return overlay


def draw_groups(
    pictures: Sequence[Picture], colours: np.ndarray, title: str = '', path: Optional[str] = None
) -> Figure:
    """Every image, and beside it the same coloured by prototype.

    Segments of 2 % of an image or more bear the number of their prototype.

    Args:
        pictures (Sequence[Picture]): One or more.
        colours (np.ndarray): P×3, of :func:`prototype_colours`.
        title (str): Of the whole picture.
        path (str, optional): Also save it there; the suffix is the format.

    Returns:
        Figure: No display is needed, and pyplot does not know it.
    """
    pairs = 1 if len(pictures) <= 3 else 2 if len(pictures) <= 8 else 3  # in a row
    rows = -(-len(pictures) // pairs)
    side = 3.4 if pairs == 1 else 2.6  # inches
    width, height = 2 * pairs * (side + 0.1), rows * (side + 0.25) + 0.8
    figure, axes = _grid(rows, 2 * pairs, width, height, title)
    for axis in axes.flat[2 * len(pictures) :]:
        axis.axis('off')
    for picture, plain, coloured in zip(pictures, axes.flat[::2], axes.flat[1::2]):
        plain.imshow(picture.image)
        plain.set_title(_short_name(picture.path), fontsize=10)
        coloured.imshow(paint_groups(picture, colours))
        numbers, areas = np.unique(picture.labels, return_counts=True)
        groups = 'prototype' if len(numbers) == 1 else 'prototypes'
        coloured.set_title(f'{len(numbers)} {groups}', fontsize=10)
        for number in numbers[areas >= 0.02 * picture.labels.size]:
            # inside the segment, as far from its border as can be
            inside = distance_transform_edt(np.pad(picture.labels == number, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(inside.argmax(), inside.shape)
            coloured.text(
                x,
                y,
                str(number),
                ha='center',
                va='center',
                fontsize=9,
                color='white',
                path_effects=[withStroke(linewidth=2.2, foreground='black')],
                clip_on=True,
            )
    return _saved(figure, path)


def draw_nearest(
    found: Survey,
    prototypes: Sequence[int],
    pictures: Dict[int, Picture],
    colours: np.ndarray,
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """A row for each prototype: its nearest segments, the rest dimmed.

    Args:
        found (Survey): Says which segments.
        prototypes (Sequence[int]): Rows, from top to bottom.
        pictures (Dict[int, Picture]): The images of these segments.
        colours (np.ndarray): P×3, of :func:`prototype_colours`.
        title (str): Of the whole picture.
        path (str, optional): Also save it there; the suffix is the format.

    Returns:
        Figure: No display is needed, and pyplot does not know it.
    """
    columns = max(1, int((found.scores[prototypes] > -torch.inf).sum(dim=1).max()))
    width, height = 2.1 * columns + 1.7, 2.35 * len(prototypes) + 0.7
    figure, axes = _grid(len(prototypes), columns, max(width, 7), height, title)
    for prototype, row in zip(prototypes, axes):
        share = float(found.pixels[prototype] / found.pixels.sum())
        row[0].set_ylabel(
            f'prototype {prototype}\n{share:.1%} of pixels',
            rotation=0,
            ha='right',
            va='center',
            labelpad=12,
            fontsize=10,
        )
        segments = zip(found.scores[prototype].tolist(), found.images[prototype].tolist())
        for axis, (score, index) in zip(row, segments):
            if score == -torch.inf:  # nothing left; the label of the row stays
                for spine in axis.spines.values():
                    spine.set_visible(False)
                continue
            picture = pictures[index]
            mask = picture.labels == prototype
            grey = picture.image.mean(axis=2, keepdims=True) / 255
            shown = np.where(mask[..., None], picture.image / 255, 0.15 + 0.3 * grey)
            outline = binary_dilation(mask, iterations=max(1, len(mask) // 100)) & ~mask
            shown[outline] = colours[prototype]
            axis.imshow(shown)
            axis.set_xlabel(f'cosine {score:.2f}', fontsize=9, labelpad=3)
    return _saved(figure, path)


def _grid(rows: int, columns: int, width: float, height: float, title: str):
    """A figure of so many inches with axes that have no ticks."""
    figure = Figure(figsize=(width, height), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _saved(figure: Figure, path: Optional[str]) -> Figure:
    if path is not None:
        figure.savefig(path)
    return figure


def _borders(labels: np.ndarray) -> np.ndarray:
    """H×W, whether another label begins to the right or below."""
    borders = np.zeros(labels.shape, dtype=bool)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders


def _short_name(path: str, length: int = 26) -> str:
    name = path.replace('\\', '/').rsplit('/', 1)[-1]
    return name if len(name) <= length else f'{name[: length - 9]}…{name[-8:]}'
