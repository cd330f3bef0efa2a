# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Union

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.nn.functional import normalize

from mmdense.models.losses import slot_contrast
from mmdense.models.utils import gather_rows
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero


@MODELS.register_module()
class SlotContrastHead(BaseModule):
    """Contrast of the slots that both views have, against those of all images.

    SlotCon (https://arxiv.org/abs/2205.15288), section 3.3.

    Args:
        predictor (dict): :class:`mmdense.models.necks.ProjectionMLP` with
            ``dense=False``, on the student's slots.
        temperature (float): τ, above 0. Defaults to 0.2.
        init_cfg (dict or list[dict], optional): As everywhere.
    """

    def __init__(
        self,
        predictor: dict,
        temperature: float = 0.2,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(init_cfg)
        check_above_zero(temperature=temperature)
        self.temperature = temperature
        self.predictor = MODELS.build(predictor)

    def loss(self, slots_q: Tensor, slots_k: Tensor, scores_q: Tensor, scores_k: Tensor) -> Tensor:
        """One direction, from a view of the student to the teacher's other.

        Args:
            slots_q (Tensor): N×P×C, the student's, not normalised.
            slots_k (Tensor): N×P×C, the teacher's of the other view.
            scores_q (Tensor): N×P×H×W, from which the slots come.
            scores_k (Tensor): N×P×H×W.

        Returns:
            Tensor: A scalar of at least 0, normalised such that the mean over
            processes is that of the joined batch.
        """
        kept_q, kept_k = kept_slots(scores_q), kept_slots(scores_k)  # NxP
        positive = kept_q & kept_k
        number = positive.sum()
        all_reduce(number)

        # keys: the teacher's kept slots, of all processes; a query's own is among this process's
        key, first = gather_rows(normalize(slots_k[kept_k], dim=1))  # RxC
        row = kept_k.flatten().cumsum(0) - 1 + first
        # the predictor and its BatchNorm see the positives alone: MxC
        query = normalize(self.predict(slots_q[positive], number), dim=1)
        return slot_contrast(
            query,
            key.to(query.dtype),
            row[positive.flatten()],
            self.temperature,
            num_positives=number / get_world_size(),
        )

    def predict(self, slots: Tensor, number: Tensor) -> Tensor:
        """The predictor, by its running statistics where rows are too few.

        BatchNorm has no statistics of fewer than two rows, of this process or,
        when it is synchronised, of all.

        Args:
            slots (Tensor): M×C.
            number (Tensor): Rows of all processes.

        Returns:
            Tensor: M×C.
        """
        synchronised = any(isinstance(m, SyncBatchNorm) for m in self.predictor.modules())
        too_few = (int(number) if synchronised else len(slots)) < 2
        if not (too_few and self.predictor.training):
            return self.predictor(slots)
        self.predictor.eval()
        predicted = self.predictor(slots)
        self.predictor.train()
        return predicted


@torch.no_grad()
def kept_slots(scores: Tensor) -> Tensor:
    """Which prototypes are the best of at least one cell.

    Args:
        scores (Tensor): N×P×H×W.

    Returns:
        Tensor: N×P, bool.
    """
    best = scores.argmax(1).flatten(1)  # NxS
    return torch.zeros_like(scores[:, :, 0, 0], dtype=torch.bool).scatter_(1, best, True)
