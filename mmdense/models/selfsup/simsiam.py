# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional

from mmpretrain.models import SimSiam as _SimSiam
from torch import Tensor

from mmdense.models.utils.authors_names import mlp_names
from mmdense.models.utils.float32 import in_float32
from mmdense.registry import MODELS

from .base import AuthorsFormat, RunFacts, SelfSupervisor, Setting


@MODELS.register_module()
class SimSiam(SelfSupervisor, _SimSiam):
    """Predict one view's projection from the other's, without negatives (SimSiam).

    `Exploring Simple Siamese Representation Learning <https://arxiv.org/abs/2011.10566>`_ (CVPR
    2021). The algorithm is mmpretrain's, which computes what the authors' code computes; losses
    and weights are equal to 1e-5.

    Args:
        backbone (dict): Any backbone that returns feature maps; the last one is used.
        neck (dict): The projector, ``mmpretrain.NonLinearNeck``.
        head (dict): ``mmpretrain.LatentPredictHead`` with the predictor.
        kwargs: Arguments of :class:`SelfSupervisor`.
    """

    AUTHORS = (
        AuthorsFormat(
            source='SimSiam',
            license='CC BY-NC 4.0',
            parts=('encoder.conv1.', 'encoder.fc.0.', 'predictor.0.'),
            product='encoder.',
            names={
                **mlp_names('encoder.fc.', 'neck.'),
                'encoder.': 'backbone.',
                **mlp_names('predictor.', 'head.predictor.'),
            },
        ),
    )

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the loss of one step (paper, algorithm 1).

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (list, optional): Only :meth:`more_losses` uses them.

        Returns:
            Dict[str, Tensor]: ``loss``, a scalar in [-1, 1].
        """
        self.check_views(inputs)
        # projections: NxC
        (z_1, *_), (z_2, *_) = outputs = [self.neck(self.backbone(view)) for view in inputs]
        compare = in_float32(self.head.loss)  # mmpretrain's gives the precision of its input
        loss = 0.5 * (compare(z_1, z_2) + compare(z_2, z_1))
        self.probe(global_=(z_1, z_2))
        return dict(loss=loss, **self.more_losses(outputs, outputs, data_samples))

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return the predictor's learning rate, where the recipe has a hook that keeps it."""
        hook = facts.recipe.default_hooks.get('predictor_lr')
        if hook is None:
            return []
        lr = float(f'{hook.lr * facts.lr_factor:.6g}')
        reason = 'constant, as in the paper; follows the batch, as lr'
        return [Setting('predictor lr', f'{lr:g}', reason, {'default_hooks.predictor_lr.lr': lr})]

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return an authors' tensors without the bias in front of the projector's last BatchNorm,
        which takes it away; their code keeps it as it is initialized, our projector has none."""
        tensors = dict(tensors)
        bias, mean = tensors.pop('neck.fc2.bias', None), 'neck.bn2.running_mean'
        if bias is not None and mean in tensors:
            tensors[mean] = tensors[mean] - bias
        return tensors
