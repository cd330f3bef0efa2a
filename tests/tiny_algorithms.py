# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Give every algorithm at a tiny size to the generic tests, and to processes that they start.

An algorithm's own test file defines ``tiny()``, which returns a :class:`Tiny`. Every file of
tests/test_models that does so is found by its path; no generic test names an algorithm.
"""

import importlib.util
import os
import re
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Tuple

TESTS = Path(__file__).resolve().parent
CONFIGS = TESTS.parent / 'configs'
# There is no synchronised BatchNorm on the CPU: a norm that does not look at other images.
NORM = dict(type='GN', num_groups=4)

STD, RANK = 'std', 'rank'
PAIRS = (STD, RANK, 'positive_similarity', 'negative_similarity')


RECIPE_OPTIONS = [
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_dataloader.dataset.pipeline.{multi_view}.transforms.0.0.scale=64',
    'train_cfg.max_epochs=2',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=1',
]


@dataclass
class Tiny:
    """Hold what the generic tests need to know of an algorithm.

    Attributes:
        algorithm (str): Name of the class.
        family (str): Algorithms of one family differ in their losses, and not in what a process,
            a tool or a command meets: 'queue', 'momentum' (its momentum follows a schedule),
            'teacher' (and the momentum encoder is what a run is for), 'siamese' (no momentum
            encoder) or 'detector' (a detector is what a run is for). Tests that take long take one
            algorithm of a family; ``make test-slow`` takes all.
        parts (Callable): From the config of a norm to that of a model without its backbone. The
            backbone's map has 64 channels.
        recipe (str): Name of the recipe for COCO, a file in configs/ without ``.py``.
        options (list[str]): ``--cfg-options`` that make the recipe tiny, next to those that all
            need (:attr:`recipe_options`).
        health (list[str]): Names of what the health monitor logs.
        losses (list[str]): Names of the losses in a log.
        multi_view (int): Place of ``MultiView`` in the recipe's pipeline.
        product (str): Path of the sub-module that a run is for.
        backbone (dict): What is different in the tiny backbone; with ``type`` all of it.
        small_backbone (list[str]): Options that make the recipe's backbone small.
        first_layer (str): Name of the first layer of the backbone.
        backbone_name (str): Name of the small backbone in messages.
        probed (str): The part whose last output the health monitor looks at.
        fix (Callable, optional): Makes random draws of a model's step a function of the images, so
            that the steps of two models can be compared.
        collapses (bool): Whether a learning rate that is a hundred times too high makes the
            features collapse.
        own (list[str]): Parts of the paths of files that are about this algorithm alone, next to
            those that bear its name.
        example (bool): Whether tests take this algorithm when any will do; True for one.
        passes (int, optional): Forward passes of the backbone in a step with gradients. None: one
            for each view.
        proposals (Callable): From the number of an image to how many proposals it has.
        unit (list[str]): Parameters whose rows a forward pass divides by their lengths.
        variants (dict): Further ``parts`` by the name of the variant.
        grows (list[str]): Calls of ``calls`` whose bytes grow with the number of processes.
        reads (list[str]): Methods by which a step reads tensors on the host.
        health_rows (int): How often the health monitor asks the device which rows it is to look at.
        fake (bool): Whether PyTorch's fake tensors have all that a step needs.
        watch (Callable, optional): Called in a process of test_communication.py before the steps;
            returns a list in which later steps record what ``calls`` needs.
        calls (Callable): From the numbers of values in an image and in its patches, and the
            record of ``watch``, to what a process of a batch of 3 images exchanges in a step
            before the gradients: the name of a call, and its bytes.
    """

    algorithm: str
    family: str
    parts: Callable[[dict], dict]
    recipe: str
    options: List[str]
    health: List[str]
    losses: List[str]
    multi_view: int = 1
    product: str = 'backbone'
    backbone: dict = field(default_factory=dict)
    small_backbone: List[str] = field(default_factory=lambda: ['model.backbone.depth=18'])
    first_layer: str = 'conv1'
    backbone_name: str = 'ResNet-18'
    probed: str = 'neck'
    fix: Optional[Callable] = None
    collapses: bool = True
    own: List[str] = field(default_factory=list)
    example: bool = False
    passes: Optional[int] = None
    proposals: Callable[[int], int] = lambda image: 2 + image % 3
    unit: List[str] = field(default_factory=list)
    variants: Dict[str, Callable[[dict], dict]] = field(default_factory=dict)
    grows: List[str] = field(default_factory=list)
    reads: List[str] = field(default_factory=list)
    health_rows: int = 0
    fake: bool = True
    watch: Optional[Callable[[], list]] = None
    calls: Callable[[int, int, list], List[Tuple[str, int]]] = lambda image, patches, seen: []

    @property
    def config(self) -> Path:
        """Return the path of the recipe."""
        return CONFIGS / f'{self.recipe}.py'

    @property
    def full_recipe(self) -> str:
        """Return the recipe's complete name, which the short one stands for."""
        (base,) = re.findall(r"_base_ = '.*/(.*)\.py'", self.config.read_text(encoding='utf-8'))
        return base

    @property
    def recipe_options(self) -> List[str]:
        """Return all options that make the recipe tiny."""
        shared = [option.format(multi_view=self.multi_view) for option in RECIPE_OPTIONS]
        return [*self.small_backbone, *shared, *self.options]

    @property
    def is_resnet(self) -> bool:
        """Return whether the backbone is a ResNet, whose layers some tests name."""
        return 'type' not in self.backbone

    @property
    def method(self) -> str:
        """Return the name that commands take, in small letters."""
        return self.recipe.split('_')[0]


def health_names(**kinds) -> List[str]:
    """Return names such as 'dense_std', of kinds of features and what is measured of them."""
    return [f'{kind.rstrip("_")}_{name}' for kind, names in kinds.items() for name in names]


@lru_cache(maxsize=None)
def tiny_forms() -> Dict[str, Tiny]:
    """Return what every test file with a ``tiny()`` gives, by the name of the class."""
    forms = {}
    for path in sorted((TESTS / 'test_models').glob('test_*.py')):
        if re.search(r'^def tiny\(\)', path.read_text(encoding='utf-8'), re.M):
            spec = importlib.util.spec_from_file_location(f'tiny_{path.stem}', path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            form = module.tiny()
            forms[form.algorithm] = form
    return dict(sorted(forms.items()))


def algorithms(variants: bool = False, labelled: bool = False) -> List[str]:
    """Return the names of all algorithms that train on a folder of images.

    Args:
        variants (bool): Also the names of their variants, which :func:`tiny_model` takes.
        labelled (bool): Also those that declare that they need labels, of which
            :func:`joined_batch` gives some.
    """
    kinds = {name: algorithm_class(name) for name in tiny_forms()}
    forms = [f for n, f in tiny_forms().items() if labelled or not kinds[n].needs_labels]
    return [form.algorithm for form in forms] + [
        name for form in forms for name in form.variants if variants
    ]


def first_where(test: Callable[[type], bool]) -> str:
    """Return the first algorithm whose class passes a test."""
    return next(name for name in algorithms() if test(algorithm_class(name)))


def algorithms_of(*families: str) -> List[str]:
    """Return the algorithms of some families."""
    return [name for name in algorithms() if tiny_form(name).family in families]


def one_a_family() -> List[str]:
    """Return the first algorithm of every family."""
    return sorted({tiny_form(name).family: name for name in reversed(algorithms())}.values())


def each_algorithm(
    quick: Optional[List[str]] = None,
    variants: bool = False,
    resnets: bool = False,
    labelled: bool = False,
):
    """Parametrise a test over ``algorithm``.

    Args:
        quick (list[str], optional): Algorithms that are tested where slow tests are not; for a
            test that takes long or starts processes. Defaults to all.
        variants (bool): Whether variants are tested too.
        resnets (bool): Whether only those are tested whose backbone is a ResNet.
        labelled (bool): Whether those are tested too that need labels.
    """
    import pytest

    names = [n for n in algorithms(variants, labelled) if tiny_form(n).is_resnet or not resnets]
    slow = [name for name in names if quick is not None and name not in quick]
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in slow]
    return pytest.mark.parametrize('algorithm', [*(quick or names), *slow])


def each_method(methods: Iterable[str], argument: str = 'method'):
    """Parametrise a test that takes long over names that commands take; those of one algorithm of
    every family are tested where slow tests are not.

    Args:
        methods (Iterable[str]): The names.
        argument (str): Name of the test's argument.
    """
    import pytest

    quick = {tiny_form(name).method for name in one_a_family()}
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        argument, [m if m in quick else pytest.param(m, marks=slow) for m in methods]
    )


def tiny_form(algorithm: Optional[str] = None) -> Tiny:
    """Return what the test file of an algorithm gives.

    Args:
        algorithm (str, optional): Name of its class or of its variant. Defaults to the algorithm
            that tests take when any will do.
    """
    forms = tiny_forms()
    if algorithm is None:
        (example,) = [form for form in forms.values() if form.example]
        return example
    return forms.get(algorithm) or next(f for f in forms.values() if algorithm in f.variants)


def algorithm_class(algorithm: str) -> type:
    """Return the class of an algorithm or of its variant."""
    import mmdense.models

    return getattr(mmdense.models, tiny_form(algorithm).algorithm)


def has_momentum_encoder(algorithm: str) -> bool:
    """Return whether an algorithm has a momentum encoder."""
    from mmdense.models import MomentumSelfSupervisor

    return issubclass(algorithm_class(algorithm), MomentumSelfSupervisor)


def tiny_model_config(algorithm: Optional[str] = None, norm: dict = NORM, **changes) -> dict:
    """Return the config of a tiny model, without BatchNorm unless asked for.

    Args:
        algorithm (str, optional): As for :func:`tiny_form`.
        norm (dict): Config of the norm.
        changes: Further keys of the config; ``backbone`` has those that differ.
    """
    form = tiny_form(algorithm)
    backbone = dict(
        type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8, norm_cfg=norm
    )
    backbone = {**({} if 'type' in form.backbone else backbone), **form.backbone}
    backbone.update(changes.pop('backbone', {}))
    parts = form.variants.get(algorithm, form.parts)(norm)
    return dict(type=form.algorithm, backbone=backbone, **parts, **changes)


def tiny_model(algorithm: Optional[str] = None, norm: dict = NORM, **changes):
    """Build the model of :func:`tiny_model_config`, the same in every process."""
    import torch
    from mmengine.registry import DefaultScope

    from mmdense.registry import MODELS

    config = tiny_model_config(algorithm, norm, **changes)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(config)
    fix = tiny_form(algorithm).fix
    if fix is not None:
        fix(model)
    return model


def joined_batch(algorithm: str, number: int = 6):
    """Return the views of images that an algorithm takes, with boxes.

    The first views hardly overlap and the others do, so that processes have differently many
    positives.
    """
    import torch
    from mmengine.structures import InstanceData
    from mmpretrain.structures import DataSample

    declared = algorithm_class(algorithm).views
    rng = torch.Generator().manual_seed(1)
    views = list(torch.randn(declared.groups[0], number, 3, 96, 96, generator=rng))
    boxes = torch.tensor([[0.1, 0.1, 0.7, 0.8], [0.9, 0.2, 0.3, 0.9]]).repeat(number, 1, 1)
    boxes[:2, 0] = torch.tensor([0.0, 0.0, 0.2, 0.3])
    boxes += 0.02 * torch.rand(number, 2, 4, generator=rng)
    for i, count in enumerate(declared.groups[1:], 2):
        patches = declared.patches and i == len(declared.groups)
        size = (32, 288) if patches else (96 // i, 96 // i)
        views += list(torch.randn(count, number, 3, *size, generator=rng))
    if declared.boxes and declared.count > 2:
        boxes = torch.cat([boxes, boxes[:, 1:].expand(-1, declared.count - 2, -1)], dim=1)
    samples = [DataSample(metainfo=dict(view_boxes=box)) for box in boxes]
    for i, sample in enumerate(samples if declared.proposals else ()):
        drawn = torch.rand(tiny_form(algorithm).proposals(i), 4, generator=rng)
        corner, size = 0.3 + 0.2 * drawn[:, :2], 0.2 + 0.1 * drawn[:, 2:]  # not of one size
        sample.set_field(torch.cat([corner, corner + size], dim=1), 'proposals')
    for i, sample in enumerate(samples if algorithm_class(algorithm).needs_labels else ()):
        number = (2 + i) % 4  # 0 too
        corner, size = 96 * torch.rand(2, number, 2, generator=rng) / 2
        boxes = torch.cat([corner, corner + 4 + size / 2], dim=1)
        labels = torch.arange(number) % 3
        sample.set_metainfo(dict(img_shape=(96, 96), batch_input_shape=(96, 96)))
        sample.set_field(InstanceData(bboxes=boxes, labels=labels), 'gt_instances')
    return views, samples


def main(functions: dict) -> None:
    """Call a function in one of the processes that the fixture ``in_processes`` starts."""
    import torch
    from torch import distributed

    name, folder, *arguments = sys.argv[1:]
    distributed.init_process_group('gloo')
    torch.set_num_threads(1)
    torch.manual_seed(distributed.get_rank())
    result = functions[name](distributed.get_rank(), *arguments)
    torch.save(result, f'{folder}/{distributed.get_rank()}.pth')
    os._exit(0)  # PyTorch 2.1 can hang while it takes gloo down
