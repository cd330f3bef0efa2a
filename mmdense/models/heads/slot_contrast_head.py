# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Callable, Dict, List, Optional, Tuple, Union

import torch
from mmengine.dist import all_gather, get_rank
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.nn.functional import normalize

from mmdense.models.losses import slot_contrast
from mmdense.models.utils import count_nearest, gather_rows
from mmdense.models.utils.similarity import mean_of_others
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero


@MODELS.register_module()
class SlotContrastHead(BaseModule):
    """Contrast the slots that both views have with those of all images.

    SlotCon (https://arxiv.org/abs/2205.15288), section 3.3.

    The number of slots is different in every step, and the predictor's
    BatchNorm must see them alone: the host waits once in a step for the device
    to count them.

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
        """Compute one direction, from a view of the student to the other view of the teacher.

        Args:
            slots_q (Tensor): N×P×C, the student's, not normalised.
            slots_k (Tensor): N×P×C, the teacher's of the other view.
            scores_q (Tensor): N×P×H×W, from which the slots come.
            scores_k (Tensor): N×P×H×W.

        Returns:
            Tensor: A scalar of at least 0, normalised such that the mean over
            processes is that of the joined batch.
        """
        return self.total_loss((slots_q, slots_k, scores_q, scores_k))

    def total_loss(self, *directions: Tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Return the sum of several directions, with one exchange between processes.

        Args:
            directions (tuple[Tensor]): Each the arguments of :meth:`loss`.

        Returns:
            Tensor: A scalar.
        """
        kept, positive = [], []  # NxP, a direction each
        for _, _, scores_q, scores_k in directions:
            kept_q, kept_k = kept_slots(scores_q), kept_slots(scores_k)
            kept.append(kept_k)
            positive.append(kept_q & kept_k)
        # of each process: positives by direction, kept slots by direction
        counts = torch.stack([mask.sum() for mask in (*positive, *kept)])
        counts = torch.stack(all_gather(counts)).tolist()  # the host waits here, and only here
        mine = counts[get_rank()]
        num_positive = [c[: len(directions)] for c in counts]
        num_kept = [c[len(directions) :] for c in counts]

        # keys: the teacher's kept slots, of all processes
        rows = [true_rows(mask, n) for mask, n in zip(kept, num_kept[get_rank()])]
        own = [slots_k.flatten(0, 1)[r] for (_, slots_k, _, _), r in zip(directions, rows)]
        own = normalize(torch.cat(own).float(), dim=1)
        parts = gather_rows(own, [sum(n) for n in num_kept])
        keys = zip(*(part.split(n) for part, n in zip(parts, num_kept)))  # by direction

        losses = []
        for i, ((slots_q, *_), key) in enumerate(zip(directions, keys)):
            rows = true_rows(positive[i], mine[i])
            number = sum(n[i] for n in num_positive)
            # the predictor and its BatchNorm see the positives alone: MxC
            query = self.predict(slots_q.flatten(0, 1).index_select(0, rows), number)
            # a query's own key is among this process's
            first = sum(n[i] for n in num_kept[: get_rank()])
            target = (kept[i].flatten().cumsum(0) - 1 + first)[rows]
            losses.append(
                slot_contrast(
                    normalize(query.float(), dim=1),
                    torch.cat(key),
                    target,
                    self.temperature,
                    num_positives=number / len(counts),
                )
            )
        return sum(losses)

    def predict(self, slots: Tensor, number: int) -> Tensor:
        """Run the predictor, with its running statistics where rows are too few.

        BatchNorm has no statistics of fewer than two rows, of this process or,
        when it is synchronised, of all.

        Args:
            slots (Tensor): M×C.
            number (int): Rows of all processes.

        Returns:
            Tensor: M×C.
        """
        synchronised = any(isinstance(m, SyncBatchNorm) for m in self.predictor.modules())
        too_few = (number if synchronised else len(slots)) < 2
        if not (too_few and self.predictor.training):
            return self.predictor(slots)
        self.predictor.eval()
        predicted = self.predictor(slots)
        self.predictor.train()
        return predicted


@torch.no_grad()
def kept_slots(scores: Tensor) -> Tensor:
    """Return whether a prototype is the best of at least one location.

    Args:
        scores (Tensor): N×P×H×W.

    Returns:
        Tensor: N×P, bool.
    """
    best = scores.argmax(1).flatten(1)  # NxS
    return torch.zeros_like(scores[:, :, 0, 0], dtype=torch.bool).scatter_(1, best, True)


@torch.no_grad()
def count_prototypes(*scores: Tensor) -> Tensor:
    """Return how many locations each of P prototypes is the best of.

    Args:
        scores (tuple[Tensor]): Each N×P×H×W.

    Returns:
        Tensor: P counts.
    """
    return sum(count_nearest(score.movedim(1, -1)) for score in scores)


def slot_similarities(
    slots_q: Tensor, slots_k: Tensor, scores_q: Tensor, scores_k: Tensor
) -> Dict[str, Callable[[], Tensor]]:
    """Return what the health monitor logs of the slots of one direction, as functions.

    Args:
        slots_q (Tensor): N×P×C, as in :meth:`SlotContrastHead.loss`.
        slots_k (Tensor): N×P×C.
        scores_q (Tensor): N×P×H×W.
        scores_k (Tensor): N×P×H×W.
    """

    def normalised() -> List[Tensor]:
        return [normalize(x.float(), dim=2) for x in (slots_q, slots_k)]

    def compare_positives() -> Tensor:
        both = kept_slots(scores_q) & kept_slots(scores_k)
        query, key = normalised()
        return torch.where(both, (query * key).sum(2), 0).sum() / both.sum()

    def compare_negatives() -> Tensor:
        kept_k = kept_slots(scores_k)
        return mean_of_others(*normalised(), kept_slots(scores_q) & kept_k, kept_k)

    return dict(
        slot_positive_similarity=compare_positives,
        slot_negative_similarity=compare_negatives,
    )


def true_rows(mask: Tensor, number: int) -> Tensor:
    """Return the indices where a mask is true, without asking the device for their number as
    ``nonzero`` does.

    Args:
        mask (Tensor): Bool, of any shape; counted flat.
        number (int): How often it is true.

    Returns:
        Tensor: ``number`` indices, rising.
    """
    mask = mask.flatten()
    place = torch.where(mask, mask.cumsum(0) - 1, number)  # all others into a last one
    everything = torch.arange(len(mask), device=mask.device)
    places = everything.new_zeros(number + 1)
    return places.scatter_(0, place.clamp(max=number), everything)[:number]
