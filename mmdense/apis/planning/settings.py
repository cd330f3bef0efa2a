# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Derive settings that depend on the data, by rules, each with its reason.

All functions are pure; :func:`derive_settings` puts them together. Settings of an algorithm come
from its ``small_data_rules()``.
"""

import re
from copy import deepcopy
from math import ceil
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from mmengine.config import Config, ConfigDict

from mmdense.datasets.transforms.bands import ValueRange
from mmdense.engine.training import loss_scale
from mmdense.models.selfsup import RunFacts, Setting
from mmdense.models.selfsup.momentum import power_of_two
from mmdense.utils.checks import is_number
from mmdense.utils.errors import DataError, InputError

from .labels import Labels
from .methods import find_algorithm
from .survey import Images, Machine, Network, backbone_name
from .view_settings import (
    ViewGroup,
    blur_config,
    find_step,
    largest_groups,
    largest_size,
    read_views,
    scale_views,
    size_config,
)

FEWEST_IMAGES = 8
EXPLICIT = 'set explicitly'
COCO_IMAGES_SEEN = 800 * 118_287  # 95 million: 800 epochs of COCO


class Options(NamedTuple):
    """Hold what the user decides; None leaves it to the rules.

    Attributes:
        method (str): Name of the method.
        backbone (str, optional): Name of the backbone.
        epochs (int, optional): Epochs of the run.
        batch_size (int, optional): Images a process and step.
        workers (int, optional): Processes that load images, for each that trains.
        gpus (int): Processes that train.
        size (int, optional): Side of the largest views in pixels.
        seed (int): Seed of the run.
        init (str, optional): Checkpoint to start from.
        teacher (str, optional): Checkpoint of the teacher to distil.
        labels (str | Labels, optional): Labelled images: the path, then what
            :func:`survey_labels` found.
        ignore_label (int, optional): Number of pixels in label maps that do not count.
        exclude (tuple[str], optional): Patterns of images to leave out.
        value_range (tuple, optional): ``value_range`` of :class:`~mmdense.datasets.LoadImage`.
        in_channels (int, optional): Channels of the images.
        custom_imports (tuple[str]): Modules to import.
        init_whole (bool): Whether ``init`` fills the complete algorithm.
        init_shapes (dict): Shape of every tensor of the algorithm in ``init``.
    """

    method: str = 'densecl'
    backbone: Optional[str] = None
    epochs: Optional[int] = None
    batch_size: Optional[int] = None
    workers: Optional[int] = None
    gpus: int = 1
    size: Optional[int] = None
    seed: int = 0
    init: Optional[str] = None
    teacher: Optional[str] = None
    labels: Union[None, str, Labels] = None
    ignore_label: Optional[int] = None
    exclude: Optional[Tuple[str, ...]] = None
    value_range: Optional[ValueRange] = None
    in_channels: Optional[int] = None
    custom_imports: Tuple[str, ...] = ()
    init_whole: bool = True
    init_shapes: Mapping[str, Tuple[int, ...]] = {}


def choose_size(side: int, usual: int) -> int:
    """Return the side of the views: the recipe's, or where images are smaller a multiple of 32,
    at least 64."""
    return min(usual, max(64, side // 32 * 32))


def choose_batch(images: int, gpus: int, usual: int, fits: int, device: str) -> Tuple[int, str]:
    """Return the images a process and step, the recipe's or a power of two, and the reason.

    Args:
        images (int): Number of images in the data set, at least 8 for each of ``gpus``.
        gpus (int): Processes.
        usual (int): The recipe's total batch.
        fits (int): Number of images that there is memory for.
        device (str): 'cpu' or 'cuda'.
    """
    limits = [
        (usual / gpus, f"the recipe's {usual} in all"),
        (images / gpus / 4, f'four steps or more an epoch of {images:,} images'),
        (fits, 'memory'),
    ]
    if device == 'cpu':
        limits.append((32, 'a CPU takes a second or more for each'))
    limit, reason = min(limits, key=lambda item: item[0])
    if limit == usual // gpus:  # as many as in the recipe, whatever their number
        return max(2, usual // gpus), reason
    return max(2, power_of_two(limit)), reason


def choose_epochs(images: int, device: str, continued: bool) -> Tuple[int, str]:
    """Return the number of epochs by how many images a run should see, and the reason."""
    seen, reason = 800 * images, '800 epochs, as on COCO'
    few = seen < 400_000
    if few:
        seen, reason = 400_000, '400,000 views, at most 2,000 epochs'
    elif seen > COCO_IMAGES_SEEN:
        seen, reason = COCO_IMAGES_SEEN, '95 million images, as 800 epochs of COCO'
    if continued:
        seen, reason = seen // 4, f'features are there: a quarter of {reason}'
    elif few:
        reason = f'few images: {reason}'
    if device == 'cpu' and seen > 20_000:
        seen, reason = 20_000, '20,000 images, as a CPU is slow: only a beginning'
    return min(max(round(seen / images), 1), 2000), reason


def choose_lr(batch: int, usual_batch: int, usual: float, optimizer: str) -> Tuple[float, str]:
    """Return the learning rate for a total batch, and the reason.

    It is linear in the batch for SGD (arXiv:1706.02677), by its root for LARS and AdamW, whose
    steps are as long whatever the size of the gradient. Linear, few steps of a small batch lead
    nowhere (docs/evidence.md, docs/algorithms/mae.md); the root is what was found for optimizers
    of this kind (LAMB, arXiv:1904.00962, section 4; Adam, arXiv:2205.10287).
    """
    factor, how = _lr_factor(batch / usual_batch, optimizer)
    return float(f'{usual * factor:.6g}'), f'{usual:g} for {usual_batch} images, {how}'


def _lr_factor(share: float, optimizer: str) -> Tuple[float, str]:
    if optimizer.split('.')[-1] in ('LARS', 'Adam', 'AdamW'):
        return share**0.5, 'by the root of the batch'
    return share, 'linear in the batch'


def choose_warmup(epochs: int, steps_per_epoch: int, usual: int) -> int:
    """Return the epochs of warm-up: the recipe's, or 500 steps where these are more; at most a
    tenth of the run."""
    return min(max(usual, ceil(500 / steps_per_epoch)), max(1, epochs // 10))


def choose_workers(cores: int, gpus: int, device: str, usual: int) -> int:
    """Return the number of processes that load images, for each that trains."""
    share = cores // gpus if device == 'cuda' else cores // gpus // 4  # the rest computes
    return min(max(share, 1), usual)


def choose_threads(cores: int, processes: int) -> int:
    """Return the threads of each of several processes that train on a CPU."""
    return max(1, cores // processes)


def images_that_fit(memory: int, network: Network, half: bool) -> int:
    """Return how many images of a batch there is memory for, by what backward keeps."""
    fixed = bytes_of_batch(0, network, half)
    return int((0.8 * memory - fixed) / (bytes_of_batch(1, network, half) - fixed))


def bytes_of_batch(images: int, network: Network, half: bool) -> float:
    """Return the bytes of memory that a step of so many images takes."""
    # weights, gradients, optimizer's momentum, momentum encoder
    fixed = 16 * network.parameters
    each = network.bytes_per_image * (0.5 if half else 1) * 1.4  # 40 % for intermediate results
    return fixed + images * each


class _Length(NamedTuple):
    """Hold the length of a run: images in a step over all processes, and the epochs."""

    total: int
    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def derive_settings(
    images: Images,
    machine: Machine,
    network: Network,
    recipe: Config,
    options: Options,
    base: Optional[Config] = None,
) -> List[Setting]:
    """Return all settings of a run.

    Args:
        images (Images): Images of :func:`~mmdense.apis.planning.survey_images`.
        machine (Machine): Machine of :func:`~mmdense.apis.planning.survey_machine`.
        network (Network): Networks of :func:`~mmdense.apis.planning.survey_network`.
        recipe (Config): Config of :func:`~mmdense.apis.planning.read_recipe`.
        options (Options): What was asked for.
        base (Config, optional): The config that is to be inherited. Defaults to the recipe.

    Returns:
        list[Setting]: Settings, with what differs from ``base``.

    Raises:
        DataError: When there are too few images.
        InputError: When there are fewer GPUs, or a batch does not fit the images.
    """
    _check_processes(images, machine, options.gpus)
    known = (base or recipe).to_dict()
    if network.attention and 'Adam' not in recipe.optim_wrapper.optimizer.type:
        recipe = _for_transformer(recipe)
    rows = [
        Setting('images', f'{images.count:,}', _describe_images(images), _dataset_config(images)),
        *_decide_loading(images, recipe, options),
        _decide_backbone(options, network, recipe),
        *_decide_init(options),
        *_decide_views(images, recipe, options),
    ]
    batch = _decide_batch(images, machine, network, recipe, options)
    epochs, length = _decide_epochs(images, machine, options, batch.value)
    batch = batch._replace(value=_format_batch(batch.value, options.gpus))
    rows += [batch, _decide_precision(machine), epochs]
    rows += _decide_optimization(recipe, length)
    share = length.total / recipe.auto_scale_lr.base_batch_size
    facts = RunFacts(
        *(images.count, length.total, length.steps, recipe, options.init or ''),
        options.init_shapes,
        _lr_factor(share, recipe.optim_wrapper.optimizer.type)[0],
    )
    rows += find_algorithm(recipe).small_data_rules(facts)
    rows += _decide_running(recipe, options, machine, length)
    return [row._replace(config=_select_differing(row.config, known)) for row in rows]


def _check_processes(images: Images, machine: Machine, gpus: int) -> None:
    count = images.count
    if count < FEWEST_IMAGES * gpus:
        each = f' for each of {gpus} processes' if gpus > 1 else ''
        raise DataError(
            f'{_format_count(count, "image")} in {images.path}: at least '
            f'{FEWEST_IMAGES} are needed{each}, and hundreds for features worth having'
        )
    if machine.device == 'cuda' and gpus > machine.gpus:
        raise InputError(f'--gpus {gpus}, but there are {machine.gpus}')


def _select_differing(config: Dict[str, Any], known: Dict[str, Any]) -> Dict[str, Any]:
    """Return the settings that a config does not have."""

    def differs(key: str, value: Any) -> bool:
        node = known
        for name in re.sub(r'^pipeline\b', 'train_pipeline', key).split('.'):
            try:
                node = node[int(name) if isinstance(node, (list, tuple)) else name]
            except (KeyError, IndexError, TypeError):
                return value != []  # where there is no list it is empty
        if isinstance(value, dict):  # what replaces an equal value changes nothing
            value = {name: part for name, part in value.items() if name != '_delete_'}
        return node != value

    return {key: value for key, value in config.items() if differs(key, value)}


def _describe_images(images: Images) -> str:
    about = f'{images.path}; the shorter side is {images.side} px (median of {images.sampled})'
    if images.unreadable:
        about += f'; {images.unreadable} of these cannot be read'
    return '; '.join([about, *images.messages])


def _dataset_config(images: Images) -> Dict[str, Any]:
    return {f'train_dataloader.dataset.{key}': value for key, value in images.dataset.items()}


def _decide_loading(images: Images, recipe: Config, options: Options) -> List[Setting]:
    """Return the range of values and the channels that images are read with."""
    load = find_step(recipe.train_pipeline, 'LoadImage')
    value_range, reason = options.value_range, EXPLICIT
    if value_range is None and images.narrow is not None:
        value_range, reason = images.narrow.value_range, str(images.narrow)
    channels = options.in_channels
    if load is None and (value_range or channels):
        raise InputError(
            'the recipe has no LoadImage of mmdense, which --value-range and --in-channels set'
        )
    rows = []
    if value_range is not None:
        low, high = (f'{n:,}' if is_number(n) else n for n in value_range)
        config = {f'{load.place}.value_range': tuple(value_range)}
        rows.append(Setting('value range', f'{low} to {high}', reason, config))
    if channels is not None:
        config = {f'{load.place}.channels': channels}
        reason = EXPLICIT
        if images.pixels is not None:
            mean, std = images.pixels
            config.update({'model.data_preprocessor.mean': mean})
            config.update({'model.data_preprocessor.std': std})
            reason += '; mean and std are those of a sample'
        rows.append(Setting('channels', str(channels), reason, config))
    return rows


def _format_batch(batch: int, gpus: int) -> str:
    return str(batch) if gpus == 1 else f'{gpus} × {batch}'


def _decide_backbone(options: Options, network: Network, recipe: Config) -> Setting:
    config: Dict[str, Any] = {}
    reason = "the recipe's"
    if network.backbone:
        delete = network.backbone.get('_delete_')
        pairs = {'model.backbone': network.backbone} if delete else {}
        config = pairs or {f'model.backbone.{k}': v for k, v in network.backbone.items()}
        reason = EXPLICIT if options.backbone else reason
        usual = (recipe.model.get('neck') or {}).get('in_channels', network.in_channels)
        if network.in_channels != usual:
            config['model.neck.in_channels'] = network.in_channels
            reason += f'; its last map has {network.in_channels} channels'
        if not network.all_used:
            config['find_unused_parameters'] = True  # several processes have to know
    name = options.backbone or backbone_name(recipe.model.backbone)
    return Setting('backbone', name, reason, config)


def _decide_init(options: Options) -> List[Setting]:
    if not options.init:
        return []
    part = 'complete algorithm' if options.init_whole else 'backbone alone'
    if options.in_channels is None:
        config = {'load_from' if options.init_whole else 'model.pretrained': options.init}
        return [Setting('init', options.init, f'fills the {part}, strictly', config)]
    way = 'sum' if options.in_channels == 1 else 'repeat'
    fill = dict(checkpoint=options.init, in_channels=way)
    config = {'model.pretrained': fill}
    if options.init_whole:
        config = {'model.init_cfg': dict(fill, type='Pretrained', _scope_='mmdense')}
    reason = f'fills the {part}, strictly; a first convolution of other channels is adapted ({way})'
    return [Setting('init', options.init, reason, config)]


def _decide_views(images: Images, recipe: Config, options: Options) -> List[Setting]:
    """Return the size of the views and of patches, the crops, the blur, and the decoding."""
    groups = read_views(recipe.train_pipeline)
    usual = largest_size(groups)
    size = options.size or choose_size(images.side, usual)
    reason = "the recipe's" if size == usual else f'images are of {images.side} px'
    if options.size:
        reason = EXPLICIT
    sides = sorted({side for _, side in scale_views(groups, size)}, reverse=True)
    value = f'{" + ".join(map(str, sides))} px'
    rows = [Setting('view size', value, reason, size_config(groups, size))]
    if size < usual:
        rows += _decide_crops(groups)
    if size != usual:
        rows += _decide_blur(groups, size)
    load = find_step(recipe.train_pipeline, 'LoadImage')
    if images.side >= 2048 and load is not None:
        reason = 'large photographs: decoded at a half or less, twice as fast'
        rows.append(Setting('decoding', '≥ 1024 px', reason, {f'{load.place}.min_side': 1024}))
    return rows


def _decide_crops(groups: List[ViewGroup]) -> List[Setting]:
    """Return crops that are no smaller than a fifth of an image; small views stay parts."""
    largest = largest_groups(groups)
    low = min(group.crop_ratio_range[0] for group in largest)
    if low >= 0.2:
        return []
    config = {f'{group.crop.place}.crop_ratio_range': (0.2, 1.0) for group in largest}
    reason = f'images are small: {low:.0%} of one would be a few pixels'
    return [Setting('crops', '20–100 %', reason, config)]


def _decide_blur(groups: List[ViewGroup], size: int) -> List[Setting]:
    """Return a blur in proportion to the views: a sigma of 2 px takes more from 96 px than from
    224."""
    config, before, after = blur_config(groups, size)
    if not config:
        return []
    usual = largest_size(groups)
    reason = f"in proportion to the view: the recipe's {before:g} px are of {usual}"
    return [Setting('blur', f'σ ≤ {after:.2g} px', reason, config)]


def _decide_batch(
    images: Images, machine: Machine, network: Network, recipe: Config, options: Options
) -> Setting:
    """Return the images of one process in a step."""
    gpus, count = options.gpus, images.count
    batch, reason = options.batch_size, EXPLICIT
    if batch is None:
        memory = machine.memory if machine.device == 'cuda' else machine.memory // gpus
        fits = images_that_fit(memory, network, bool(machine.half))
        usual = recipe.auto_scale_lr.base_batch_size
        batch, reason = choose_batch(count, gpus, usual, fits, machine.device)
    elif batch * gpus > count:
        raise InputError(f'--batch-size {batch} × {gpus} process(es) is more than {count} images')
    elif batch < 2:
        raise InputError('--batch-size must be at least 2: BatchNorm compares images')
    config = {
        'train_dataloader.batch_size': batch,
        'auto_scale_lr.base_batch_size': batch * gpus,  # the batch that lr is for
    }
    return Setting('batch', batch, reason, config)


def _decide_precision(machine: Machine) -> Setting:
    if not machine.half:
        reason = f'{machine.name} computes no faster in half of it'
        if machine.device == 'cpu':
            reason = 'PyTorch reports no unit of this CPU for bfloat16'
        return Setting('precision', 'float32', reason)
    config: Dict[str, Any] = {'optim_wrapper.type': 'AmpOptimWrapper'}
    config['optim_wrapper.dtype'] = machine.half
    config['optim_wrapper.loss_scale'] = loss_scale(machine.half)
    return Setting('precision', machine.half, f'mixed; {machine.name} has it', config)


def _decide_epochs(
    images: Images, machine: Machine, options: Options, batch: int
) -> Tuple[Setting, _Length]:
    """Return the epochs, and the length of the run that follows."""
    total = batch * options.gpus
    epochs, reason = options.epochs, EXPLICIT
    if epochs is None:
        epochs, reason = choose_epochs(images.count, machine.device, bool(options.init))
    length = _Length(total, epochs, images.count // total)
    reason = f'{reason}; {_format_count(length.steps, "step")}'
    return Setting('epochs', f'{epochs:,}', reason, {'train_cfg.max_epochs': epochs}), length


def _decide_optimization(recipe: Config, length: _Length) -> List[Setting]:
    base, optimizer = recipe.auto_scale_lr.base_batch_size, recipe.optim_wrapper.optimizer
    lr, reason = choose_lr(length.total, base, optimizer.lr, optimizer.type)
    rows = [
        Setting('lr', f'{lr:g}', reason, {'optim_wrapper.optimizer.lr': lr}),
        _decide_schedule(recipe, length, lr),
    ]
    if optimizer.get('_delete_'):
        config = {'optim_wrapper.optimizer': dict(optimizer.to_dict(), lr=lr)}
        reason = (
            'a transformer does not train well by SGD or LARS: AdamW, its learning rate and its '
            'warm-up as in MoCo v3 (arXiv:2104.02057)'
        )
        rows[0] = rows[0]._replace(config={})
        rows.insert(0, Setting('optimizer', optimizer.type, reason, config))
    return rows


def _for_transformer(recipe: Config) -> Config:
    """Return a recipe with AdamW, and with a warm-up: the rules of MoCo v3."""
    recipe = deepcopy(recipe)
    base = recipe.auto_scale_lr.base_batch_size
    lr = float(f'{1.5e-4 * base / 256:.6g}')
    for schedule in recipe.param_scheduler:
        schedule.update(_scale_end(schedule, recipe.optim_wrapper.optimizer.lr, lr))
    recipe.optim_wrapper.optimizer = ConfigDict(
        _delete_=True, type='AdamW', lr=lr, weight_decay=0.1
    )
    for hook in recipe.get('default_hooks', {}).values():
        if hook is not None and 'lr' in hook:  # it keeps the learning rate of a part
            hook.lr = lr
    return recipe


def _scale_end(schedule: Dict[str, Any], usual: float, lr: float) -> Dict[str, float]:
    """Return where a schedule ends for another learning rate, if it ends at a share of it that is
    not near 0."""
    end = schedule.get('eta_min') or 0
    return dict(eta_min=float(f'{end * lr / usual:.6g}')) if end > usual / 100 else {}


def _decide_schedule(recipe: Config, length: _Length, lr: float) -> Setting:
    """Return the recipe's schedule for another length of the run and learning rate."""
    usual = recipe.optim_wrapper.optimizer.lr
    schedules = [s.to_dict() for s in recipe.param_scheduler]
    kinds = [s['type'] for s in schedules if 'param_name' not in s]  # of the learning rate
    if kinds == ['WarmupCosineLR']:
        warmup = choose_warmup(length.epochs, length.steps_per_epoch, schedules[0]['warmup'])
        schedules[0].update(warmup=warmup, **_scale_end(schedules[0], usual, lr))
        config = {'param_scheduler': schedules}
        reason = f'{warmup * length.steps_per_epoch:,} steps; then a cosine to the end'
        return Setting('warm-up', _format_count(warmup, 'epoch'), reason, config)
    value = 'none' if len(kinds) == 1 else "the recipe's"
    for schedule in schedules:
        if schedule['type'] == 'MultiStepLR':
            share = length.epochs / recipe.train_cfg.max_epochs
            steps = [max(1, round(share * step)) for step in schedule['milestones']]
            schedule['milestones'] = sorted({step for step in steps if step < length.epochs})
        if schedule['type'] == 'CosineAnnealingLR':
            for name in ('T_max', 'end'):  # without them it is as long as the run
                schedule.pop(name, None)
    if len(kinds) == 1 and recipe.optim_wrapper.optimizer.get('_delete_'):
        warmup = max(1, length.epochs // 10)
        rises = dict(type='LinearLR', start_factor=0.01, end=warmup, convert_to_iter_based=True)
        falls = dict(type='CosineAnnealingLR', by_epoch=True, begin=warmup)
        config = {'param_scheduler': [rises, falls][: 2 if length.epochs > warmup else 1]}
        reason = 'a tenth of the run, as in MoCo v3; then a cosine to the end'
        return Setting('warm-up', _format_count(warmup, 'epoch'), reason, config)
    reason = "the recipe's"
    if kinds[:1] == ['LinearWarmupLR']:
        warmup = choose_warmup(length.epochs, length.steps_per_epoch, schedules[0]['end'])
        schedules[0].update(end=warmup)
        value = _format_count(warmup, 'epoch')
        reason = f'{warmup * length.steps_per_epoch:,} steps'
    if kinds == ['MultiStepShareLR']:
        reason += f'; lowered at {" and ".join(f"{share:.0%}" for share in schedules[0]["shares"])}'
        reason += ' of the run'
    if kinds == ['MultiStepLR']:
        epochs = ' and '.join(map(str, schedules[0]['milestones'])) or 'none'
        reason += f'; lowered at epochs: {epochs}'
    if 'CosineAnnealingLR' in kinds:
        reason += '; a cosine to the end'
    return Setting('warm-up', value, reason, {'param_scheduler': schedules})


def _decide_running(
    recipe: Config, options: Options, machine: Machine, length: _Length
) -> List[Setting]:
    """Return what does not change the result: loading, log, checkpoints, evaluation, signals."""
    usual = recipe.train_dataloader.num_workers
    workers = choose_workers(machine.cores, options.gpus, machine.device, usual)
    reason = f'{machine.cores} cores'
    if machine.device == 'cpu':
        reason += ', most of them compute'
    if options.workers is not None:
        workers, reason = options.workers, EXPLICIT
    rows = [Setting('workers', workers, reason, {'train_dataloader.num_workers': workers})]
    interval = min(recipe.default_hooks.logger.interval, length.steps_per_epoch)
    reason = f'an epoch has {_format_count(length.steps_per_epoch, "step")}'
    config: Dict[str, Any] = {'default_hooks.logger.interval': interval}
    rows.append(Setting('log', _format_interval(interval, 'step'), reason, config))
    every = max(1, round(length.epochs / 16))
    config = {'default_hooks.checkpoint.interval': every}
    rows.append(
        Setting('checkpoints', _format_interval(every, 'epoch'), 'the last three stay', config)
    )
    if options.labels:
        every = max(1, round(length.epochs / 10))
        reason = f'nearest neighbours and a linear probe; {options.labels.about}'
        hook = dict(type='DenseEvaluationHook', interval=every, data=options.labels.data)
        config = {'default_hooks.evaluation': hook}
        rows.append(Setting('evaluation', _format_interval(every, 'epoch'), reason, config))
    config = {
        'default_hooks.preemption.signals': ['SIGINT', 'SIGTERM', 'SIGUSR1'],
        'default_hooks.progress_bar': dict(type='ProgressBarHook'),
    }
    rows.append(Setting('Ctrl-C', 'saves', 'after the running step; --resume continues', config))
    config = {'randomness.seed': options.seed}
    rows.append(Setting('seed', options.seed, 'the same command, the same run', config))
    return rows


def _format_interval(number: int, name: str) -> str:
    return f'every {name}' if number == 1 else f'every {number:,} {name}s'


def _format_count(number: int, name: str) -> str:
    return f'{number:,} {name}' if number == 1 else f'{number:,} {name}s'
