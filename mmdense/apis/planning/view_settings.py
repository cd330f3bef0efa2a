# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Read and scale the views of a training pipeline, by the types of its transforms."""

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from mmdense.models.selfsup import Views
from mmdense.utils.errors import InputError


class Step(NamedTuple):
    """Hold one transform of a pipeline.

    Attributes:
        place (str): Keys that lead to it, with dots: ``pipeline.1.transforms.0.0``.
        config (dict): Config of the transform.
    """

    place: str
    config: Dict[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the type, without its scope."""
        kind = self.config['type']
        return (kind if isinstance(kind, str) else kind.__name__).split('.')[-1]


class ViewGroup(NamedTuple):
    """Hold the views that one pipeline of ``MultiView`` makes.

    Attributes:
        views (int): Number of views.
        crop (Step): The crop that sets their size.
        blurs (tuple[Step]): Transforms that blur by a ``sigma`` in pixels.
        patches (Step, optional): ``JigsawPatches`` where the views are cut into patches.
    """

    views: int
    crop: Step
    blurs: Tuple[Step, ...] = ()
    patches: Optional[Step] = None

    @property
    def size(self) -> int:
        """Return the side that images are cropped and resized to, in pixels."""
        scale = self.crop.config['scale']
        return scale if isinstance(scale, int) else max(scale)

    @property
    def crop_ratio_range(self) -> Tuple[float, float]:
        """Return the smallest and the largest share of an image that a view shows."""
        if not self.crop.name.endswith('RandomResizedCrop'):
            return 1.0, 1.0
        return tuple(self.crop.config.get('crop_ratio_range', (0.08, 1.0)))

    @property
    def area(self) -> int:
        """Return the pixels of a view that the network sees."""
        if self.patches is None:
            return self.size**2
        return (self.grid * self.patch_size) ** 2

    @property
    def grid(self) -> int:
        """Return the number of patches along a side."""
        return self.patches.config.get('grid', 3)

    @property
    def patch_size(self) -> int:
        """Return the side of a patch in pixels."""
        return self.patches.config.get('patch_size', 64)


def read_views(pipeline: List[dict]) -> List[ViewGroup]:
    """Read the views of a training pipeline.

    Args:
        pipeline (list[dict]): Transforms, such as ``train_pipeline`` of a recipe. One without
            ``MultiView`` makes one view.

    Returns:
        list[ViewGroup]: One for each pipeline of ``MultiView``, in its order.

    Raises:
        InputError: When a view is not cropped by a ``RandomResizedCrop`` with a ``scale``.
    """
    multi = find_step(pipeline, 'MultiView')
    if multi is None:
        return [_read_group(1, pipeline, 'pipeline')]
    pipelines, counts = multi.config['transforms'], multi.config['num_views']
    if isinstance(counts, int):
        counts = [counts] * len(pipelines)
    return [
        _read_group(count, steps, f'{multi.place}.transforms.{i}')
        for i, (count, steps) in enumerate(zip(counts, pipelines))
    ]


def find_step(pipeline: List[dict], name: str) -> Optional[Step]:
    """Return the first transform of a type, or None."""
    return next((step for step in _walk_steps(pipeline, 'pipeline') if step.name == name), None)


def largest_size(groups: List[ViewGroup]) -> int:
    """Return the side of the largest views in pixels."""
    return max(group.size for group in _select_uncut(groups))


def largest_groups(groups: List[ViewGroup]) -> List[ViewGroup]:
    """Return the groups of the largest views."""
    return [group for group in _select_uncut(groups) if group.size == largest_size(groups)]


def scale_views(groups: List[ViewGroup], size: int) -> List[Tuple[ViewGroup, int]]:
    """Return each group of views without patches with its new side.

    A side keeps its ratio to the largest, as a multiple of 32, at least 32.

    Args:
        groups (list[ViewGroup]): Groups of :func:`read_views`.
        size (int): New side of the largest views in pixels.
    """
    usual = largest_size(groups)
    scaled = []
    for group in _select_uncut(groups):
        side = size
        if group.size != usual:
            side = min(max(round(group.size * size / usual / 32) * 32, 32), size)
        scaled.append((group, side))
    return scaled


def size_config(groups: List[ViewGroup], size: int) -> Dict[str, Any]:
    """Return the settings that give views another size.

    Patches keep their ratio to the largest views and to the image that they are cut from; they
    are at least 32 pixels.

    Args:
        groups (list[ViewGroup]): Groups of :func:`read_views`.
        size (int): New side of the largest views in pixels.

    Returns:
        dict: Values by their places in the pipeline.
    """
    usual = largest_size(groups)
    config: Dict[str, Any] = {}
    for group, side in scale_views(groups, size):
        config.update(_scale_config(group, side))
    for group in groups:
        if group.patches is not None:
            patch = max(32, group.patch_size * size // usual)
            cell = group.size // group.grid * patch // group.patch_size
            config[f'{group.crop.place}.scale'] = group.grid * cell
            config[f'{group.patches.place}.patch_size'] = patch
    return config


def _scale_config(group: ViewGroup, side: int) -> Dict[str, Any]:
    """Return the settings of a group of views with another side; of several sides in the recipe
    each in proportion."""
    settings, place = group.crop.config, group.crop.place
    if group.crop.name != 'ResizeShortSide':
        return {f'{place}.scale': side}
    usual = settings['scale']
    sides = [usual] if isinstance(usual, int) else usual
    scaled = [round(one * side / group.size) for one in sides]
    longest = round(settings.get('max_size', 600) * side / group.size)
    return {f'{place}.scale': scaled, f'{place}.max_size': longest}


def blur_config(groups: List[ViewGroup], size: int) -> Tuple[Dict[str, tuple], float, float]:
    """Return the settings that blur views of another size as much as the recipe's.

    Args:
        groups (list[ViewGroup]): Groups of :func:`read_views`.
        size (int): New side of the largest views in pixels.

    Returns:
        tuple: The values by their places, the largest sigma of the recipe, the largest of the
        values; in pixels.
    """
    usual = largest_size(groups)
    sides = {group.crop.place: side for group, side in scale_views(groups, size)}
    config, before, after = {}, 0.0, 0.0
    for group in groups:
        side = sides.get(group.crop.place)
        ratio = size / usual if side is None else side / group.size
        for blur in group.blurs:
            sigma = blur.config['sigma']
            config[f'{blur.place}.sigma'] = tuple(float(f'{s * ratio:.3g}') for s in sigma)
            before, after = max(before, sigma[1]), max(after, sigma[1] * ratio)
    return config, before, after


def trained_views(groups: List[ViewGroup], views: Views) -> float:
    """Return the views that a step computes gradients of, in areas of the largest.

    Args:
        groups (list[ViewGroup]): Groups of :func:`read_views`.
        views (Views): The algorithm's declaration.
    """
    counts: Dict[Tuple[bool, int], int] = {}  # by area, patches last
    for group in groups:
        key = group.patches is not None, -group.area
        counts[key] = counts.get(key, 0) + group.views
    keys = sorted(counts)
    trained = views.trained or views.groups
    if [counts[key] for key in keys] != list(views.groups):  # a recipe with other views
        trained = [counts[key] for key in keys]
    pixels = sum(-area * number for (_, area), number in zip(keys, trained))
    return pixels / largest_size(groups) ** 2


def _select_uncut(groups: List[ViewGroup]) -> List[ViewGroup]:
    """Return the groups without patches, or all where there is no other."""
    return [group for group in groups if group.patches is None] or groups


def _walk_steps(node: Any, place: str) -> Iterator[Step]:
    """Yield all transforms of a pipeline, those in others too."""
    if isinstance(node, (list, tuple)):
        for i, item in enumerate(node):
            yield from _walk_steps(item, f'{place}.{i}')
    elif isinstance(node, dict) and 'type' in node:
        yield Step(place, node)
        yield from _walk_steps(node.get('transforms', ()), f'{place}.transforms')


# Transforms that set the size of a view by their ``scale``.
_SIZES = ('RandomResizedCrop', 'ResizeShortSide', 'CropProposal')


def _read_group(views: int, pipeline: List[dict], place: str) -> ViewGroup:
    steps = list(_walk_steps(pipeline, place))
    crops = [s for s in steps if s.name.endswith(_SIZES) and 'scale' in s.config]
    if not crops:
        names = ', '.join(step.name for step in steps)
        raise InputError(f'the views of {place} need a RandomResizedCrop with a scale, got {names}')
    blurs = [s for s in steps if s.name == 'GaussianBlur' and 'sigma' in s.config]
    patches = [s for s in steps if s.name == 'JigsawPatches']
    return ViewGroup(views, crops[0], tuple(blurs), patches[0] if patches else None)
