# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What each stage of a backbone sees: its features as colours, pretrained beside random.

The colours are the first three principal components, as in `DINOv2
<https://arxiv.org/abs/2304.07193>`_, figure 1, here without a threshold that
separates the foreground.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmpretrain.models import ResNet
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from mmdense.checkpoints import read_checkpoint, recognise, saved_model_config
from mmdense.checkpoints.formats import resnet_stages
from mmdense.datasets import LoadImage, UnreadableImageError
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, DataError, InputError

from .slots import _short_name

# ImageNet's, for files that do not say what their backbone was trained with.
_IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


class Backbones(NamedTuple):
    """A backbone twice, in eval mode, on the CPU.

    Attributes:
        pretrained (nn.Module): With the weights of the file.
        random (nn.Module): With random ones, see :func:`calibrate`.
        preprocessor (nn.Module): Of mmpretrain; N×3×H×W uint8, BGR, to
            what the backbone takes.
        about (str): What it is and how that is known.
    """

    pretrained: nn.Module
    random: nn.Module
    preprocessor: nn.Module
    about: str


def load_backbones(
    checkpoint: str, prefix: Optional[str] = None, config: Optional[str] = None
) -> Backbones:
    """Builds the backbone of a checkpoint twice: pretrained and random.

    The architecture is that of the config that MMEngine wrote into the file,
    which is read as data: nothing in it runs. A file without one must hold a
    ResNet, whose depth shows in its tensors, for images normalised as usual
    for ImageNet.

    Args:
        checkpoint (str): Any that :func:`mmdense.checkpoints.recognise` knows.
        prefix (str, optional): Take the tensors below this prefix instead of
            what the file is for.
        config (str, optional): The config of the run, in place of the one in
            the file.

    Returns:
        Backbones: The random one is the same at every call. All of its
        normalisation scales are 1, also those that a recipe starts at 0 so
        that blocks are identities: it is to be as deep as the other.

    Raises:
        CheckpointError: When the file is no checkpoint, holds code, holds no
            backbone, one of unknown architecture, or one that does not fit
            the config.
    """
    content = read_checkpoint(checkpoint)
    found = recognise(content, name=checkpoint, prefix=prefix)
    if config is None:
        model = saved_model_config(found.meta, checkpoint, parts=['backbone']) or {}
    else:
        model = Config.fromfile(config).get('model') or {}
    cfg, source = model.get('backbone'), config or "the run's config"
    if isinstance(cfg, dict):
        cfg = {k: v for k, v in cfg.items() if k not in ('init_cfg', 'pretrained')}
    else:
        cfg, source = _resnet_config(found.backbone, checkpoint), 'its tensors'
    weights = dict(type='mmdense.SelfSupPretrained', checkpoint=checkpoint, prefix=prefix)
    scope = 'mmdense' if config or 'mmdense' in found.meta else 'mmpretrain'
    with DefaultScope.overwrite_default_scope(scope), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [MODELS.build(dict(cfg, **init)) for init in (dict(init_cfg=weights), {})]
        for network in networks:
            network.init_weights()
    pretrained, random = map(revert_sync_batchnorm, networks)
    pretrained.eval()
    random.eval()
    for norm in _norms(random):
        nn.init.ones_(norm.weight)
    pixels = model.get('data_preprocessor') or _IMAGENET
    pixels = {k: pixels[k] for k in ('mean', 'std', 'to_rgb', 'bgr_to_rgb') if k in pixels}
    preprocessor = MODELS.build(dict(pixels, type='mmpretrain.SelfSupDataPreprocessor'))
    kind = f'{type(random).__name__}{f"-{random.depth}" if isinstance(random, ResNet) else ""}'
    return Backbones(pretrained, random, preprocessor, f'{kind} by {source}')


def _resnet_config(tensors: Dict[str, Tensor], name: str) -> dict:
    """The ResNet that has such tensors."""
    convs = {2: 'BasicBlock', 3: 'Bottleneck'}
    blocks, kinds = zip(*(resnet_stages(tensors) or [(0, 0)]))
    for depth, (kind, stages) in ResNet.arch_settings.items():
        if stages == blocks and {convs.get(k) for k in kinds} == {kind.__name__}:
            return dict(type='mmpretrain.ResNet', depth=depth)
    raise CheckpointError(
        f'{name} holds a backbone of unknown kind: it has no config of its run, and is not a '
        'ResNet-18, 34, 50, 101 or 152 by its tensors'
    )


def _norms(backbone: nn.Module) -> List[_BatchNorm]:
    return [m for m in backbone.modules() if isinstance(m, _BatchNorm)]


@torch.no_grad()
def calibrate(backbone: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Gives BatchNorm the statistics of some images, equally weighted.

    A random backbone without them would be worse than it has to be.

    Args:
        backbone (nn.Module): Left in eval mode.
        inputs (Sequence[Tensor]): Each N×3×H×W, as the backbone takes them.
    """
    backbone.eval()
    norms = _norms(backbone)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain averages
        norm.train()
    for image in inputs:
        backbone(image)
    for norm, momentum in zip(norms, before):
        norm.momentum = momentum
        norm.eval()


def read_images(paths: Sequence[str], size: int) -> List[np.ndarray]:
    """Image files, upright, in their own aspect ratios.

    Args:
        paths (Sequence[str]): The files.
        size (int): What the longer side is scaled to, in pixels.

    Returns:
        List[np.ndarray]: Each H×W×3 uint8, RGB.

    Raises:
        DataError: When one of them cannot be read.
    """
    images = []
    for path in paths:
        try:
            image = LoadImage().transform(dict(img_path=path))['img']
        except UnreadableImageError as error:
            raise DataError(str(error)) from None
        images.append(fit_image(image, size))
    return images


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """Scales an image.

    Args:
        image (np.ndarray): H×W×3 uint8, BGR.
        size (int): What the longer side becomes, in pixels.

    Returns:
        np.ndarray: H'×W'×3 uint8, RGB.
    """
    image = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    scale = size / max(image.size)
    shape = [max(1, round(side * scale)) for side in image.size]
    return np.asarray(image.resize(shape, Image.BICUBIC))


def to_inputs(images: Sequence[np.ndarray], preprocessor: nn.Module) -> List[Tensor]:
    """Images as a backbone takes them.

    Args:
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        preprocessor (nn.Module): Of :class:`Backbones`.

    Returns:
        List[Tensor]: Each 1×3×H×W.
    """
    bgr = [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) for image in images]
    return [preprocessor(dict(inputs=x[None], data_samples=None))['inputs'] for x in bgr]


@torch.no_grad()
def stage_maps(backbone: nn.Module, inputs: Sequence[Tensor]) -> List[List[Tensor]]:
    """The output of each stage, whatever the backbone itself returns.

    Args:
        backbone (nn.Module): Of mmpretrain: a ResNet or one that is built like
            it (``res_layers``), or one with ``stages``, such as ConvNeXt and
            Swin.
        inputs (Sequence[Tensor]): I images, each 1×3×H×W.

    Returns:
        List[List[Tensor]]: By stage, from stage 2 (the first one, in ResNet's
        numbers, whose stem is stage 1), and image: C×h×w.

    Raises:
        InputError: For backbones of other kinds, or features that are not
            finite.
    """
    stages = getattr(backbone, 'res_layers', None) or getattr(backbone, 'stages', ())
    stages = [getattr(backbone, s) if isinstance(s, str) else s for s in stages]
    if not stages:
        raise InputError(
            f'{type(backbone).__name__} is a backbone of unknown kind: it has no list of stages '
            '(res_layers or stages)'
        )
    maps = [[] for _ in stages]

    def keep(number):
        def hook(_stage, _args, out):
            if isinstance(out, tuple):  # Swin's: 1×hw×C and (h, w)
                out = out[0].transpose(1, 2).unflatten(2, tuple(out[1]))
            maps[number].append(out[0])

        return hook

    hooks = [stage.register_forward_hook(keep(i)) for i, stage in enumerate(stages)]
    try:
        for image in inputs:
            backbone(image)
    finally:
        for hook in hooks:
            hook.remove()
    for number, found in enumerate(maps, start=2):
        if not found or found[0].dim() != 3:
            raise InputError(
                f'{type(backbone).__name__} is a backbone of unknown kind: no maps from its stages'
            )
        if not all(m.isfinite().all() for m in found):
            raise InputError(
                f'features of stage {number} are not finite: the weights are damaged, or training '
                'diverged'
            )
    return maps


class Stage(NamedTuple):
    """The features of one stage, to be drawn.

    Attributes:
        colours (List[np.ndarray]): Of each image, h×w×3 in [0, 1].
        explained (float): Share of the variance that the colours show, 0 to 1.
        channels (int): C.
    """

    colours: List[np.ndarray]
    explained: float
    channels: int


def pca_colours(maps: Sequence[Tensor], normalized: bool = False) -> Stage:
    """Features to colours: red is the first principal component.

    One analysis for all images, so that equal colours mean similar features.
    A component goes from 0 at its 1st percentile to 1 at its 99th, beyond
    which it is clipped. Its sign makes the largest loading positive. A
    component without variance is 0.5.

    Args:
        maps (Sequence[Tensor]): Of each image, C×h×w; h and w may differ.
        normalized (bool): Whether features are scaled to unit length first, as
            where they are compared by cosine. Defaults to False.

    Returns:
        Stage: The colours.
    """
    cells = [m.flatten(1).T.double() for m in maps]  # hw×C
    if normalized:
        cells = [normalize(x, dim=1) for x in cells]
    count = sum(map(len, cells))
    mean = sum(x.sum(dim=0) for x in cells) / count
    cells = [x - mean for x in cells]
    # By the C×C covariance: the cells of all images together can be many.
    variances, axes = torch.linalg.eigh(sum(x.T @ x for x in cells) / count)
    variances, axes = variances.flip(0)[:3].clamp(min=0), axes.flip(1)[:, :3]
    total = sum(x.square().sum() for x in cells) / count
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    # Less than the rounding errors of float32 features is no variance.
    axes = axes * (variances > 1e-10 * (total + mean.square().sum()))

    scores = [(x @ axes).numpy() for x in cells]
    every = np.concatenate(scores)
    low, high = np.percentile(every, (1, 99), axis=0)
    same = high <= low  # all but a few cells are equal: these few count
    low, high = np.where(same, every.min(axis=0), low), np.where(same, every.max(axis=0), high)
    colours = []
    for score, m in zip(scores, maps):
        colour = np.full((len(score), 3), 0.5)
        varies = np.flatnonzero(high > low)
        scaled = (score[:, varies] - low[varies]) / (high - low)[varies]
        colour[:, varies] = scaled.clip(0, 1)
        colours.append(colour.reshape(*m.shape[1:], 3))
    explained = float(variances.sum() / total) if total > 0 else 0.0
    return Stage(colours, min(explained, 1.0), len(mean))


def draw_levels(
    images: Sequence[np.ndarray],
    names: Sequence[str],
    networks: Dict[str, Sequence[Stage]],
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """Each image, and beside it a row for each network and a column for each stage.

    Args:
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        names (Sequence[str]): Of the images, paths or others.
        networks (Dict[str, Sequence[Stage]]): Name to stages, as many of each.
        title (str): Of the whole picture.
        path (str, optional): Also save it there; the suffix is the format.

    Returns:
        Figure: No display is needed, and pyplot does not know it.
    """
    columns = 1 + len(next(iter(networks.values())))
    # inches; a portrait is as high as a square, and narrower
    side = 2.6
    heights = [side * min(1, image.shape[0] / image.shape[1]) for image in images]
    height = (sum(heights) + 0.1 * len(images) + 0.2) * len(networks) + 1.3
    figure = Figure(figsize=(side * columns + 0.5, height), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.05, wspace=0.01, hspace=0.01)
    figure.suptitle(title, fontsize=14)
    grid = figure.add_gridspec(
        len(images) * len(networks),
        columns,
        height_ratios=[h for h in heights for _ in networks],
    )
    for i, image in enumerate(images):
        rows = range(i * len(networks), (i + 1) * len(networks))
        photo = _panel(figure, grid[rows[0] : rows[-1] + 1, 0], image, image.shape)
        photo.set_title(_short_name(names[i]), fontsize=10)
        for row, (name, stages) in zip(rows, networks.items()):
            for column, stage in enumerate(stages, start=1):
                colours = stage.colours[i]
                axis = _panel(figure, grid[row, column], colours, image.shape)
                if row == 0:
                    stride = round(max(image.shape) / max(colours.shape))
                    about = f'stride {stride}, {stage.channels} channels'
                    axis.set_title(f'stage {column + 1}\n{about}', fontsize=11)
                if column == 1:
                    axis.set_ylabel(name, fontsize=11)
                if i == 0:  # it is that of all images
                    axis.set_xlabel(f'{stage.explained:.0%} of variance', fontsize=9, labelpad=2)
    figure.supxlabel(
        'Colours: the first three principal components of the features as red, green and blue, '
        'with the share of variance that they hold.\nOne analysis for each network and stage, over '
        'all images: within these, equal colours are similar features.',
        fontsize=10,
    )
    if path is not None:
        figure.savefig(path)
    return figure


def _panel(figure: Figure, cell, pixels: np.ndarray, shape: Tuple[int, ...]):
    """Pixels as they are, stretched over an image of a shape (H, W, …)."""
    axis = figure.add_subplot(cell)
    axis.imshow(pixels, extent=(0, shape[1], shape[0], 0), interpolation='nearest')
    axis.set_xticks([])
    axis.set_yticks([])
    return axis
