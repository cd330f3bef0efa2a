# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os.path as osp
from copy import deepcopy
from typing import List, NamedTuple, Optional, Sequence, Union

from mmengine.runner import CheckpointLoader

from mmdense.apis import hub
from mmdense.checkpoints import SelfSupPretrained, recognise
from mmdense.models.selfsup import Setting
from mmdense.utils.errors import InputError

from .backbone_names import usual_name
from .config_text import config_text
from .labels import survey_labels
from .methods import Bases, Method, find_method
from .settings import FEWEST_IMAGES, Options, choose_size, derive_settings
from .survey import (
    Images,
    Machine,
    Network,
    backbone_name,
    names_images,
    survey_images,
    survey_machine,
    survey_network,
)
from .timing import EIGHT
from .view_settings import largest_size, read_views


class Plan(NamedTuple):
    """Hold what a run depends on, the config that it inherits, and its settings."""

    images: Images
    machine: Machine
    network: Network
    base: Bases
    options: Options
    settings: List[Setting]
    method: Method


def make_plan(
    images: Union[str, Sequence[str]], options: Options, prefix: Optional[str] = None
) -> Plan:
    """Survey the images and the machine, and derive all settings.

    Args:
        images (str | Sequence[str]): Images of :func:`survey_images`.
        options (Options): What the user decides. ``init`` may be a path, a URL,
            or a name of ``mmdense list``; ``labels`` a path of :func:`survey_labels`.
        prefix (str, optional): The folder of :func:`survey_images`.

    Raises:
        MMDenseError: When the images or the options cannot be used, in one line.
    """
    method = find_method(options.method, options.custom_imports, options.backbone)
    if options.size is not None and options.size < 32:
        raise InputError(f'--size {options.size}: the last map is 1/32 of the views, at least 32')
    paths = [images] if isinstance(images, str) else list(images)
    if prefix and not options.labels and not any(map(names_images, paths)):
        where = osp.abspath(osp.expanduser(paths[0]))
        raise InputError(f'--prefix {prefix} is for a json or a list of images, {where} is neither')
    value_range, channels = options.value_range, options.in_channels
    found = survey_images(paths, prefix, options.exclude, value_range, channels)
    if options.teacher:
        method = _with_teacher(method, options.teacher)
    if options.init:
        options = _inspect_init(options, method.kind)
    if options.labels:
        labels = survey_labels(options.labels, prefix, options.ignore_label)
        options = options._replace(labels=labels)
    elif options.ignore_label is not None:
        raise InputError(f'--ignore-label {options.ignore_label} is for the label maps of --labels')
    usual = largest_size(read_views(method.recipe.train_pipeline))
    size = options.size or choose_size(found.side, usual)
    machine, network = (
        survey_machine(),
        survey_network(method.recipe, options.backbone, size, channels),
    )
    base = method.base(found.count)
    plan = Plan(found, machine, network, base, options, [], method)
    return _with_settings(plan)


def plan_text(plan: Plan, work_dir: str, command: str) -> str:
    """Return the config of a plan as text.

    Args:
        plan (Plan): Plan of :func:`make_plan`.
        work_dir (str): Where the run is to write.
        command (str): The command that writes the config, for the reader.
    """
    method = plan.method
    return config_text(plan.base, plan.settings, work_dir, command, method.changes, method.imports)


def plan_for_gpus(plan: Plan, most: int = EIGHT) -> Plan:
    """Return the plan for some GPUs, or for one where images are few.

    The GPUs are this machine's, or where it has none of 16 GB, with bfloat16.

    Args:
        plan (Plan): Plan of this machine.
        most (int): Number of the GPUs. Defaults to 8.
    """
    machine, options = plan.machine, plan.options
    if machine.device == 'cpu':
        machine = Machine('cuda', 'a GPU', EIGHT, 16 << 30, EIGHT * machine.cores, 'bfloat16')
    each = max(FEWEST_IMAGES, options.batch_size or 0)
    options = options._replace(gpus=most if plan.images.count >= most * each else 1)
    machine = machine._replace(gpus=options.gpus)
    return _with_settings(plan._replace(machine=machine, options=options))


def published_weights(plan: Plan) -> Optional[str]:
    """Return the name of weights that were published for the method and the backbone, if any."""
    method, backbone = plan.options.method, plan.options.backbone
    backbone = backbone or backbone_name(plan.method.recipe.model.backbone)
    names = [f'{method}_r50_{images}' for images in ('coco', 'in1k')]
    if backbone != 'resnet50':
        names = hub.list_models(f'{method}_{usual_name(backbone)}_')
    known = {*hub.list_models(), *hub.short_names().values()}
    return next((name for name in names if name in known and hub.find_weights(name)), None)


def _with_settings(plan: Plan) -> Plan:
    settings = derive_settings(
        plan.images,
        plan.machine,
        plan.network,
        plan.method.recipe,
        plan.options,
        plan.method.read_base(plan.images.count),
    )
    return plan._replace(settings=settings)


def _with_teacher(method: Method, teacher: str) -> Method:
    """Return a method with a checkpoint in the place of the recipe's teacher."""
    if 'teacher' not in method.recipe.model:
        raise InputError(f'--teacher is for distill, and {method.name} has no teacher')
    source = _locate_checkpoint(teacher)
    recipe = deepcopy(method.recipe)
    recipe.model.teacher = dict(checkpoint=source, **SelfSupPretrained(source).describe_network())
    return method._replace(recipe=recipe)


def _locate_checkpoint(source: str) -> str:
    """Return the path or the URL of a checkpoint; of a name the URL of what is downloaded."""
    if not (osp.isfile(source) or '://' in source or source.endswith(('.pth', '.pkl', '.tar'))):
        return hub._download(source)
    return osp.abspath(source) if osp.isfile(source) else source


def _inspect_init(options: Options, kind: type) -> Options:
    """Return the options with the path of ``init``, and with what the checkpoint fills."""
    source = _locate_checkpoint(options.init)
    checkpoint = CheckpointLoader.load_checkpoint(source, 'cpu', logger='silent')
    found = recognise(checkpoint, name=source)
    complete = found.algorithm is not None and found.algorithm_type in ('', kind.__name__)
    shapes = {}
    if complete:
        shapes = {name: tuple(tensor.shape) for name, tensor in found.algorithm.items()}
    return options._replace(init=source, init_whole=complete, init_shapes=shapes)
