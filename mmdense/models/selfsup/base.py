# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import List, Tuple

from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from mmdense.models.utils import unflatten_queues
from mmdense.utils.errors import InputError


class DenseSelfSupervisor(BaseSelfSupervisor):
    """What the algorithms here have in common.

    Args:
        backbone (dict): The backbone.
        pretrained (str, optional): Checkpoint whose backbone to start from.
        data_preprocessor (dict, optional): Defaults to mmpretrain's
            ``SelfSupDataPreprocessor``.
        args, kwargs: Of mmpretrain's ``BaseSelfSupervisor``.

    Attributes:
        product (str): Path of the sub-module that a run is for, ``backbone``
            or the twin's. Export, transfer and evaluation take that one.
    """

    product = 'backbone'

    def __init__(
        self, backbone: dict, *args, pretrained=None, data_preprocessor=None, **kwargs
    ) -> None:
        if pretrained is not None:
            # A backbone to start from, from any writer. A checkpoint of the whole algorithm is
            # MMEngine's load_from.
            if not isinstance(backbone, dict):
                raise InputError('pretrained needs a backbone that is built here, from a dict')
            init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=pretrained)
            backbone = dict(backbone, init_cfg=init_cfg)
        if data_preprocessor is None or isinstance(data_preprocessor, dict):
            # Named in full: the look-up must not depend on the default scope.
            data_preprocessor = dict(data_preprocessor or {})
            data_preprocessor.setdefault('type', 'mmpretrain.SelfSupDataPreprocessor')
        super().__init__(backbone, *args, data_preprocessor=data_preprocessor, **kwargs)

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

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        unflatten_queues(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
