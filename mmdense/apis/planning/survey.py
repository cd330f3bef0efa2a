# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Survey what settings depend on: the images, the machine, the algorithm with a backbone."""

import glob
import inspect
import os
import os.path as osp
import re
import time
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from itertools import islice
from statistics import median
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.utils.flop_counter import FlopCounterMode

from mmdense.checkpoints.networks import parameters_of
from mmdense.datasets import LoadImage, UnlabeledDataset
from mmdense.datasets.storage import open_storage
from mmdense.datasets.transforms.bands import ValueRange
from mmdense.datasets.transforms.loading import UnreadableImageError, read_header
from mmdense.datasets.value_range import UsedRange, find_narrow_range
from mmdense.engine.hooks.unreadable_images import MAX_UNREADABLE
from mmdense.engine.optimizers.amp_optim_wrapper import find_bfloat16_units
from mmdense.models.selfsup import Views
from mmdense.models.utils import input_channels, map_channels
from mmdense.registry import MODELS
from mmdense.utils.collect_env import cpu_cores
from mmdense.utils.errors import DataError, InputError, MissingImagesError
from mmdense.utils.paths import check_images

from .backbone_names import name_vit, translate_name
from .label_maps import find_label_maps
from .view_settings import read_views, trained_views

SMALL = 20_000  # images at most that the config for few images is for
_SAMPLE = 64  # images whose headers are read
_TRIED = 2  # images that a backbone is tried with
# classes of self-attention in mmpretrain, timm and PyTorch
_ATTENTION = re.compile(r'Multi_?[Hh]ead_?(Self)?Attention|MSA|^(BEiT|EVA)?Attention$')


class Images(NamedTuple):
    """Describe a set of images.

    Attributes:
        dataset (dict): Arguments of :class:`~mmdense.datasets.UnlabeledDataset`; absolute paths.
        count (int): Number of images.
        side (int): Median of the shorter sides in pixels, of a sample.
        unreadable (int): Number of images of ``sampled`` that could not be read.
        sampled (int): The size of the sample.
        messages (tuple[str]): What was left out, or looks wrong, in one line each.
        narrow (UsedRange, optional): Values of 16-bit images, where these would leave few gray
            levels.
        pixels (tuple, optional): Mean and standard deviation of each channel after loading, in
            0..255, of a sample; for other than three channels.
    """

    dataset: Dict[str, Any]
    count: int
    side: int
    unreadable: int = 0
    sampled: int = 1
    messages: Tuple[str, ...] = ()
    narrow: Optional[UsedRange] = None
    pixels: Optional[Tuple[List[float], List[float]]] = None

    @property
    def path(self) -> str:
        """Return the folder or file that was given, or the first and the number of others."""
        folders = self.dataset.get('data_prefix')
        if not isinstance(folders, list):
            return self.dataset.get('ann_file') or self.dataset['data_root']
        return folders[0] if len(folders) == 1 else f'{folders[0]} and {len(folders) - 1} more'


class Machine(NamedTuple):
    """Describe the machine of a run.

    Attributes:
        device (str): 'cuda' or 'cpu'.
        name (str): Name of the GPU; without one, of the CPU's units for ``half``.
        gpus (int): Number of GPUs that can be seen.
        memory (int): Bytes of one GPU, or those available of the main memory.
        cores (int): Cores that this process may use.
        half (str): 'bfloat16' or 'float16' where the device computes in it, else ''.
    """

    device: str
    name: str
    gpus: int
    memory: int
    cores: int
    half: str


class Network(NamedTuple):
    """Describe the networks of an algorithm.

    Attributes:
        backbone (dict): Changes of the recipe's backbone.
        in_channels (int): Channels of the last map.
        parameters (int): Number of parameters that are trained.
        bytes_per_image (int): Bytes that backward keeps of one image's views in float32.
        all_used (bool): Whether every parameter of the backbone gets a gradient.
        attention (bool): Whether the backbone is a transformer.
        seconds_per_image (float): Seconds of this CPU for forward and backward of one image's
            views through the backbone.
        flops_per_image (float): Operations of the same, multiplications and additions apart.
    """

    backbone: dict
    in_channels: int
    parameters: int
    bytes_per_image: int
    all_used: bool = True
    attention: bool = False
    seconds_per_image: float = 0.0
    flops_per_image: float = 0.0


def survey_images(
    images: Union[str, Sequence[str]],
    root: Optional[str] = None,
    exclude: Optional[Sequence[str]] = None,
    value_range: Optional[ValueRange] = None,
    channels: Optional[int] = None,
) -> Images:
    """Count images, and read the size of some.

    Args:
        images (str | Sequence[str]): A folder, a zip, an LMDB, a COCO ``.json`` or a list ``.txt``;
            or several folders, archives, files and patterns.
        root (str, optional): The folder that a json's or a list's paths are relative to. By
            default it is looked for where COCO has it.
        exclude (Sequence[str], optional): Patterns of
            :class:`~mmdense.datasets.UnlabeledDataset`. Defaults to None: label maps beside their
            images are left out.
        value_range (tuple, optional): Argument of :class:`~mmdense.datasets.LoadImage`.
        channels (int, optional): Likewise; with it ``.npy`` are images too. Defaults to None, 3.

    Raises:
        DataError: When there are no images, none that can be read, or more that cannot be read
            than training allows; or ``exclude`` fits none.
    """
    given = [images] if isinstance(images, (str, os.PathLike)) else images
    paths = [osp.abspath(osp.expanduser(path)) for path in shorten_paths(given)]
    arguments, dataset, messages = open_photographs(paths, root, exclude, channels)
    path, count = ' '.join(paths[:3]) + ' …' * (len(paths) > 3), len(dataset)
    load = LoadImage(value_range=value_range, channels=channels or 3)
    step = max(1, count // _SAMPLE)
    indices = sample = range(0, count, step)[:_SAMPLE]
    sides, reasons = _read_sides(dataset, indices, load)
    if sides and reasons and count <= SMALL:  # count them before training, not in it
        indices = range(count)
        sides, reasons = _read_sides(dataset, indices, load)
        if len(reasons) > MAX_UNREADABLE * count:
            raise DataError(
                f'{len(reasons)} of {count} images of {path} cannot be read, more than '
                f'{MAX_UNREADABLE:.0%}; the first: {reasons[0]}; delete what is broken, or '
                '`python tools/convert_dataset.py FOLDER NEW.zip --check` leaves it out, by name'
            )
    if not sides:
        raise DataError(f'none of {len(reasons)} images tried of {path} can be read: {reasons[0]}')
    found = Images(arguments, count, int(median(sides)), len(reasons), len(indices), messages)
    if value_range is None:
        found = found._replace(narrow=find_narrow_range(_read_sample(dataset, sample, 16)))
    if load.channels != 3:
        if found.narrow is not None:
            load = LoadImage(value_range=found.narrow.value_range, channels=load.channels)
        found = found._replace(pixels=_measure_pixels(_read_sample(dataset, sample), load))
    return found


def shorten_paths(paths: Sequence[str]) -> List[str]:
    """Return paths, with a pattern in place of all files of one format in a folder: a shell has
    made them of the pattern."""
    paths = [os.fspath(path) for path in paths]
    if len(paths) < 4 or not all(osp.isfile(path) for path in paths):
        return paths
    patterns = {
        osp.join(glob.escape(osp.dirname(path)), f'*{osp.splitext(path)[1]}') for path in paths
    }
    found = sorted(path for pattern in patterns for path in glob.glob(pattern))
    return sorted(patterns) if found == sorted(paths) else paths


def open_photographs(
    paths: Sequence[str],
    root: Optional[str] = None,
    exclude: Optional[Sequence[str]] = None,
    channels: Optional[int] = None,
) -> Tuple[dict, UnlabeledDataset, Tuple[str, ...]]:
    """Open a data set without label maps, or without what ``exclude`` fits.

    Args:
        paths (Sequence[str]): Absolute paths of :func:`survey_images`.
        root (str, optional): Argument of :func:`survey_images`.
        exclude (Sequence[str], optional): Likewise.
        channels (int, optional): Likewise.

    Returns:
        tuple: Its arguments, the data set, and what was left out in words.
    """
    more = {}
    if channels is not None:
        more['extensions'] = [*UnlabeledDataset.EXTENSIONS, '.npy']
    arguments, dataset = open_images(paths, root, **more)
    if more and not any(name.endswith('.npy') for name in _names(dataset)):
        del arguments['extensions']
    messages = []
    if exclude:
        complete = len(dataset)
        arguments['exclude'] = list(exclude)
        dataset = UnlabeledDataset(**arguments)
        left = complete - len(dataset)
        if left == 0:
            raise DataError(f'--exclude {" ".join(exclude)} fits none of the {complete:,} images')
        messages.append(f'{left:,} left out by --exclude')
    elif exclude is None and not dataset.ann_file:
        maps = find_label_maps(_names(dataset), lambda i: dataset.read(i)[1])
        if maps.exclude and maps.count < len(dataset):
            arguments['exclude'] = maps.exclude
            dataset = UnlabeledDataset(**arguments)
            messages.append(f'{maps.count:,} label maps are left out: {_shorten(maps.exclude)}')
        if maps.suspects:
            messages.append(
                f'{maps.suspect_count:,} look like label maps (few colors; '
                f'{_shorten(maps.suspects)}): --exclude PATTERN leaves them out'
            )
    if dataset.own_folders:
        folders = [osp.relpath(folder, paths[0]) for folder in dataset.own_folders]
        messages.append(f'what a run wrote is left out: {_shorten(folders)}')
    if dataset.unread:
        messages.append(f'there are {dataset.describe_unread()}')
    return arguments, dataset, tuple(messages)


def _names(dataset: UnlabeledDataset) -> List[str]:
    """Return the paths of the images below the folders that were searched."""
    folders = dataset.data_prefix['img_path']
    folders = folders if isinstance(folders, list) else [folders]
    starts = tuple(f'{folder.rstrip("/")}/' for folder in folders)
    names = []
    for i in range(len(dataset)):
        path = dataset.get_data_info(i)['img_path']
        start = next((start for start in starts if path.startswith(start)), '')
        names.append(path[len(start) :] if start else osp.basename(path))
    return names


def _shorten(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _read_sample(
    dataset: UnlabeledDataset, indices: Iterable[int], bits: int = 0
) -> Iterator[bytes]:
    """Yield the files of images that can be read, or of those with so many bits a value."""
    for index in indices:
        with suppress(UnreadableImageError, ValueError):
            content = dataset.read(index)[1]
            if not bits or read_header(content, channels=None).bits == bits:
                yield content


def _measure_pixels(contents: Iterable[bytes], load: LoadImage) -> Tuple[List[float], List[float]]:
    """Return the mean and the standard deviation of each channel of at most 16 images."""
    sums, squares, count = np.zeros(load.channels), np.zeros(load.channels), 0
    for content in islice(contents, 16):
        with suppress(ValueError):
            rows = load.decode(content).reshape(-1, load.channels).astype(np.float64)
            sums, squares = sums + rows.sum(0), squares + (rows**2).sum(0)
            count += len(rows)
    mean = sums / max(count, 1)
    std = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 1))
    return mean.round(2).tolist(), std.round(2).tolist()


def _read_sides(
    dataset: UnlabeledDataset, indices: Iterable[int], load: LoadImage
) -> Tuple[List[int], List[str]]:
    """Return the shorter sides of images by their headers, and why others cannot be read."""
    sides, reasons = [], []
    for index in indices:
        try:
            name, content = dataset.read(index)
            sides.append(min(load.read_header(content)[:2]))
        except UnreadableImageError as error:
            reasons.append(str(error))
        except ValueError as error:
            reasons.append(f'cannot read image {name}: {error}')
    return sides, reasons


def names_images(path: str) -> bool:
    """Return whether a path is a json or a list, whose paths are relative to a folder."""
    return path.lower().endswith(('.json', '.txt')) and not osp.isdir(path)


def open_images(
    paths: Union[str, Sequence[str]], prefix: Optional[str], **more
) -> Tuple[dict, UnlabeledDataset]:
    """Open the data set of some paths; return its arguments, with ``more``, and the data set."""
    paths = [paths] if isinstance(paths, str) else list(paths)
    lists = [path for path in paths if names_images(path)]
    if lists and len(paths) > 1:
        raise DataError(f'{lists[0]} is a list of images: give it alone, without {paths[:2]}')
    for path in paths:
        _check_kind(path)
    if not lists:
        arguments = dict(data_root=paths[0], data_prefix='', **more)
        if len(paths) > 1 or glob.has_magic(paths[0]) or osp.isfile(paths[0]):
            arguments.update(data_root='', data_prefix=paths)
        if len(paths) == 1 and open_storage(paths[0]) is not None:
            arguments.update(data_root=paths[0], data_prefix='')
        return arguments, UnlabeledDataset(**arguments)
    path = paths[0]
    folder = osp.dirname(path)
    split = osp.splitext(osp.basename(path))[0].rsplit('_', 1)[-1]  # instances_train2017.json
    parent = osp.dirname(folder)
    guesses = [folder, osp.join(folder, 'images'), osp.join(folder, split)]
    guesses += [osp.join(parent, split), osp.join(parent, 'images'), parent]
    guesses.append(osp.join(osp.dirname(parent), 'JPEGImages'))  # of ImageSets/Main/train.txt
    if prefix:
        guesses = [osp.abspath(osp.expanduser(prefix))]
    for guess in guesses:
        arguments = dict(data_root='', ann_file=path, data_prefix=guess, **more)
        try:
            return arguments, UnlabeledDataset(**arguments)
        except MissingImagesError as error:
            start = osp.join(guess, '')
            first = error.first[len(start) * error.first.startswith(start) :]
    looked = ', '.join(guesses)
    raise DataError(
        f'none of the images that {path} names exists, of which the first is {first}; looked below '
        f'{looked}: --prefix says which folder its paths are relative to'
    )


_TEXTS = ('.csv', '.tsv', '.jsonl', '.ndjson', '.yaml', '.yml', '.xml', '.lst', '.parquet', '.pkl')


def _check_kind(path: str) -> None:
    """Refuse what does not exist, and files that name images in a format that is not read."""
    if not names_images(path):
        check_images(path)
    if osp.isfile(path) and path.lower().endswith(_TEXTS):
        with open(path, 'rb') as file:
            first = file.readline(80).decode('utf-8', 'replace').strip()
        raise DataError(
            f'{path} is no list of images that is read: give a .txt with one path on each line, or '
            f'a .json; it begins with {first!r}'
        )


def survey_machine() -> Machine:
    """Return what this process may use."""
    cores = cpu_cores()
    if not torch.cuda.is_available():
        units = find_bfloat16_units() or ''
        return Machine('cpu', units, 0, _free_memory(), cores, 'bfloat16' if units else '')
    properties = torch.cuda.get_device_properties(0)
    half = 'bfloat16' if properties.major >= 8 else 'float16' if properties.major >= 7 else ''
    gpus = torch.cuda.device_count()
    return Machine('cuda', properties.name, gpus, properties.total_memory, cores, half)


def _free_memory() -> int:
    """Return the free bytes of the machine, or of its container where that has less."""
    try:
        free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
        with open('/proc/meminfo') as f:  # with what caches would give back
            free = int(re.search(r'MemAvailable:\s+(\d+) kB', f.read()).group(1)) * 1024
    except (OSError, ValueError, AttributeError):
        free = 4 << 30
    try:
        with open('/sys/fs/cgroup/memory.max') as limit, open(
            '/sys/fs/cgroup/memory.current'
        ) as used:
            free = min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):  # none, or 'max'
        pass
    return max(free, 0)


def find_backbone(name: str, default: dict) -> dict:
    """Return what a backbone changes in the recipe's.

    Args:
        name (str): resnet18, resnet34, resnet50, resnet101, resnet152; a ViT, as ``vit-small`` or
            ``vit_base_patch16_224``; or a class of mmpretrain in any case, followed by its depth
            or its arch: ``convnext-tiny``, ``resnext50``.
        default (dict): The recipe's backbone.

    Raises:
        InputError: When there is no such backbone.
    """
    from mmpretrain.models import backbones

    match = re.fullmatch(r'resnet[-_]?(18|34|50|101|152)', name.lower())
    if match and 'depth' in default and _kind_name(default) == 'resnet':
        depth = int(match.group(1))
        return {} if depth == default['depth'] else dict(depth=depth)
    typed, (name, more) = name, translate_name(name)
    known = {
        key.lower(): value
        for key, value in vars(backbones).items()
        if inspect.isclass(value) and issubclass(value, torch.nn.Module)
    }
    fits = [key for key in known if name.lower().startswith(key)]
    if not fits:
        others = ['resnet18', 'resnet50', 'vit-tiny', 'vit-small', 'vit-base', 'vit-large']
        near = get_close_matches(name.lower(), [*known, *others], n=3, cutoff=0.5)
        near = f'; the nearest: {", ".join(known[n].__name__ if n in known else n for n in near)}'
        raise InputError(
            f'there is no backbone {name!r}{near if len(near) > 15 else ""}. Take resnet18, 34, '
            "50, 101, 152, vit-small, or a class of mmpretrain's, such as convnext-tiny"
        )
    kind = known[max(fits, key=len)]
    variant = name[len(max(fits, key=len)) :].strip('-_:')
    own = _find_kind(default)
    if own is not None and own is not kind and issubclass(own, kind):  # a special form of the class
        if name != typed:  # a size, and no arch of mmpretrain's
            variant = getattr(own, 'OWN_ARCHS', {}).get(variant, variant)
        config = dict(more, arch=variant) if variant else dict(more)
        return {key: value for key, value in config.items() if default.get(key) != value}
    taken = parameters_of(kind)
    config = dict(_delete_=True, type=f'mmpretrain.{kind.__name__}', **more)
    if variant.isdigit() and 'depth' in taken:
        config['depth'] = int(variant)
    elif variant and 'arch' in taken:
        config['arch'] = variant
    elif variant:
        raise InputError(f'{kind.__name__} has no variants, got {name!r}')
    # maps of any size, where something else is the default
    maps = dict(gap_before_final_norm=False, out_type='featmap', pad_small_map=True)
    config.update({key: value for key, value in maps.items() if key in taken})
    norm = taken['norm_cfg'].default if 'norm_cfg' in taken else None
    if isinstance(norm, dict) and norm.get('type') == 'BN' and 'norm_cfg' in default:
        config['norm_cfg'] = dict(default['norm_cfg'])
    if 'out_indices' in default and 'out_indices' in taken:
        config['out_indices'] = default['out_indices']
    return config


def _find_kind(config: dict) -> Optional[type]:
    """Return the class of a backbone's config."""
    own = config['type']
    if isinstance(own, str):
        with DefaultScope.overwrite_default_scope('mmdense'):
            own = MODELS.get(own)
    return own if isinstance(own, type) else None


def backbone_name(config: dict) -> str:
    """Return the name of a backbone, as :func:`find_backbone` takes it, of its config."""
    if 'depth' in config:
        return f'{_kind_name(config)}{config["depth"]}'
    arch, kind = config.get('arch'), _kind_name(config)
    if not isinstance(arch, str):
        return kind
    return name_vit(arch) if kind.endswith('vit') else f'{kind}-{arch}'


def _kind_name(config: dict) -> str:
    """Return the name of a config's type in lower case, without its scope."""
    kind = config['type']
    return (kind if isinstance(kind, str) else kind.__name__).split('.')[-1].lower()


def survey_network(
    recipe_config: Config, name: Optional[str], size: int, in_channels: Optional[int] = None
) -> Network:
    """Build an algorithm with a backbone, and try it.

    Args:
        recipe_config (Config): Config of :func:`read_recipe`.
        name (str, optional): Name for :func:`find_backbone`; None for the recipe's backbone.
        size (int): Side of the views in pixels.
        in_channels (int, optional): Channels of the images. Defaults to the backbone's, 3.

    Raises:
        InputError: When there is no such backbone, or the algorithm cannot take it.
    """
    backbone = find_backbone(name, recipe_config.model.backbone) if name else {}
    if in_channels is not None:
        backbone['in_channels'] = in_channels
    if '_delete_' not in backbone:
        sizes = _size_settings(recipe_config.model.type, size)
        known = recipe_config.model.backbone
        backbone.update({key: n for key, n in sizes.items() if known.get(key) != n})
    name = name or backbone_name(recipe_config.model.backbone)
    config = Config(dict(model=recipe_config.model.to_dict()))
    kind = config.model.type
    try:
        config.merge_from_dict(dict(model=dict(backbone=deepcopy(backbone))))
        with DefaultScope.overwrite_default_scope('mmdense'):
            channels = map_channels(MODELS.build(config.model.backbone))
            if 'queue_len' in config.model:
                config.model.queue_len = 8
            if 'in_channels' in (config.model.get('neck') or {}):
                config.model.neck.in_channels = channels[-1]
            model = MODELS.build(config.model)
        stages = len(config.model.get('stage_weights', '1'))
        with FlopCounterMode(display=False) as counter:
            kept, unused = _try_backbone(model, size, stages)
        flops = counter.get_total_flops() / _TRIED
        seconds = _time_backbone(model, size)
        if unused > 0.1:
            raise InputError(f'{unused:.0%} of its parameters do not take part in the maps')
    except InputError as error:
        raise InputError(f'{kind} cannot take the backbone {name}: {error}') from None
    except Exception as error:  # of whatever backbone
        text = str(error.args[0]) if error.args else type(error).__name__
        text = ' '.join(text.split())
        raise InputError(f'{kind} cannot take the backbone {name}: {text:.200}') from None
    views = getattr(model, 'views', Views())  # an algorithm without our contract has none
    number = trained_views(read_views(recipe_config.train_pipeline), views)
    return Network(
        backbone,
        channels[-1],
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        int(kept * number),
        unused == 0,
        any(_ATTENTION.search(type(part).__name__) for part in model.backbone.modules()),
        seconds * number,
        flops * number,
    )


def _size_settings(kind: Union[str, type], size: int) -> Dict[str, int]:
    """Return the settings of an algorithm's backbone for views of a size."""
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope('mmdense'):
            kind = MODELS.get(kind)
    return kind.size_settings(size) if hasattr(kind, 'size_settings') else {}


def _measured_pass(model: torch.nn.Module) -> Callable:
    """Return what computes the maps of a step; an algorithm without our contract names nothing."""
    return getattr(model, 'trained_maps', model.backbone)


def _time_backbone(model: torch.nn.Module, size: int) -> float:
    """Return the seconds of this CPU for forward and backward of a view."""
    # small views in larger batches, as in training: each operation takes a while to start
    images = max(2, min(8, 8 * 96**2 // size**2))
    start = time.perf_counter()
    inputs = torch.zeros(images, input_channels(model.backbone) or 3, size, size)
    sum(map_.sum() for map_ in _measured_pass(model)(inputs)).backward()
    return (time.perf_counter() - start) / images


def _try_backbone(model: torch.nn.Module, size: int, stages: int) -> Tuple[float, float]:
    """Return the bytes that backward needs of a view in float32, and the share of the backbone's
    parameters that get no gradient from the last maps."""
    images, storages, backbone = _TRIED, {}, model.backbone
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    backbone.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        inputs = torch.zeros(images, input_channels(backbone) or 3, size, size)
        maps = _measured_pass(model)(inputs)
    sum(map_.sum() for map_ in maps[-stages:]).backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    unused = sum(p.numel() for p in trained if p.grad is None)
    # of a frozen backbone nothing is trained
    share = unused / max(1, sum(p.numel() for p in trained))
    return sum(storages.values()) / images, share
