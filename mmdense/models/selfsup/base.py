# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Tuple, Union

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from mmdense.models.layers import KeyQueue, MomentumEncoder, unflatten_queues
from mmdense.utils.errors import InputError


class DenseSelfSupervisor(BaseSelfSupervisor):
    """What the algorithms here have in common.

    Args:
        backbone (dict): The backbone.
        neck (dict, optional): The neck.
        head (dict, optional): The head.
        pretrained (str, optional): Checkpoint whose backbone to start from, from
            any writer. To go on from a checkpoint of the whole algorithm, use
            ``load_from`` of tools/train.py, or
            ``init_cfg=dict(type='Pretrained', _scope_='mmdense', checkpoint=...)``.
        data_preprocessor (dict, optional): Defaults to
            :class:`mmdense.models.SelfSupDataPreprocessor`.
        channels_last (bool): Whether the networks and the views have their
            channels last in memory, as CPUs and tensor cores take them. Names
            and shapes stay as they are. Defaults to True.
        compile (bool | dict): Whether ``torch.compile`` compiles backbones and
            necks, of student and twin, and the head's loss, at the first step;
            a dict has its arguments (``dynamic`` defaults to False). Defaults
            to False.
        init_cfg (dict or list[dict], optional): As everywhere.

    Attributes:
        product (str): Path of the sub-module that a run is for, ``backbone``
            or the twin's. Export, transfer and evaluation take that one.
    """

    product = 'backbone'

    def __init__(
        self,
        backbone: dict,
        neck: Optional[dict] = None,
        head: Optional[dict] = None,
        pretrained: Optional[str] = None,
        data_preprocessor: Optional[dict] = None,
        channels_last: bool = True,
        compile: Union[bool, dict] = False,
        init_cfg: Optional[Union[dict, list]] = None,
        **unknown,
    ) -> None:
        if unknown:
            name = type(self).__name__
            raise TypeError(f'{name} got an unexpected argument: {", ".join(sorted(unknown))}')
        if pretrained is not None:
            if not isinstance(backbone, dict):
                raise InputError('pretrained needs a backbone that is built here, from a dict')
            fill = dict(type='mmdense.SelfSupPretrained', checkpoint=pretrained)
            backbone = dict(backbone, init_cfg=fill)
        if data_preprocessor is None or isinstance(data_preprocessor, dict):
            # Named in full: the look-up must not depend on the default scope.
            data_preprocessor = dict(data_preprocessor or {})
            data_preprocessor.setdefault('type', 'mmdense.SelfSupDataPreprocessor')
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.channels_last = channels_last
        if channels_last:  # before the twin copies it; what is built later has 1×1 kernels alone
            for p in self.parameters():
                if p.dim() == 4:  # Module.to() would stop at five dimensions
                    p.data = p.data.contiguous(memory_format=torch.channels_last)
        self.compile_options = _compile_options(compile)

    def forward(
        self,
        inputs: Union[Tensor, List[Tensor]],
        data_samples: Optional[list] = None,
        mode: str = 'tensor',
    ):
        """As mmpretrain's."""
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
        return super().forward(inputs, data_samples, mode)

    def compile_parts(self, **options) -> None:
        """Compiles in place: what the state dict calls them stays as it is.

        Args:
            options: Of ``torch.compile``.
        """
        for part in (*self._online().children(), *self.encoder_k.module.children()):
            part.compile(**options)
        self.head.loss = torch.compile(self.head.loss, **options)

    def init_weights(self) -> None:
        """As everywhere. The twin begins here, not only at the first step: what is evaluated or
        shown before that may be its backbone."""
        super().init_weights()
        self.encoder_k.begin(self._online())

    def _online(self) -> nn.Module:
        """What has a momentum twin."""
        return nn.Sequential(self.backbone, self.neck)

    def get_product(self) -> nn.Module:
        """The module that :attr:`product` names."""
        return self.get_submodule(self.product)

    def extract_feat(self, inputs: Tensor) -> Tuple[Tensor, ...]:
        """The product's maps of N×3×H×W images."""
        return self.get_product()(inputs)

    def check_views(self, inputs: List[Tensor], num_views: int) -> None:
        """Says in one line what is wrong with a batch of views.

        Args:
            inputs (List[Tensor]): Views, each N×3×H×W.
            num_views (int): How many there must be.

        Raises:
            InputError: When there are not ``num_views`` of equal N.
        """
        name = type(self).__name__
        if not isinstance(inputs, (list, tuple)) or len(inputs) != num_views:
            got = len(inputs) if isinstance(inputs, (list, tuple)) else 1
            raise InputError(
                f'{name} needs {num_views} views of every image, got {got}; check num_views of '
                'MultiView in the training pipeline'
            )
        shapes = [tuple(view.shape) for view in inputs]
        if any(len(shape) != 4 or shape[0] != shapes[0][0] for shape in shapes):
            raise InputError(f'{name} needs views N×3×H×W of equal N, got {shapes}')

    def as_new_run(self, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """A checkpoint's tensors, for the start of another run.

        The twin keeps its weights, and its schedule begins anew, as those of
        the learning rate do: at the end of the last run it stood still.

        Args:
            tensors (Dict[str, Tensor]): Named as here; queues also as in
                mmpretrain and OpenSelfSup.

        Returns:
            Dict[str, Tensor]: All of them, named as here.
        """
        tensors = dict(tensors)
        unflatten_queues(self, tensors)
        for name, part in self.named_modules():
            if isinstance(part, MomentumEncoder) and f'{name}.steps' in tensors:
                # 1 where the file's twin was ever updated: at 0 it would become the student's copy
                tensors[f'{name}.steps'] = tensors[f'{name}.steps'].clamp(max=1)
        return tensors

    def fit_queues(
        self, wanted: Dict[str, Tensor], offered: Dict[str, Tensor]
    ) -> Dict[str, Tensor]:
        """``wanted``, where the queues of a checkpoint are as long as it has them:
        another length is no mistake, the newest keys are taken."""
        wanted = dict(wanted)
        for name, part in self.named_modules():
            keys = offered.get(f'{name}.keys') if isinstance(part, KeyQueue) else None
            if keys is not None and keys.dim() == 2 and keys.size(0) == part.feat_dim:
                wanted[f'{name}.keys'] = keys
        return wanted

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        unflatten_queues(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _compile_options(compile: Union[bool, dict]) -> Optional[dict]:
    """Arguments of ``torch.compile``, or None.

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
