# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define the contract between an algorithm and the rest of mmdense.

docs/add_an_algorithm.md explains it with an example.
"""

from inspect import Parameter, signature
from itertools import islice
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmdense.models.layers import KeyQueue, unflatten_queues
from mmdense.models.utils import input_channels
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError


class Views(NamedTuple):
    """Describe the views that ``loss()`` takes of every image.

    Attributes:
        groups (tuple[int]): Number of views of each size, the largest size first: ``(2, 6)``
            for SwAV's multi-crop. The sizes themselves are in the recipe's pipeline.
        trained (tuple[int], optional): Number of views of each size that a step computes
            gradients of; one that goes through the network twice counts twice. None: all of
            them.
        boxes (bool): Whether ``data_samples[i].view_boxes`` is needed.
        patches (bool): Whether the last group holds sets of patches, see
            :class:`mmdense.datasets.JigsawPatches`.
        proposals (bool): Whether ``data_samples[i].proposals`` is needed, see
            :class:`mmdense.datasets.LoadProposals`.
    """

    groups: Tuple[int, ...] = (2,)
    trained: Optional[Tuple[int, ...]] = None
    boxes: bool = False
    patches: bool = False
    proposals: bool = False

    @property
    def count(self) -> int:
        """Return the number of views of an image."""
        return sum(self.groups)

    def split(self, views: Sequence[Tensor]) -> List[List[Tensor]]:
        """Return the views of each size."""
        rest = iter(views)
        return [list(islice(rest, number)) for number in self.groups]


class RunFacts(NamedTuple):
    """Hold what the rules for small data depend on.

    Attributes:
        images (int): Number of images in the data set.
        batch (int): Images in a step, over all processes.
        steps (int): Steps of the run.
        recipe (Config): Config of the recipe that the settings start from.
        init (str): Checkpoint that the run starts from; '' without one.
        init_shapes (dict): Shape of every tensor of the algorithm in that checkpoint, by our
            names; empty where it holds a backbone alone.
        lr_factor (float): What the recipe's learning rate is multiplied by for this batch.
    """

    images: int
    batch: int
    steps: int
    recipe: Any
    init: str = ''
    init_shapes: Mapping[str, Tuple[int, ...]] = {}
    lr_factor: float = 1.0


class Setting(NamedTuple):
    """Hold one setting of a run with its reason.

    Attributes:
        name (str): Name in the table that `mmdense plan` prints.
        value (Any): Value in that table.
        reason (str): One sentence that says why.
        config (dict): Keys of the config, with dots, and their values; those that begin with
            ``pipeline`` are places in the training pipeline. Empty where the inherited config
            has the value already.
    """

    name: str
    value: Any
    reason: str
    config: Dict[str, Any] = {}


class AuthorsFormat(NamedTuple):
    """Describe the checkpoints of an algorithm that other code writes.

    Attributes:
        source (str): Name of that code, such as 'OpenSelfSup DenseCL'. With 'mmpretrain' the
            tensors that ``names`` leaves out have our names already.
        parts (tuple[str]): Beginnings of tensor names; a file of this format has all of them.
        product (str): Beginning of the names of the product's tensors. '' where they have none:
            then all tensors but heads of the usual names (``projection_head``, ``fc``, …) are its.
        names (dict[str, str]): Beginnings of their names and of ours; the first that fits counts.
            A name that begins with none of them stays.
        duplicates (tuple[str]): Beginnings of the names of tensors that the file holds twice.
        complete (bool): Whether the file's other parts fit those of the algorithm under ``names``.
            If not, only its product is taken, without a classifier ``fc``. Defaults to True.
        network (str): Name of the network that becomes the product, such as 'query encoder', for
            messages; '' where it need not be named.
        license (str): License of the weights that the authors released in this format, where it
            forbids commercial use.
    """

    source: str
    parts: Tuple[str, ...]
    product: str
    names: Dict[str, str] = {}
    duplicates: Tuple[str, ...] = ()
    complete: bool = True
    network: str = ''
    license: str = ''


class SelfSupervisor:
    """Make an algorithm known to the rest of mmdense.

    A mixin. It goes before mmpretrain's ``BaseSelfSupervisor``, before one of mmpretrain's own
    algorithms, or before MMEngine's ``BaseModel`` (an algorithm that holds its detector). What
    it gives: weights of any source, channels last, ``torch.compile``, one-line errors, and the
    declarations below, which export, transfer, health monitor and planner read.

    Args:
        backbone (dict, optional): The backbone.
        neck (dict, optional): The neck.
        head (dict, optional): The head.
        pretrained (str | dict, optional): Checkpoint of any source whose backbone to start from,
            or arguments of :class:`~mmdense.checkpoints.SelfSupPretrained`, such as
            ``dict(checkpoint=..., in_channels='repeat')``. To continue from a checkpoint of the
            complete algorithm, use ``load_from`` of tools/train.py, or
            ``init_cfg=dict(type='Pretrained', _scope_='mmdense', checkpoint=...)``.
        data_preprocessor (dict, optional): Defaults to
            :class:`mmdense.models.SelfSupDataPreprocessor`.
        channels_last (bool): Whether the networks and the views have their channels last in
            memory, as CPUs and tensor cores take them. Names and shapes stay as they are.
            Defaults to True.
        compile (bool | dict): Whether ``torch.compile`` compiles the networks and the head's
            loss at the first step; a dict has its arguments (``dynamic`` defaults to False).
            Defaults to False.
        kwargs: Arguments of the class that the mixin goes before.

    Attributes:
        product (str): Path of the sub-module that a run is for. Export, transfer and
            evaluation take that one.
        views (Views): The views that ``loss()`` takes.
        recipe (str | dict | None): For an algorithm of another package: the config that
            `mmdense pretrain` adapts to the data, as a path (from the file of the class) or a
            name such as ``mmdense::densecl/densecl_r50_coco.py``; or a dict with ``_base_`` and
            what differs from it. Algorithms of mmdense name theirs in their metafile.
        needs_labels (bool): Whether images need labelled boxes (``data_samples[i].gt_instances``,
            as mmdet's pipelines give them): a folder of images is not enough, and `mmdense
            pretrain` does not take the algorithm.
        matching_on_host (bool): Whether a step reads tensors on the host to match predictions and
            targets, and waits for the device there.
        AUTHORS (tuple[AuthorsFormat]): Checkpoints of other code that hold the algorithm.
        MMPRETRAIN_TYPES (dict[str, str]): Types of parts in a config of mmpretrain, and the types
            of ours that take their place, with the same arguments and state dict.
    """

    product: str = 'backbone'
    views: Views = Views()
    recipe: Union[None, str, dict] = None
    needs_labels: bool = False
    matching_on_host: bool = False
    AUTHORS: Tuple[AuthorsFormat, ...] = ()
    MMPRETRAIN_TYPES: Dict[str, str] = {}

    def __init__(
        self,
        backbone: Optional[dict] = None,
        neck: Optional[dict] = None,
        head: Optional[dict] = None,
        pretrained: Union[None, str, dict] = None,
        data_preprocessor: Optional[dict] = None,
        channels_last: bool = True,
        compile: Union[bool, dict] = False,
        **kwargs,
    ) -> None:
        _check_arguments(type(self).__name__, super().__init__, kwargs)
        backbone = with_pretrained(backbone, pretrained)
        if data_preprocessor is None or isinstance(data_preprocessor, dict):
            # The complete name: the look-up must not depend on the default scope.
            data_preprocessor = dict(data_preprocessor or {})
            data_preprocessor.setdefault('type', 'mmdense.SelfSupDataPreprocessor')
        parts = dict(backbone=backbone, neck=neck, head=head)
        parts = {name: self._our_part(part) for name, part in parts.items() if part is not None}
        super().__init__(**parts, data_preprocessor=data_preprocessor, **kwargs)
        self.channels_last = channels_last
        if channels_last:  # before a momentum encoder copies the networks
            _use_format(self, torch.channels_last)
        self.compile_options = _compile_options(compile)
        self.health_monitor: Optional[Callable[[Dict[str, Any]], None]] = None

    def in_format(self, part: nn.Module) -> nn.Module:
        """Return a network that a subclass has built, with its channels last where all have."""
        if self.channels_last:
            _use_format(part, torch.channels_last)
        return part

    def forward(
        self,
        inputs: Union[Tensor, List[Tensor]],
        data_samples: Optional[list] = None,
        mode: str = 'tensor',
    ):
        """Return the losses (``mode='loss'``) or the product's maps (``mode='tensor'``) of views,
        which get their channels last."""
        if mode == 'loss' and data_samples and 'deferred' in data_samples[0]:
            raise InputError(
                "the views come without their colours and blur (MultiView's device_augment): the "
                'data_preprocessor must be mmdense.SelfSupDataPreprocessor'
            )
        if self.channels_last:
            single = isinstance(inputs, Tensor)
            views = [_channels_last(view) for view in ([inputs] if single else inputs)]
            inputs = views[0] if single else views
        if mode == 'loss' and self.compile_options is not None:
            self.compile_parts(**self.compile_options)
            self.compile_options = None
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'tensor':
            return self.extract_feat(inputs)
        return super().forward(inputs, data_samples, mode)

    def init_weights(self) -> None:
        """Initialize the weights; parts that were built last get their channels last too."""
        if self.channels_last:  # initializers of transformers view a kernel as a matrix
            _use_format(self, torch.contiguous_format)
        super().init_weights()
        if self.channels_last:
            _use_format(self, torch.channels_last)

    def probe(self, **features: Any) -> None:
        """Hand features to the health monitor. It does nothing unless a check is due.

        ``loss()`` calls it. A trailing ``_`` of a name is left out. A value may be a
        function without arguments that returns one of these; it is called only when a check is
        due, without gradients:

        - ``(query, key)``: features and their positives, each N×C (a vector an image), N×C×S
          or N×C×H×W. The monitor logs ``NAME_std``, ``NAME_rank``, ``NAME_positive_similarity``
          and ``NAME_negative_similarity``.
        - a tensor of these shapes: ``NAME_std`` and ``NAME_rank``.
        - a vector of P counts, how often each of P prototypes was used: ``NAME_used`` and
          ``NAME_dead``, over about the last ten checks.
        - a scalar: ``NAME``.

        Args:
            features (Any): By name: ``global_``, ``dense``, ``local``, ``prototypes``, or any
                other. :class:`mmdense.engine.HealthMonitorHook` documents the numbers.
        """
        if self.health_monitor is not None:
            self.health_monitor(features)

    def more_losses(
        self,
        outputs: List[Optional[Tuple[Tensor, ...]]],
        targets: List[Optional[Tuple[Tensor, ...]]],
        data_samples: Optional[list],
    ) -> Dict[str, Tensor]:
        """Return the losses that a mixin adds to those of an algorithm of two views: none here.

        BYOL, MoCo and SimSiam call it at the end of ``loss()``; :class:`LocalContrast` overrides
        it.

        Args:
            outputs (list): For each view, all that the neck returns of the online network; None
                where the online network does not see the view.
            targets (list): For each view, all that the neck returns of the network that is
                predicted or gives the keys; None where it does not see the view.
            data_samples (List[DataSample], optional): N.
        """
        return {}

    def trained_parts(self) -> List[nn.Module]:
        """Return the networks that ``torch.compile`` compiles."""
        parts = (getattr(self, name, None) for name in ('backbone', 'neck'))
        return [part for part in parts if part is not None]

    def compile_parts(self, **options) -> None:
        """Compile the networks and the head's loss in place; the state dict keeps its names.

        Args:
            options: Arguments of ``torch.compile``.
        """
        self.compile_networks(**options)
        head = getattr(self, 'head', None)
        if head is not None:
            head.loss = torch.compile(head.loss, **options)

    def compile_networks(self, **options) -> None:
        """Compile :meth:`trained_parts` in place.

        Args:
            options: Arguments of ``torch.compile``.
        """
        for part in self.trained_parts():
            _use_python_numbers(part)
            part.compile(**options)

    def get_product(self) -> nn.Module:
        """Return the module that :attr:`product` names."""
        return self.get_submodule(self.product)

    def trained_maps(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return the maps of one view as a step computes them with gradients; the planner measures
        their time and memory.

        Args:
            images (Tensor): N×C×H×W.
        """
        return self.backbone(images)

    def extract_feat(self, inputs: Tensor) -> Tuple[Tensor, ...]:
        """Return the product's maps of N×C×H×W images."""
        return self.get_product()(inputs)

    def check_views(self, inputs: Union[Tensor, List[Tensor]]) -> None:
        """Check a batch of views against :attr:`views`.

        Args:
            inputs (Tensor | List[Tensor]): Views, each N×C×H×W. The only view of an algorithm may
                be a tensor, as a pipeline without ``MultiView`` gives it.

        Raises:
            InputError: When there are not as many as :attr:`views` says, of equal N, or the
                backbone takes images of other channels.
        """
        name, count = type(self).__name__, self.views.count
        if count == 1 and isinstance(inputs, Tensor):
            inputs = [inputs]
        if not isinstance(inputs, (list, tuple)) or len(inputs) != count:
            got = len(inputs) if isinstance(inputs, (list, tuple)) else 1
            raise InputError(
                f'{name} needs {count} view{"s" * (count > 1)} of every image, got {got}; check '
                'num_views of MultiView in the training pipeline'
            )
        shapes = [tuple(view.shape) for view in inputs]
        if any(len(shape) != 4 or shape[0] != shapes[0][0] for shape in shapes):
            raise InputError(f'{name} needs views N×3×H×W of equal N, got {shapes}')
        taken = input_channels(self.get_product())
        if taken not in (None, shapes[0][1]):
            raise InputError(
                f'the images have {shapes[0][1]} channels, the backbone takes {taken}: set '
                'in_channels of the backbone, or what the pipeline loads'
            )

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return the settings of the algorithm that depend on the data.

        The planner asks for them; the learning rate, the schedule and the size of the views
        have rules of their own.

        Args:
            facts (RunFacts): The run.
        """
        return []

    @classmethod
    def size_settings(cls, size: int) -> Dict[str, Any]:
        """Return the settings of the backbone that depend on the size of the views, for the
        planner; {} where it trains on views of any size.

        Args:
            size (int): Side of the largest views in pixels.
        """
        return {}

    @classmethod
    def adapt_config(cls, cfg: Config) -> None:
        """Change a config of mmpretrain, whose ``type`` alone was set to this class.

        tools/train.py calls it. Most algorithms need no change.

        Args:
            cfg (Config): The complete config, changed in place.
        """

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return an authors' tensors, renamed already, with what their files lack or shape
        otherwise."""
        return tensors

    def as_new_run(self, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return a checkpoint's tensors for the start of another run.

        Args:
            tensors (Dict[str, Tensor]): Named as here; queues also as in mmpretrain and
                OpenSelfSup.

        Returns:
            Dict[str, Tensor]: All of them, named as here.
        """
        tensors = dict(tensors)
        self.rename_mmpretrain(tensors)
        unflatten_queues(self, tensors)
        return tensors

    def fit_queues(
        self, wanted: Dict[str, Tensor], offered: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """Return ``wanted`` with the queues as long as the checkpoint has them.

        Another length is no mistake: the newest keys are taken.
        """
        wanted = dict(wanted)
        for name, part in self.named_modules():
            keys = offered.get(f'{name}.keys') if isinstance(part, KeyQueue) else None
            if keys is not None and keys.dim() == 2 and keys.size(0) == part.feat_dim:
                wanted[f'{name}.keys'] = keys
        return wanted

    @classmethod
    def _our_part(cls, part: Any) -> Any:
        """Return the config of a part of mmpretrain with our type in its place."""
        kind = part.get('type') if isinstance(part, dict) else None
        ours = cls.MMPRETRAIN_TYPES.get(getattr(kind, '__name__', str(kind)).split('.')[-1])
        return dict(part, type=ours) if ours else part

    @classmethod
    def rename_mmpretrain(cls, state_dict: Dict[str, Tensor], prefix: str = '') -> None:
        """Rename the tensors of mmpretrain's class in a state dict, in place.

        Args:
            state_dict (dict): Named as in mmpretrain, or as here.
            prefix (str): Beginning of the names of the algorithm's tensors.
        """
        for names in (format.names for format in cls.AUTHORS if format.source == 'mmpretrain'):
            for theirs, ours in names.items():
                for name in [name for name in state_dict if name.startswith(prefix + theirs)]:
                    state_dict[prefix + ours + name[len(prefix + theirs) :]] = state_dict.pop(name)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        self.rename_mmpretrain(state_dict, prefix)
        unflatten_queues(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def with_pretrained(backbone: Optional[dict], pretrained: Union[None, str, dict]) -> Optional[dict]:
    """Return the config of a backbone that starts from a checkpoint.

    Args:
        backbone (dict, optional): The config.
        pretrained (str | dict, optional): As for :class:`SelfSupervisor`; None leaves it as it is.

    Raises:
        InputError: There is no config to be filled.
    """
    if pretrained is None:
        return backbone
    if not isinstance(backbone, dict):
        raise InputError('pretrained needs a backbone that is built here, from a dict')
    fill = pretrained if isinstance(pretrained, dict) else dict(checkpoint=pretrained)
    return dict(backbone, init_cfg=dict(fill, type='mmdense.SelfSupPretrained'))


def registered_algorithms() -> List[type]:
    """Return all algorithms of the registry, those of other packages included, by name."""
    kinds = {kind for kind in MODELS.module_dict.values() if isinstance(kind, type)}
    found = [kind for kind in kinds if issubclass(kind, SelfSupervisor)]
    return sorted(found, key=lambda kind: kind.__name__)


def _check_arguments(name: str, init: Callable, kwargs: Dict[str, Any]) -> None:
    """Raise a TypeError for an argument that the class behind the mixin does not take."""
    accepted = signature(init).parameters
    if any(p.kind is Parameter.VAR_KEYWORD for p in accepted.values()):
        return
    unknown = sorted(set(kwargs) - set(accepted))
    if unknown:
        raise TypeError(f'{name} got an unexpected argument: {", ".join(unknown)}')


def _use_format(module: nn.Module, memory_format: torch.memory_format) -> None:
    for p in module.parameters():
        if p.dim() == 4:  # Module.to() would stop at five dimensions
            p.data = p.data.contiguous(memory_format=memory_format)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _use_python_numbers(module: nn.Module) -> None:
    """Turn the rates of drop path into Python's numbers: mmpretrain's transformers have NumPy's,
    whose comparisons ``torch.compile`` does not take."""
    for part in module.modules():
        if hasattr(part, 'drop_prob'):
            part.drop_prob = float(part.drop_prob)


def _compile_options(compile: Union[bool, dict]) -> Optional[dict]:
    """Return the arguments of ``torch.compile``, or None where nothing is to be compiled.

    Raises:
        InputError: When they are no arguments, or PyTorch cannot compile here.
    """
    if compile is False:
        return None
    if compile is not True and not isinstance(compile, dict):
        raise InputError(f'compile must be True, False or a dict, got {compile!r}')
    options = dict(dict(dynamic=False), **({} if compile is True else compile))
    try:
        torch.compile(nn.Identity(), **options)  # nothing is compiled before it is called
    except (RuntimeError, TypeError) as error:
        raise InputError(f'compile={compile!r} of the model: {error}') from None
    return options
