# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Whether what a run learns is worth something: collapse shows in its features, not in its loss."""

from collections import Counter, defaultdict
from typing import Any, Dict, List, Optional

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmdense.evaluation.collapse import SIGNS, Values, _negatives, _some, match_entropy, spread
from mmdense.models.heads import InfoNCEHead, PixelHead, SlotContrastHead
from mmdense.models.heads.slot_contrast_head import kept_slots
from mmdense.models.utils import cell_distances
from mmdense.registry import HOOKS
from mmdense.utils.checks import check_counts


@HOOKS.register_module()
class HealthMonitorHook(Hook):
    r"""Logs whether features collapse, and warns in words when they do.

    Every ``interval`` iterations the first process looks at what the head and
    its loss are given, and hands these numbers to every log backend, as
    ``train/health_*``. Of the student's features, normalised to length 1,
    ``global`` (a vector an image; the mean of its cells where there is no
    such head) and ``dense`` (of cells; ``local``, of patches, in DetCo):

    - ``{global,dense,local}_std``: standard deviation of a channel, mean over
      channels, times √C: 1 is spread over the sphere, 0 is constant
      (`SimSiam <https://arxiv.org/abs/2011.10566>`_, section 4.1).
    - ``…_rank``: effective rank, the exponential of the entropy of the singular
      values (Roy and Vetterli 2007; `RankMe
      <https://arxiv.org/abs/2210.02885>`_), at least 1, at most the number of
      channels and of rows (1024 of them are taken).
    - ``…_positive_similarity``, ``…_negative_similarity``: mean cosine of
      student and teacher, of positive pairs, and of different images of the
      batch. In SlotCon of slots (``slot_…``), before the predictor; in PixPro
      before the propagation.
    - DenseCL: ``match_entropy`` of the cells that an image's queries are matched
      with, over ln S: 1 is each another, 0 is all the same.
    - SlotCon: ``prototypes_used``, the exponential of the entropy of the
      teacher's assignment of cells to prototypes, from 1 to P, and
      ``prototypes_dead``, the share of prototypes that get less than a hundredth
      of their part. Both over about the last ten looks.
    - PixPro: ``without_positive``, the share of images whose views have no
      positive pair.

    In DetCo they are those of the last stage. How full a queue is says :class:`KeyQueueLogHook`.

    It warns when a value is beyond its bound at two looks in a row, and again
    only when it has come back in between: std below 0.05, rank below 1.8,
    fewer than 1.5 prototypes used, half of the images without a positive pair.

    Between two looks it costs nothing; a look waits once for the device. With
    ``compile`` the neck runs uncompiled at a look.

    Args:
        interval (int): Iterations between two looks, from 1. Defaults to 50.
    """

    def __init__(self, interval: int = 50) -> None:
        check_counts(interval=interval)
        self.interval = interval

    def before_train(self, runner: Runner) -> None:
        """Finds out what there is to see."""
        self.model = get_ori_model(runner.model)
        kinds = {InfoNCEHead: _contrast, PixelHead: _pixels, SlotContrastHead: _slots}
        head = getattr(self.model, 'head', None)
        self.look = next((look for kind, look in kinds.items() if isinstance(head, kind)), None)
        if not is_main_process():
            self.look = None
        self.watch: Optional[_Watch] = None
        self.memory: Values = {}
        self.beyond: Counter = Counter()  # looks in a row
        self.warned: set = set()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None
    ) -> None:
        """Begins to watch."""
        if self.look is not None and self.every_n_train_iters(runner, self.interval):
            self.watch = _Watch(self.model)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Looks."""
        if self.watch is None:
            return
        watch, self.watch = self.watch, None
        watch.end()
        with torch.no_grad():
            values = self.look(self.model, watch, self.memory)
        numbers = torch.stack([value.double() for value in values.values()]).tolist()
        found = dict(zip(values, numbers))
        found = {name: value for name, value in found.items() if value == value}  # without a pair
        for name, value in found.items():
            runner.message_hub.update_scalar(f'train/health_{name}', value)
        self._judge(runner, found)

    def _judge(self, runner: Runner, values: Dict[str, float]) -> None:
        news = defaultdict(list)  # by what they mean
        for name, value in values.items():
            sign = next((sign for sign in SIGNS if name.endswith(sign.name)), None)
            if sign is None:
                continue
            said = f'health_{name} is {value:.3g}'
            self.beyond[name] = self.beyond[name] + 1 if sign.beyond(value, sign.bound) else 0
            if name in self.warned:
                if not sign.beyond(value, sign.over):
                    self.warned.remove(name)
                    runner.logger.info(f'{said}: that is over.')
            elif self.beyond[name] >= 2:
                self.warned.add(name)
                news[sign.meaning, sign.advice].append(said)
        for (meaning, advice), said in news.items():
            runner.logger.warning(
                f'{", ".join(said)} after {runner.iter + 1} iterations: {meaning}. {advice}; the '
                f'learning rate is {_learning_rate(runner):.3g}.'
            )


def _learning_rate(runner: Runner) -> float:
    return max(group['lr'] for group in runner.optim_wrapper.optimizer.param_groups)


class _Watch:
    """Notes what the neck gives and the head's loss gets, in one iteration."""

    def __init__(self, model: nn.Module) -> None:
        self.head, self.neck = model.head, model.neck
        self.calls: List[tuple] = []
        self.projections: List[Any] = []
        self.name = 'total_loss' if hasattr(self.head, 'total_loss') else 'loss'
        self.own = self.name in vars(self.head)  # a compiled one
        self.loss = getattr(self.head, self.name)
        setattr(self.head, self.name, self._note)
        # compiled without a hook, it would call none
        self.compiled = vars(self.neck).pop('_compiled_call_impl', None)
        self.handle = self.neck.register_forward_hook(self._note_projections)

    def _note(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append(_detached((*args, *kwargs.values())))
        return self.loss(*args, **kwargs)

    def _note_projections(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.projections.append(_detached(output))

    def end(self) -> None:
        """Leaves all as it was."""
        if self.own:
            setattr(self.head, self.name, self.loss)
        else:
            delattr(self.head, self.name)
        if self.compiled is not None:
            self.neck._compiled_call_impl = self.compiled
        self.handle.remove()


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().float() if value.is_floating_point() else value
    return tuple(map(_detached, value)) if isinstance(value, (list, tuple)) else value


def _contrast(model: nn.Module, watch: _Watch, memory: Values) -> Values:
    """Of DenseCL (a global and a dense loss) and DetCo (by stage and pairing)."""
    kinds = ['global', 'dense']
    if hasattr(model, 'pairings'):
        names = dict(gg='global', ll='local')
        kinds = [names.get(pairing) for _ in model.stages for pairing in model.pairings]
    num_images = len(watch.calls[0][0])
    values = {}
    for kind, (query, key, *_) in zip(kinds, watch.calls):  # the last stage is the last
        if kind:
            pairs = dict(
                **spread(query),
                positive_similarity=(query * key).sum(1).mean(),
                negative_similarity=_negatives(query, key, len(query) // num_images),
            )
            values.update({f'{kind}_{name}': value for name, value in pairs.items()})
    match = getattr(model, 'last_match', None)
    if match is not None:
        values['match_entropy'] = match_entropy(match)
    return values


def _pixels(model: nn.Module, watch: _Watch, memory: Values) -> Values:
    """Of PixPro and PixContrast."""
    z, target, box, target_box = watch.calls[0]
    query, key = (normalize(x.flatten(2), dim=1) for x in (z, target))  # NxCxS
    distance = cell_distances(box, target_box, z.shape[2:], target.shape[2:])
    positive = distance < model.head.pos_ratio  # NxSxT
    similarity = torch.bmm(query.transpose(1, 2), key)
    return dict(
        **_of_maps(z),
        dense_positive_similarity=torch.where(positive, similarity, 0).sum() / positive.sum(),
        dense_negative_similarity=_negatives(_rows(query), _rows(key), query.size(2)),
        without_positive=(~positive.flatten(1).any(1)).float().mean(),
    )


def _slots(model: nn.Module, watch: _Watch, memory: Values) -> Values:
    """Of SlotCon."""
    directions = watch.calls[0]
    slots_q, slots_k, scores_q, scores_k = directions[0]
    kept_k = kept_slots(scores_k)
    both = kept_slots(scores_q) & kept_k
    query, key = (normalize(x, dim=2) for x in (slots_q, slots_k))  # NxPxC
    image = torch.arange(len(both), device=both.device)[:, None].expand_as(both)
    others = _some(image[both])[:, None] != _some(image[kept_k])
    negative = _some(query[both]) @ _some(key[kept_k]).t()

    num_prototypes = scores_k.size(1)
    best = torch.cat([scores.argmax(1).flatten() for *_, scores in directions])
    usage = torch.bincount(best, minlength=num_prototypes).double()
    usage = usage + 0.9 * memory.get('usage', torch.zeros_like(usage))
    memory['usage'] = usage
    share = usage / usage.sum()
    return dict(
        **_of_maps(watch.projections[0]),
        slot_positive_similarity=(query * key).sum(2)[both].mean(),
        slot_negative_similarity=negative[others].mean(),
        prototypes_used=torch.special.entr(share).sum().exp(),
        prototypes_dead=(share < 0.01 / num_prototypes).double().mean(),
    )


def _of_maps(z: Tensor) -> Values:
    """N×C×H×W projections: of images, which are the mean of their cells, and of cells."""
    features = {'global': z.mean((2, 3)), 'dense': _rows(z.flatten(2))}
    return {
        f'{kind}_{name}': value
        for kind, x in features.items()
        for name, value in spread(normalize(x, dim=1)).items()
    }


def _rows(cells: Tensor) -> Tensor:
    """N×C×S to (N·S)×C."""
    return cells.transpose(1, 2).flatten(0, 1)
