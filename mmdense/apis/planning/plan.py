# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os.path as osp
from typing import List, NamedTuple, Optional

from mmengine.runner import CheckpointLoader

from mmdense.apis import hub
from mmdense.checkpoints import recognise
from mmdense.utils.errors import InputError

from .labels import survey_labels
from .settings import FEWEST_IMAGES, Options, Setting, choose_size, derive_settings
from .survey import (
    Images,
    Machine,
    Network,
    base_config,
    names_images,
    read_config,
    read_recipe,
    survey_images,
    survey_machine,
    survey_network,
)
from .timing import EIGHT


class Plan(NamedTuple):
    """Of a run: what it depends on, the config that it inherits, and its settings."""

    images: Images
    machine: Machine
    network: Network
    base: str
    options: Options
    settings: List[Setting]


def make_plan(images: str, options: Options, prefix: Optional[str] = None) -> Plan:
    """Looks at the images and the machine, and derives all settings.

    Args:
        images (str): A folder, a zip, an LMDB, a COCO json or a list.
        options (Options): What the user decides. ``init`` may be a path, a URL,
            or a name of ``mmdense list``; ``labels`` a path of :func:`survey_labels`.
        prefix (str, optional): Of :func:`survey_images`.

    Raises:
        MMDenseError: What is wrong, in one line.
    """
    if options.size is not None and options.size < 32:
        raise InputError(f'--size {options.size}: the last map is 1/32 of the views, at least 32')
    if prefix and not options.labels and not names_images(images):
        where = osp.abspath(osp.expanduser(images))
        raise InputError(f'--prefix {prefix} is for a json or a list of images, {where} is neither')
    found = survey_images(images, prefix)
    recipe = read_recipe(options.method)
    if options.init:
        options = _look_at_init(options, recipe.model.type)
    if options.labels:
        labels = survey_labels(options.labels, prefix, options.ignore_label)
        options = options._replace(labels=labels)
    elif options.ignore_label is not None:
        raise InputError(f'--ignore-label {options.ignore_label} is for the label maps of --labels')
    usual = recipe.train_pipeline[1]['transforms'][0][0]['scale']
    size = options.size or choose_size(found.side, usual)
    machine, network = survey_machine(), survey_network(recipe, options.backbone, size)
    base = base_config(options.method, found.count)
    settings = derive_settings(found, machine, network, recipe, options, read_config(base))
    return Plan(found, machine, network, base, options, settings)


def _look_at_init(options: Options, kind: str) -> Options:
    source = options.init
    if not (osp.isfile(source) or '://' in source or source.endswith(('.pth', '.pkl', '.tar'))):
        source = hub._download(source)
    elif osp.isfile(source):
        source = osp.abspath(source)
    checkpoint = CheckpointLoader.load_checkpoint(source, 'cpu', logger='silent')
    found = recognise(checkpoint, name=source)
    whole = found.algorithm is not None and found.algorithm_type in ('', kind)
    prototypes = None
    if whole and kind == 'SlotCon':
        names = [n for n in found.algorithm if n.startswith('grouping.')]
        prototypes = len(found.algorithm[names[0]]) if names else None
    return options._replace(init=source, init_whole=whole, init_prototypes=prototypes)


def plan_for_gpus(plan: Plan) -> Plan:
    """The same, with the settings for eight GPUs, or for one where images are few: as this
    machine's, or where it has none of 16 GB, with bfloat16."""
    machine, options = plan.machine, plan.options
    if machine.device == 'cpu':
        machine = Machine('cuda', 'a GPU', EIGHT, 16 << 30, EIGHT * machine.cores, 'bfloat16')
    each = max(FEWEST_IMAGES, options.batch_size or 0)
    options = options._replace(gpus=EIGHT if plan.images.count >= EIGHT * each else 1)
    machine = machine._replace(gpus=options.gpus)
    settings = derive_settings(
        plan.images,
        machine,
        plan.network,
        read_recipe(options.method),
        options,
        read_config(plan.base),
    )
    return plan._replace(machine=machine, options=options, settings=settings)


def published_weights(plan: Plan) -> Optional[str]:
    """The name of weights that were published for the method and the backbone, if there are."""
    method, backbone = plan.options.method, plan.options.backbone
    names = [f'{method}_r50_{images}' for images in ('coco', 'in1k')]
    if backbone != 'resnet50':
        names = hub.list_models(f'{method}_{backbone}_')
    return next(filter(hub.find_weights, names), None)
