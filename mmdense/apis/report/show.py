# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Show the dense features of a checkpoint next to those of random weights."""

import base64
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from mmdense.apis.planning.survey import open_photographs
from mmdense.checkpoints import read_checkpoint, recognise
from mmdense.checkpoints.backbones import Backbones, load_algorithm, load_backbones
from mmdense.checkpoints.model_config import saved_model_config
from mmdense.datasets import LoadImage, UnreadableImageError
from mmdense.datasets.storage import open_storage
from mmdense.evaluation.feature_maps import fit_image, stage_maps, to_inputs
from mmdense.evaluation.slots import group_pixels, grouping_algorithm, load_grouping
from mmdense.models import registered_algorithms
from mmdense.models.layers import BoxCurriculum, RegionSwap
from mmdense.models.utils.batch_norm import calibrate
from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts, check_fractions
from mmdense.utils.errors import CheckpointError, DataError, InputError
from mmdense.utils.paths import check_writable
from mmdense.visualization.correspondence import (
    Matches,
    Panel,
    draw_correspondence,
    draw_view_pair,
    match_errors,
    match_views,
)
from mmdense.visualization.found_objects import draw_found_objects, find_objects
from mmdense.visualization.found_patches import draw_found_patches, find_patches
from mmdense.visualization.levels import Stage, draw_levels, pca_colours
from mmdense.visualization.noisy_boxes import draw_noisy_boxes, paint_run
from mmdense.visualization.searched_crops import draw_searched_crops, search_crops
from mmdense.visualization.slots import _short_name, draw_groups, paint_groups, prototype_colours
from mmdense.visualization.swapped_regions import draw_mixed_views, mix_views

from .html import data_uri, write_page

NETWORKS = ('pretrained', 'random')
_MOST_CELLS = 576  # grid cells of an image in index.html, whose table holds the square
_LINES = 16


def show(
    checkpoint: str,
    paths: Sequence[str],
    out: str,
    point: Tuple[float, float] = (0.5, 0.5),
    number: int = 4,
    size: int = 512,
    config: Optional[str] = None,
) -> List[str]:
    """Write pictures of the features of a checkpoint, and ``index.html`` with all of them.

    Args:
        checkpoint (str): Any checkpoint that :func:`mmdense.checkpoints.recognise` knows.
        paths (Sequence[str]): Image files, all of which are shown, and folders or archives of
            them; also further checkpoints (``.pth``) of the same run, for pictures over training.
        out (str): The folder to write to; made if there is none.
        point (tuple[float, float]): The point that the other grid cells of an image are compared
            with at first, in fractions of width and height.
        number (int): Number of images of each folder, spread over it.
        size (int): Longer side of the images in pixels, at least 64.
        config (str, optional): The config of the run, for a checkpoint that does not hold it.

    Returns:
        List[str]: The files, ``index.html`` last.

    Raises:
        CheckpointError: The file is no checkpoint, or its backbone cannot be built.
        DataError: There is no image that can be read.
        InputError: A number is out of its range.
        MMDenseError: The folder cannot be written to.
    """
    _check_numbers(point, number, size)
    check_writable(str(Path(out) / 'index.html'))
    content = read_checkpoint(checkpoint)
    found = recognise(content, name=checkpoint)
    backbones = load_backbones(checkpoint, config=config)
    if backbones.load.channels != 3:
        raise InputError(
            f'{checkpoint} takes images of {backbones.load.channels} channels: pictures are drawn '
            'of images with 3 alone; `mmdense check FILE --images FOLDER` measures its features'
        )
    more = [path for path in map(str, paths) if path.endswith('.pth')]
    paths = [path for path in map(str, paths) if not path.endswith('.pth')]
    images, names, messages = load_images(paths, number, size, backbones.load)
    grouping = _load_groups(content, checkpoint, config, messages)
    models = [_load_search(kind, content, checkpoint, config, messages) for kind in _SEARCHES]
    swap = _read_part('swap', RegionSwap, found.meta, checkpoint, config)
    curriculum = _read_part('curriculum', BoxCurriculum, found.meta, checkpoint, config)
    if swap is not None and len(images) < 2:
        messages.append('Swapped regions: two images or more are needed')
        swap = None
    measured = _measure(backbones, images, size)

    folder, title = Path(out), Path(checkpoint).name
    folder.mkdir(parents=True, exist_ok=True)
    files = _draw_pairs(folder, measured.pairs, names)
    files += [str(folder / 'features.png'), str(folder / 'similarity.png')]
    draw_levels(images, names, measured.stages, f'What each stage sees: {title}', files[-2])
    draw_similarity(images, names, measured.tables, point, title, files[-1])
    groups = None
    if grouping is not None:
        files.append(str(folder / 'groups.png'))
        groups = _draw_groups(grouping, images, names, files[-1])
    regions = None
    if swap is not None:
        files.append(str(folder / 'regions.png'))
        regions = _draw_regions(swap, measured.pairs, names, title, files[-1])
    searches: Dict[str, Optional[str]] = {}
    for kind, model in zip(_SEARCHES, models):
        searches[kind.name] = None
        if model is not None:
            files.append(str(folder / kind.file))
            result = kind.find(model, backbones.preprocessor, images)
            if kind.over_training:
                run = [load_algorithm(path, config, type(model)) for path in more]
                result = [result, *(kind.find(one, backbones.preprocessor, images) for one in run)]
                names_of_run = [Path(path).stem for path in (checkpoint, *more)]
                kind.draw(images, result, names, names_of_run, f'{kind.title}: {title}', files[-1])
            else:
                kind.draw(images, result, names, f'{kind.title}: {title}', files[-1])
            searches[kind.name] = data_uri(np.asarray(Image.open(files[-1]).convert('RGB')), 85)
    copies = None
    if curriculum is not None:
        files.append(str(folder / 'copies.png'))
        copies = _draw_copies(curriculum, images, names, title, files[-1])
    files.append(str(folder / 'index.html'))
    write_page(
        files[-1],
        'show.html',
        title=title,
        about=f'{found}; {backbones.about}',
        point=point,
        groups=groups,
        regions=regions,
        copies=copies,
        messages=messages,
        **searches,
        **_describe(measured, images, names),
    )
    return files


def _check_numbers(point: Tuple[float, float], number: int, size: int) -> None:
    check_counts(**{'--number': number})
    check_fractions(**{'x of --point': point[0], 'y of --point': point[1]})
    if size < 64:
        raise InputError(f'--size must be at least 64, got {size}')


class _Measured(NamedTuple):
    """Hold, for each network, the stages' maps as colours and the similarities of the last one;
    and for each image the matches of two views."""

    stages: Dict[str, List[Stage]]
    tables: Dict[str, List[np.ndarray]]
    pairs: List['Pair']


def _measure(backbones: Backbones, images: Sequence[np.ndarray], size: int) -> _Measured:
    inputs = to_inputs(images, backbones.preprocessor)
    calibrate(backbones.random, inputs)
    maps = {name: stage_maps(getattr(backbones, name), inputs) for name in NETWORKS}
    return _Measured(
        {name: [pca_colours(stage) for stage in maps[name]] for name in NETWORKS},
        {name: [cell_similarities(m) for m in maps[name][-1]] for name in NETWORKS},
        [match_two_views(backbones, image, seed, size // 2) for seed, image in enumerate(images)],
    )


def _load_groups(
    content: Dict[str, Any], checkpoint: str, config: Optional[str], messages: List[str]
) -> Any:
    """Return the model of a checkpoint with groups, None without; a model that cannot be built
    adds a message, and raises if its config was given."""
    kind = grouping_algorithm(content)
    if kind is None:
        return None
    try:
        return load_grouping(checkpoint, kind, config)
    except CheckpointError as error:
        if config is not None:
            raise
        messages.append(f'Groups of {kind.__name__}: {error}')
        return None


class _Search(NamedTuple):
    """Define a picture of where an algorithm finds parts of an image.

    Attributes:
        name (str): Of the picture in the page's template.
        file (str): Name of the file.
        title (str): Of the picture, and of the message where it cannot be drawn.
        tensor (str): Attribute of an algorithm's class, which names a tensor of its checkpoints.
        find (Callable): Searches, from the model, its data preprocessor and the images.
        draw (Callable): Draws the result, from the images, the result, names, title and path;
            with ``over_training`` from a list of results, and the names of their checkpoints.
        over_training (bool): Whether several checkpoints are drawn next to each other.
    """

    name: str
    file: str
    title: str
    tensor: str
    find: Callable
    draw: Callable
    over_training: bool = False


_SEARCHES = (
    _Search(
        'searched',
        'search.png',
        'Where crops are found',
        'search_tensor',
        search_crops,
        draw_searched_crops,
    ),
    _Search(
        'patches',
        'patches.png',
        'Where patches are found',
        'patch_tensor',
        find_patches,
        draw_found_patches,
    ),
    _Search(
        'objects',
        'objects.png',
        'Proposals and matched queries',
        'object_tensor',
        find_objects,
        draw_found_objects,
        over_training=True,
    ),
)


def _load_search(
    search: _Search,
    content: Dict[str, Any],
    checkpoint: str,
    config: Optional[str],
    messages: List[str],
) -> Any:
    """Return the model of a checkpoint that can search, None without; a model that cannot be built
    adds a message, and raises if its config was given."""
    tensors = content.get('state_dict') if isinstance(content, dict) else None
    kinds = [kind for kind in registered_algorithms() if hasattr(kind, search.tensor)]
    kind = next((kind for kind in kinds if getattr(kind, search.tensor) in (tensors or ())), None)
    if kind is None:
        return None
    try:
        return load_algorithm(checkpoint, config, kind)
    except (CheckpointError, InputError) as error:
        if config is not None:
            raise
        messages.append(f'{search.title}: {error}')
        return None


def _draw_pairs(folder: Path, pairs: Sequence['Pair'], names: Sequence[str]) -> List[str]:
    """Draw the matches of two views of each image; return the files."""
    files = []
    for i, (pair, name) in enumerate(zip(pairs, names), start=1):
        files.append(str(folder / f'correspondence_{i}.png'))
        panels = [
            Panel(
                f'{kind}: {share(pair.errors[kind])}',
                pair.matches[kind].match[0],
                pair.matches[kind].similarity[0],
                pair.errors[kind],
            )
            for kind in NETWORKS
        ]
        grids = pair.matches[NETWORKS[0]][2:]
        draw_correspondence(
            *pair.views,
            panels,
            *grids,
            title=f'The most similar locations of two views of {_short_name(name)}',
            max_lines=_LINES,
            path=files[-1],
        )
    return files


class _Groups(NamedTuple):
    """Hold the algorithm, the words for one group and for several, the number of groups in use, in
    words; and for each image the picture and its number of groups."""

    algorithm: str
    words: Tuple[str, str]
    used: str
    pictures: List[Tuple[str, int]]


def _draw_groups(
    model: Any, images: Sequence[np.ndarray], names: Sequence[str], path: str
) -> _Groups:
    """Draw the pixels of each image by group."""
    pictures = group_pixels(model, images, names)
    labels = np.concatenate([p.labels.ravel() for p in pictures])
    pixels = torch.from_numpy(np.bincount(labels, minlength=model.num_groups)).double()
    seen = int((pixels > 0).sum())
    one, several = model.group_name
    used = f'{seen} of {model.num_groups} {several} {"is" if seen == 1 else "are"} in use'
    colours = prototype_colours(pixels)
    draw_groups(pictures, colours, f'Pixels by {one}: {used}', path, words=model.group_name)
    painted = [
        (data_uri(paint_groups(picture, colours), 85), len(np.unique(picture.labels)))
        for picture in pictures
    ]
    return _Groups(type(model).__name__, model.group_name, used, painted)


def _read_part(name: str, kind: type, meta: dict, checkpoint: str, config: Optional[str]) -> Any:
    """Build a part of a run's algorithm; None where it has none of this name and class."""
    if config is None:
        model = saved_model_config(meta, checkpoint, parts=[name])
    else:
        model = Config.fromfile(config).get('model')
    part = (model or {}).get(name)
    if not isinstance(part, dict):
        return None
    with DefaultScope.overwrite_default_scope('mmdense'):
        built = MODELS.build(part)
    return built if isinstance(built, kind) else None


def _draw_regions(
    swap: RegionSwap, pairs: Sequence['Pair'], names: Sequence[str], title: str, path: str
) -> List[Tuple[str, str]]:
    """Draw a view of each image with the region of another; return these pictures, each with the
    name of the other image."""
    views = [pair.views[0] for pair in pairs]
    mixed = mix_views(views, pairs[0].matches[NETWORKS[0]].grid_a, swap)
    draw_mixed_views(views, mixed, names, f'Swapped regions: {title}', path)
    return [(data_uri(one.picture, 85), _short_name(names[one.partner])) for one in mixed]


def _draw_copies(
    curriculum: BoxCurriculum,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    title: str,
    path: str,
) -> List[List[str]]:
    """Draw boxes and their copies over the run; return the pictures of each image."""
    draw_noisy_boxes(images, names, curriculum, f'Copies of boxes: {title}', path)
    painted = [paint_run(image, curriculum) for image in images]
    return [[data_uri(picture, 85) for picture in row] for row in painted]


def load_images(
    paths: Sequence[str], number: int, size: int, load: LoadImage
) -> Tuple[List[np.ndarray], List[str], List[str]]:
    """Read images from files, folders and archives.

    Args:
        paths (Sequence[str]): The paths of :func:`show`.
        number (int): Number of images of each folder or archive.
        size (int): Longer side in pixels that images are scaled to.
        load (LoadImage): Reads the images.

    Returns:
        tuple: Images, H×W×3 uint8, RGB; their paths; and a message for each file that cannot be
        read.

    Raises:
        DataError: No image can be read.
    """
    images, names, messages = [], [], []

    def add(info: Dict[str, Any]) -> bool:
        try:
            image = load.transform(info)['img']
        except UnreadableImageError as error:
            messages.append(str(error))
            return False
        images.append(fit_image(image, size))
        names.append(info['img_path'])
        return True

    for path in map(str, paths):
        if Path(path).is_file() and open_storage(path) is None:
            add(dict(img_path=path))
            continue
        _, dataset, left = open_photographs([path])
        messages += [f'{path}: {text}' for text in left]
        for index in np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round():
            try:
                name, content = dataset.read(int(index))
            except UnreadableImageError as error:
                messages.append(str(error))
                continue
            add(dict(img_path=name, img_bytes=content))
    if not images:
        raise DataError(messages[0] if messages else f'no image in {", ".join(map(str, paths))}')
    return images, names, messages


class Pair(NamedTuple):
    """Hold two views of an image and the matches of each network.

    Attributes:
        views (tuple[np.ndarray, np.ndarray]): The views, each S×S×3 uint8, RGB.
        matches (Dict[str, Matches]): Matches by network.
        errors (Dict[str, Tensor]): Errors in grid cells by network, see :func:`match_errors`.
    """

    views: Tuple[np.ndarray, np.ndarray]
    matches: Dict[str, Matches]
    errors: Dict[str, Tensor]


def match_two_views(backbones: Backbones, image: np.ndarray, seed: int, size: int) -> Pair:
    """Cut two views out of an image, and match their grid cells by each network.

    Args:
        backbones (Backbones): The backbones, the random one calibrated.
        image (np.ndarray): The image, H×W×3 uint8, RGB.
        seed (int): Seed of the views.
        size (int): Side of the views in pixels.

    Returns:
        Pair: The views and matches.
    """
    boxes, views = draw_view_pair(Image.fromarray(image), size, np.random.RandomState(seed))
    views = tuple(map(np.asarray, views))
    inputs = to_inputs(views, backbones.preprocessor)
    matches = {name: match_views(getattr(backbones, name), *inputs) for name in NETWORKS}
    errors = {
        name: match_errors(m.match[0], *boxes, m.grid_a, m.grid_b) for name, m in matches.items()
    }
    return Pair(views, matches, errors)


def share(errors: Tensor, tolerance: float = 1.0) -> str:
    """Return in words how many of the grid cells in both views are matched rightly."""
    known = errors[~errors.isnan()]
    return f'{int((known <= tolerance).sum())} of {len(known)} right'


def cell_similarities(features: Tensor) -> np.ndarray:
    """Return the cosine of each pair of grid cells of a map.

    Args:
        features (Tensor): The map, C×h×w. Large maps are pooled to about 24×24 locations at most.

    Returns:
        np.ndarray: h×w×h×w, cosines.
    """
    h, w = features.shape[1:]
    if h * w > _MOST_CELLS:
        scale = (_MOST_CELLS / (h * w)) ** 0.5
        h, w = max(1, int(h * scale)), max(1, int(w * scale))
        features = adaptive_avg_pool2d(features[None], (h, w))[0]
    rows = normalize(features.flatten(1).float(), dim=0)
    return (rows.T @ rows).reshape(h, w, h, w).numpy()


def draw_similarity(
    images: Sequence[np.ndarray],
    names: Sequence[str],
    tables: Dict[str, Sequence[np.ndarray]],
    point: Tuple[float, float],
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """Draw a row for each image: the point, and the similarity of the features elsewhere.

    Args:
        images (Sequence[np.ndarray]): The images, each H×W×3 uint8, RGB.
        names (Sequence[str]): Their paths.
        tables (Dict[str, Sequence[np.ndarray]]): For each network and image the result of
            :func:`cell_similarities`.
        point (tuple[float, float]): x and y in fractions.
        title (str): Title of the complete figure.
        path (str, optional): File to save it to; the suffix is the format.

    Returns:
        Figure: A figure that needs no display, and that pyplot does not know.
    """
    heights = [3.2 * min(1.2, image.shape[0] / image.shape[1]) for image in images]
    figure = Figure(
        figsize=(3.6 * (1 + len(tables)), sum(heights) + 0.5 * len(images) + 0.7),
        dpi=110,
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    figure.suptitle(f'Similarity to the point: {title}', fontsize=13)
    axes = figure.subplots(
        len(images), 1 + len(tables), squeeze=False, gridspec_kw=dict(height_ratios=heights)
    )
    for i, (row, image) in enumerate(zip(axes, images)):
        height, width = image.shape[:2]
        row[0].imshow(image, extent=(0, width, height, 0))
        row[0].set_title(_short_name(names[i]), fontsize=10)
        for axis, (name, found) in zip(row[1:], tables.items()):
            heat = similarity_at(found[i], point)
            axis.imshow(image.mean(axis=2), cmap='gray', extent=(0, width, height, 0))
            others = np.sort(heat.ravel())[:-1] if heat.size > 1 else heat  # not itself
            drawn = axis.imshow(
                heat,
                cmap='inferno',
                alpha=0.75,
                vmin=others.min(),
                vmax=others.max(),
                extent=(0, width, height, 0),
            )
            axis.set_title(name, fontsize=10)
            figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.02)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.plot(point[0] * width, point[1] * height, '+', color='white', ms=15, mew=4)
            axis.plot(point[0] * width, point[1] * height, '+', color='black', ms=13, mew=1.6)
    if path is not None:
        figure.savefig(path)
    return figure


def similarity_at(table: np.ndarray, point: Tuple[float, float]) -> np.ndarray:
    """Return h×w, the cosines with the grid cell that holds a point in fractions."""
    h, w = table.shape[:2]
    return table[min(int(point[1] * h), h - 1), min(int(point[0] * w), w - 1)]


# ---------------------------------------------------------------- for index.html


def _describe(
    measured: _Measured, images: Sequence[np.ndarray], names: Sequence[str]
) -> Dict[str, Any]:
    """Return the values that the template takes from images and measurements."""
    number = len(measured.pairs)
    errors = {k: torch.cat([pair.errors[k] for pair in measured.pairs]) for k in NETWORKS}
    return dict(
        photographs=[
            (_short_name(name), data_uri(image, 85), image.shape)
            for name, image in zip(names, images)
        ],
        pairs=[_describe_pair(pair) for pair in measured.pairs],
        shares={name: share(errors[name]) for name in NETWORKS},
        similarity=[
            {name: _encode_table(measured.tables[name][i]) for name in NETWORKS}
            for i in range(number)
        ],
        colours=[
            '#' + ''.join(f'{round(255 * part):02x}' for part in colour[:3])
            for colour in matplotlib.colormaps['inferno'](np.linspace(0.05, 0.97, 12))
        ],
        stages=_describe_stages(measured.stages),
        networks=NETWORKS,
    )


def _encode_table(table: np.ndarray) -> Dict[str, Any]:
    """Encode cosines −1 to 1 as bytes 0 to 255."""
    h, w = table.shape[:2]
    codes = ((table.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    return dict(h=h, w=w, codes=base64.b64encode(codes.tobytes()).decode())


def _describe_pair(pair: Pair) -> Dict[str, Any]:
    """Return views, and for each network lines between points in fractions of a view."""
    lines = {}
    for name, found in pair.matches.items():
        errors = pair.errors[name]
        visible = torch.nonzero(~errors.isnan()).flatten()
        picks = torch.linspace(0, len(visible) - 1, min(_LINES, len(visible))).round().long()
        lines[name] = [
            (
                *_centre(location, found.grid_a),
                *_centre(int(found.match[0, location]), found.grid_b),
                bool(errors[location] <= 1),
            )
            for location in visible[picks].tolist()
        ]
    return dict(
        views=[data_uri(view, 85) for view in pair.views],
        lines=lines,
        shares={name: share(errors) for name, errors in pair.errors.items()},
    )


def _centre(location: int, grid: Tuple[int, int]) -> Tuple[float, float]:
    row, column = divmod(location, grid[1])
    return round((column + 0.5) / grid[1], 4), round((row + 0.5) / grid[0], 4)


def _describe_stages(stages: Dict[str, List[Stage]]) -> Dict[str, List[Dict[str, Any]]]:
    return {
        name: [
            dict(
                number=number,
                channels=stage.channels,
                explained=stage.explained,
                pictures=[data_uri(colour) for colour in stage.colours],
            )
            for number, stage in enumerate(found, start=2)
        ]
        for name, found in stages.items()
    }
