# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Settings that depend on the data, by rules, each with its reason.

Pure functions: :func:`derive_settings` puts them together.
"""

import re
from math import ceil
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from mmengine.config import Config

from mmdense.engine.training import loss_scale
from mmdense.utils.errors import DataError, InputError

from .labels import Labels
from .survey import Images, Machine, Network

FEWEST_IMAGES = 8
COCO_IMAGES_SEEN = 800 * 118_287  # 95 million: 800 epochs of COCO


class Options(NamedTuple):
    """What the user decides; None leaves it to the rules."""

    method: str = 'densecl'
    backbone: str = 'resnet50'
    epochs: Optional[int] = None
    batch_size: Optional[int] = None
    workers: Optional[int] = None
    gpus: int = 1
    size: Optional[int] = None
    seed: int = 0
    init: Optional[str] = None
    # labelled images: the path, then what :func:`survey_labels` found
    labels: Union[None, str, Labels] = None
    ignore_label: Optional[int] = None
    # of ``init``: whether it fills the whole algorithm, and how many prototypes it has
    init_whole: bool = True
    init_prototypes: Optional[int] = None


class Setting(NamedTuple):
    """A row of the table, and what it changes in the recipe.

    Attributes:
        name (str): For people.
        value (Any): For people.
        reason (str): One sentence.
        config (dict): Keys of the config, with dots, and their values; those
            that begin with ``pipeline`` are places in the training pipeline.
            Empty where all is as in the config that is inherited.
    """

    name: str
    value: Any
    reason: str
    config: Dict[str, Any] = {}


def power_of_two(value: float) -> int:
    """The largest that is not above ``value``, at least 1."""
    return 1 << (max(int(value), 1).bit_length() - 1)


def choose_size(side: int, usual: int) -> int:
    """Side of the views: the recipe's, or where images are smaller a multiple of 32, from 64."""
    return min(usual, max(64, side // 32 * 32))


def choose_batch(images: int, gpus: int, usual: int, fits: int, device: str) -> Tuple[int, str]:
    """Images a process and step, a power of two, and why.

    Args:
        images (int): In the data set, at least 8 for each of ``gpus``.
        gpus (int): Processes.
        usual (int): The recipe's total batch.
        fits (int): As many as there is memory for.
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
    return max(2, power_of_two(limit)), reason


def choose_queue(images: int, batch: int, steps: int, recipe: Config) -> Tuple[int, str]:
    """Keys in a queue, a multiple of the total batch, and why.

    A key is some steps old, and the twin has moved meanwhile. Where it has moved far, a query's own
    key is told from those of the queue by its age alone: the loss is low, and the features have few
    dimensions (docs/evidence.md has the figures).
    """
    usual = recipe.model.queue_len
    age = usual // recipe.auto_scale_lr.base_batch_size  # steps, of the recipe's oldest key
    limits = [
        (usual, "the recipe's"),
        (images, 'at most the number of images, or keys of an image meet its own old ones'),
        (batch * steps / 20, f'no key older than a twentieth of the {steps:,} steps'),
        (batch * age, f'no key older than {age} steps, as in the recipe'),
    ]
    limit, reason = min(limits, key=lambda item: item[0])
    return max(power_of_two(limit) // batch, 1) * batch, reason


def choose_epochs(images: int, device: str, continued: bool) -> Tuple[int, str]:
    """From how many images a run should see, and why."""
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
    """For a total batch, and why: linear in it for SGD (arXiv:1706.02677), by its root for LARS.

    LARS makes every step lr · 0.001 of the weights long, whatever the gradient. Linear, few steps
    of a small batch lead nowhere (docs/evidence.md); the root is what was found for optimizers of
    this kind (LAMB, arXiv:1904.00962, section 4).
    """
    share, how = batch / usual_batch, 'linear in the batch'
    if optimizer.split('.')[-1] == 'LARS':
        share, how = share**0.5, 'by the root of the batch'
    return float(f'{usual * share:.6g}'), f'{usual:g} for {usual_batch} images, {how}'


def choose_warmup(epochs: int, steps_per_epoch: int, usual: int) -> int:
    """Epochs: the recipe's, or 500 steps where these are more; at most a tenth of the run."""
    return min(max(usual, ceil(500 / steps_per_epoch)), max(1, epochs // 10))


def choose_prototypes(images: int, usual: int) -> int:
    """SlotCon's: 16 to the recipe's, one for each eight images; 2048 from a million."""
    return 2048 if images >= 10**6 else min(max(power_of_two(images / 8), 16), usual)


def choose_workers(cores: int, gpus: int, device: str, usual: int) -> int:
    """Processes that load images, for each that trains."""
    share = cores // gpus if device == 'cuda' else cores // gpus // 4  # the rest computes
    return min(max(share, 1), usual)


def choose_threads(cores: int, processes: int) -> int:
    """Of each of several processes that train on a CPU."""
    return max(1, cores // processes)


def images_that_fit(memory: int, network: Network, half: bool) -> int:
    """How many of a batch there is memory for, by what backward keeps."""
    # weights, gradients, optimizer's momentum, twin
    fixed = 16 * network.parameters
    each = network.bytes_per_image * (0.5 if half else 1) * 1.4  # what is used on the way
    return int((0.8 * memory - fixed) / each)


def derive_settings(
    images: Images,
    machine: Machine,
    network: Network,
    recipe: Config,
    options: Options,
    base: Optional[Config] = None,
) -> List[Setting]:
    """All settings of a run.

    Args:
        images (Images): Of :func:`~mmdense.apis.planning.survey_images`.
        machine (Machine): Of :func:`~mmdense.apis.planning.survey_machine`.
        network (Network): Of :func:`~mmdense.apis.planning.survey_network`.
        recipe (Config): Of :func:`~mmdense.apis.planning.read_recipe`.
        options (Options): What was asked for.
        base (Config, optional): The config that is to be inherited. Defaults to the recipe.

    Returns:
        list[Setting]: With what differs from ``base``.

    Raises:
        DataError: Too few images.
        InputError: More GPUs than there are, or a batch that does not fit the images.
    """
    device, gpus, n = machine.device, options.gpus, images.count
    where = images.dataset.get('ann_file') or images.dataset['data_root']
    if n < FEWEST_IMAGES * gpus:
        raise DataError(
            f'{n} image{"s" * (n != 1)} in {where}: at least {FEWEST_IMAGES} are needed'
            + (f' for each of {gpus} processes' if gpus > 1 else '')
            + ', and hundreds for features worth having'
        )
    if device == 'cuda' and gpus > machine.gpus:
        raise InputError(f'--gpus {gpus}, but there are {machine.gpus}')

    rows = [Setting('images', f'{n:,}', _about(images), _dataset(images))]
    rows.append(_backbone(options, network, recipe))
    if options.init:
        key = 'load_from' if options.init_whole else 'model.pretrained'
        what = 'fills the whole algorithm' if options.init_whole else 'fills the backbone alone'
        rows.append(Setting('init', options.init, f'{what}, strictly', {key: options.init}))
    size_rows, size = _size(images, recipe, options)
    rows += size_rows

    # what one process does in a step
    usual_batch = recipe.auto_scale_lr.base_batch_size
    memory = machine.memory if device == 'cuda' else machine.memory // gpus
    fits = images_that_fit(memory, network, bool(machine.half))
    batch, reason = choose_batch(n, gpus, usual_batch, fits, device)
    if options.batch_size:
        batch, reason = options.batch_size, 'as told'
        if batch * gpus > n:
            raise InputError(f'--batch-size {batch} × {gpus} process(es) is more than {n} images')
        if batch < 2:
            raise InputError('--batch-size must be at least 2: BatchNorm compares images')
    total = batch * gpus
    steps_per_epoch = n // total
    rows.append(Setting('batch', _times(batch, gpus), reason, _batch(batch, total)))
    rows.append(_precision(machine))
    epochs, reason = choose_epochs(n, device, bool(options.init))
    if options.epochs:
        epochs, reason = options.epochs, 'as told'
    steps = epochs * steps_per_epoch
    rows.append(
        Setting(
            'epochs',
            f'{epochs:,}',
            f'{reason}; {_plural(steps, "step")}',
            {'train_cfg.max_epochs': epochs},
        )
    )
    rows += _optimization(recipe, total, epochs, steps_per_epoch)
    rows += _algorithm(recipe, options, n, total, steps)
    rows += _running(recipe, options, machine, epochs, steps_per_epoch)
    known = (base or recipe).to_dict()
    return [row._replace(config=_differing(row.config, known)) for row in rows]


def _differing(config: Dict[str, Any], known: Dict[str, Any]) -> Dict[str, Any]:
    """What of the settings is not in a config."""

    def differs(key: str, value: Any) -> bool:
        node = known
        for name in re.sub(r'^pipeline\b', 'train_pipeline', key).split('.'):
            try:
                node = node[int(name) if isinstance(node, (list, tuple)) else name]
            except (KeyError, IndexError, TypeError):
                return value != []  # where there is no list it is empty
        return node != value

    return {key: value for key, value in config.items() if differs(key, value)}


def _about(images: Images) -> str:
    where = images.dataset.get('ann_file') or images.dataset['data_root']
    about = f'{where}; the shorter side is {images.side} px (median of {images.sampled})'
    if images.unreadable:
        about += f'; {images.unreadable} of these cannot be read'
    return about


def _dataset(images: Images) -> Dict[str, Any]:
    return {f'train_dataloader.dataset.{key}': value for key, value in images.dataset.items()}


def _times(batch: int, gpus: int) -> str:
    return str(batch) if gpus == 1 else f'{gpus} × {batch}'


def _backbone(options: Options, network: Network, recipe: Config) -> Setting:
    config: Dict[str, Any] = {}
    reason = "the recipe's"
    if network.backbone:
        delete = network.backbone.get('_delete_')
        pairs = {'model.backbone': network.backbone} if delete else {}
        config = pairs or {f'model.backbone.{k}': v for k, v in network.backbone.items()}
        reason = 'as told'
        if network.in_channels != recipe.model.neck.get('in_channels', network.in_channels):
            config['model.neck.in_channels'] = network.in_channels
            reason += f'; its last map has {network.in_channels} channels'
        if not network.all_used:
            config['find_unused_parameters'] = True  # several processes have to know
    return Setting('backbone', options.backbone, reason, config)


def _size(images: Images, recipe: Config, options: Options) -> Tuple[List[Setting], int]:
    """Of the views and, with DetCo, of the patches; crops; decoding."""
    views = recipe.train_pipeline[1]['transforms']
    usual, low = views[0][0]['scale'], views[0][0]['crop_ratio_range'][0]
    size = options.size or choose_size(images.side, usual)
    patches = recipe.model.type == 'DetCo'
    rows, config = [], {}
    for i in range(1 if patches else len(views)):
        config[f'pipeline.1.transforms.{i}.0.scale'] = size
    if patches:  # 2/7 of a view, cut from 85/64 of that
        patch = max(32, 64 * size // usual)
        config['pipeline.1.transforms.1.0.scale'] = 3 * (85 * patch // 64)
        config['pipeline.1.transforms.1.5.patch_size'] = patch
    told = 'as told' if options.size else "the recipe's"
    reason = told if options.size or size == usual else f'images are of {images.side} px'
    rows.append(Setting('view size', f'{size} px', reason, config))
    if size < usual and low < 0.2:
        config = {
            f'pipeline.1.transforms.{i}.0.crop_ratio_range': (0.2, 1.0) for i in range(len(views))
        }
        reason = f'images are small: {low:.0%} of one would be a few pixels'
        rows.append(Setting('crops', '20–100 %', reason, config))
    rows += _blur(views, size, usual)
    if images.side >= 2048:
        reason = 'large photographs: decoded at a half or less, twice as fast'
        rows.append(Setting('decoding', '≥ 1024 px', reason, {'pipeline.0.min_side': 1024}))
    return rows, size


def _blur(views: List[List[Config]], size: int, usual: int) -> List[Setting]:
    """In proportion to the views: a sigma of 2 px takes more from 96 px than from 224."""
    if size == usual:
        return []
    config, most = {}, 0.0
    for i, view in enumerate(views):
        for j, step in enumerate(view):
            if step['type'] == 'GaussianBlur':
                sigma = tuple(float(f'{s * size / usual:.3g}') for s in step['sigma'])
                config[f'pipeline.1.transforms.{i}.{j}.sigma'] = sigma
                most = max(most, step['sigma'][1])
    reason = f"in proportion to the view: the recipe's {most:g} px are of {usual}"
    value = f'σ ≤ {most * size / usual:.2g} px'
    return [Setting('blur', value, reason, config)] if config else []


def _batch(batch: int, total: int) -> Dict[str, Any]:
    return {
        'train_dataloader.batch_size': batch,
        'auto_scale_lr.base_batch_size': total,  # what lr is for
    }


def _precision(machine: Machine) -> Setting:
    if not machine.half:
        reason = f'{machine.name} computes no faster in half of it'
        if machine.device == 'cpu':
            reason = "MMEngine's mixed precision needs a GPU"
        return Setting('precision', 'float32', reason)
    config: Dict[str, Any] = {'optim_wrapper.type': 'AmpOptimWrapper'}
    config['optim_wrapper.dtype'] = machine.half
    config['optim_wrapper.loss_scale'] = loss_scale(machine.half)
    return Setting('precision', machine.half, f'mixed; {machine.name} has it', config)


def _optimization(recipe: Config, total: int, epochs: int, steps_per_epoch: int) -> List[Setting]:
    base, usual = recipe.auto_scale_lr.base_batch_size, recipe.optim_wrapper.optimizer.lr
    lr, reason = choose_lr(total, base, usual, recipe.optim_wrapper.optimizer.type)
    rows = [Setting('lr', f'{lr:g}', reason, {'optim_wrapper.optimizer.lr': lr})]
    schedule = recipe.param_scheduler[0].to_dict()
    if schedule['type'] == 'WarmupCosineLR':
        warmup = choose_warmup(epochs, steps_per_epoch, schedule['warmup'])
        config = {'param_scheduler': [dict(schedule, warmup=warmup)]}
        steps = warmup * steps_per_epoch
        reason = f'{steps:,} steps; then a cosine to the end'
        rows.append(Setting('warm-up', _plural(warmup, 'epoch'), reason, config))
    else:
        config = {'param_scheduler': [dict(schedule, T_max=epochs, end=epochs)]}
        rows.append(Setting('warm-up', 'none', "the recipe's; a cosine to the end", config))
    return rows


def _algorithm(
    recipe: Config, options: Options, images: int, total: int, steps: int
) -> List[Setting]:
    model, rows = recipe.model, []
    if 'queue_len' in model:
        queue, reason = choose_queue(images, total, steps, recipe)
        rows.append(Setting('queue', f'{queue:,}', reason, {'model.queue_len': queue}))
    if model.type == 'SlotCon':
        number = choose_prototypes(images, model.num_prototypes)
        reason = 'one for each eight images, 16 to 256'
        if options.init_prototypes:
            number, reason = options.init_prototypes, f'as {options.init} has them'
        rows.append(Setting('prototypes', number, reason, {'model.num_prototypes': number}))
    if model.type == 'DenseCL':
        when, reason, hooks = 'from the start', "the recipe's", []
        if options.init:
            reason = 'features are there to match cells by'
        elif steps < 20_000:
            start = min(1000, ceil(steps / 4))
            when = f'from step {start}'
            reason = 'until then cells would be matched by random features'
            hooks = [dict(type='LambdaWarmupHook', start_iters=start)]
        rows.append(Setting('dense loss', when, reason, {'custom_hooks': hooks}))
    return rows


def _running(
    recipe: Config, options: Options, machine: Machine, epochs: int, steps_per_epoch: int
) -> List[Setting]:
    usual = recipe.train_dataloader.num_workers
    workers = choose_workers(machine.cores, options.gpus, machine.device, usual)
    reason = f'{machine.cores} cores' + (', most of them compute' * (machine.device == 'cpu'))
    if options.workers is not None:
        workers, reason = options.workers, 'as told'
    rows = [Setting('workers', workers, reason, {'train_dataloader.num_workers': workers})]
    usual = recipe.default_hooks.logger.interval
    interval = min(usual, steps_per_epoch)
    reason = f'an epoch has {_plural(steps_per_epoch, "step")}'
    config: Dict[str, Any] = {'default_hooks.logger.interval': interval}
    rows.append(Setting('log', f'every {_plural(interval, "step")}', reason, config))
    every = max(1, round(epochs / 16))
    config = {'default_hooks.checkpoint.interval': every}
    rows.append(
        Setting('checkpoints', f'every {_plural(every, "epoch")}', 'the last three stay', config)
    )
    if options.labels:
        every = max(1, round(epochs / 10))
        reason = f'nearest neighbours and a linear probe; {options.labels.about}'
        hook = dict(type='DenseEvaluationHook', interval=every, data=options.labels.data)
        config = {'default_hooks.evaluation': hook}
        rows.append(Setting('evaluation', f'every {_plural(every, "epoch")}', reason, config))
    signals = ['SIGINT', 'SIGTERM', 'SIGUSR1']
    config = {
        'default_hooks.preemption.signals': signals,
        'default_hooks.progress_bar': dict(type='ProgressBarHook'),
    }
    rows.append(Setting('Ctrl-C', 'saves', 'after the running step; --resume goes on', config))
    rows.append(
        Setting(
            'seed', options.seed, 'the same command, the same run',
            {'randomness.seed': options.seed},
        )
    )  # fmt: skip
    return rows


def _plural(number: int, name: str) -> str:
    return f'{number:,} {name}' if number == 1 else f'{number:,} {name}s'
