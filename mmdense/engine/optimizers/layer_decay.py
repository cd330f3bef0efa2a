# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from functools import partial
from typing import Callable, List, Optional

from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

from mmdense.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """Lower the learning rate from block to block of a backbone, in a detector or segmenter too.

    mmpretrain's constructor asks the model for the depth of each layer, which its classifiers
    know. Where the model is a detector or segmenter, this one asks its backbone; everything after
    the backbone has the full learning rate. mmseg's own constructor takes only backbones whose
    names have MAE or BEiT in them.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper.
        paramwise_cfg (dict, optional): As for mmpretrain's constructor, such as
            ``dict(layer_decay_rate=0.7)``, the factor from a block to the one before.
    """

    def add_params(
        self,
        params: List[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Optional[Callable] = None,
        **kwargs,
    ) -> None:
        """Add the parameters of a module to the groups, with their learning rate and decay."""
        if get_layer_depth is None and not hasattr(module, 'get_layer_depth'):
            get_layer_depth = partial(module.backbone.get_layer_depth, prefix='backbone.')
        super().add_params(params, module, prefix, get_layer_depth, **kwargs)
