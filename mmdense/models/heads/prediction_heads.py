# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import Tensor

from mmdense.models.losses import batch_info_nce, cosine_distance
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero

from .mmpretrain_loss import check_loss


@MODELS.register_module()
class CosinePredictionHead(BaseModule):
    """Predict the target network's projection: :func:`mmdense.models.losses.cosine_distance`.

    Its state dict is that of mmpretrain's ``LatentPredictHead``.

    Args:
        predictor (dict): The predictor, ``mmpretrain.NonLinearNeck`` without pooling.
        loss (dict, optional): The loss that a config of mmpretrain's ``LatentPredictHead`` names:
            ``CosineSimilarityLoss``, whose gradient is half of this loss's; mmpretrain's BYOL
            doubles it.
    """

    def __init__(self, predictor: dict, loss: Optional[dict] = None) -> None:
        super().__init__()
        check_loss(loss, 'CosineSimilarityLoss')
        self.predictor = MMPRETRAIN_MODELS.build(predictor)  # a plain name is mmpretrain's

    def loss(self, projection: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one direction.

        Args:
            projection (Tensor): N×C, of one view, from the online network.
            target (Tensor): N×C, of the other view, from the target network.

        Returns:
            Tensor: A scalar in [0, 4].
        """
        return cosine_distance(self.predictor((projection,))[0], target)


@MODELS.register_module()
class InfoNCEPredictionHead(BaseModule):
    """Predict keys, and contrast them in the batch: :func:`mmdense.models.losses.batch_info_nce`.

    The loss is that of `An Empirical Study of Training Self-Supervised Vision Transformers
    <https://arxiv.org/abs/2104.02057>`_, algorithm 1: 2τ · InfoNCE. The state dict is that of
    mmpretrain's ``MoCoV3Head``.

    Args:
        predictor (dict): The predictor, ``mmpretrain.NonLinearNeck`` without pooling.
        temperature (float): τ, above 0: 1.0 for a ResNet, 0.2 for a ViT. Defaults to 1.0.
        loss (dict, optional): The loss that a config of mmpretrain's ``MoCoV3Head`` names:
            ``CrossEntropyLoss``, whose ``loss_weight`` replaces 2τ.
    """

    def __init__(
        self, predictor: dict, temperature: float = 1.0, loss: Optional[dict] = None
    ) -> None:
        super().__init__()
        check_above_zero(temperature=temperature)
        loss = None if loss is None else dict(loss)
        self.loss_weight = 2 * temperature if loss is None else loss.pop('loss_weight', 1.0)
        check_loss(loss, 'CrossEntropyLoss')
        self.predictor = MMPRETRAIN_MODELS.build(predictor)  # a plain name is mmpretrain's
        self.temperature = temperature

    def loss(self, projection: Tensor, key: Tensor) -> Tensor:
        """Return the loss of one direction.

        Args:
            projection (Tensor): N×C, of one view, from the online network.
            key (Tensor): N×C, of the other view, from the momentum encoder.

        Returns:
            Tensor: A scalar.
        """
        query = self.predictor((projection,))[0]
        return self.loss_weight * batch_info_nce(query, key, self.temperature)
