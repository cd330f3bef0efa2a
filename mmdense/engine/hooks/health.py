# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Monitor whether features are worth something: collapse shows in them, not in the loss."""

from collections import Counter, defaultdict
from typing import Any, Dict, Optional

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import Tensor

from mmdense.evaluation.collapse import THRESHOLDS, Values, measure_features, measure_usage
from mmdense.models.selfsup import SelfSupervisor
from mmdense.registry import HOOKS
from mmdense.utils.checks import check_counts

from ..events import log_event


@HOOKS.register_module()
class HealthMonitorHook(Hook):
    r"""Log whether features collapse, and warn when they do.

    Every ``interval`` iterations the first process measures what the algorithm
    hands to :meth:`~mmdense.models.selfsup.SelfSupervisor.probe`, and hands
    these numbers to every log backend, as ``train/health_*``. The features are
    those of the online network, normalised to length 1: ``global`` (a vector an
    image; the mean over its locations where the algorithm has no such vector),
    ``dense`` (of locations), ``local`` (of sets of patches), ``region`` (of
    regions), and ``stage_1`` and so on (of stages of the backbone):

    - ``{global,dense,local,region}_std``, ``stage_1_std``: standard deviation of
      a channel, mean over channels, times √C: 1 is spread over the sphere, 0 is
      constant (`SimSiam <https://arxiv.org/abs/2011.10566>`_, section 4.1).
    - ``…_rank``, ``stage_1_rank``: effective rank, the exponential of the entropy of the singular
      values (Roy and Vetterli 2007; `RankMe
      <https://arxiv.org/abs/2210.02885>`_), at least 1, at most the number of
      channels and of rows (1024 of them are taken).
    - ``…_positive_similarity``, ``…_negative_similarity``: mean cosine of
      queries and keys, of positive pairs, and of different images of the
      batch. Of slots (``slot_…``) before the predictor; of pixels before the
      propagation; of several stages those of the last one.
    - ``match_entropy`` of the locations that an image's queries are matched
      with, over ln S: 1 where each has another match, 0 where all have the same.
    - ``prototypes_used``, the exponential of the entropy of the assignment of
      locations (with SwAV of views) to their nearest prototypes, from 1 to P, and
      ``prototypes_dead``, the share of prototypes that get less than a hundredth of
      an equal part. Both over about the last ten checks.
    - ``without_positive``, the share of images whose views have no positive pair.

    :class:`KeyQueueLogHook` logs how full a queue is.

    It warns when a value violates its threshold at two checks in a row, and
    again only when the value has recovered in between: std below 0.05, rank
    below 1.8, fewer than 1.5 prototypes used, half of the images without a
    positive pair.

    Between two checks it costs nothing; a check reads its numbers at once (and its singular values
    make a GPU wait).

    Args:
        interval (int): Iterations between two checks, from 1. Defaults to 50.
    """

    def __init__(self, interval: int = 50) -> None:
        check_counts(interval=interval)
        self.interval = interval

    def before_train(self, runner: Runner) -> None:
        """Find the algorithm to monitor."""
        model = get_ori_model(runner.model)
        monitored = isinstance(model, SelfSupervisor) and is_main_process()
        self.model = model if monitored else None
        self.values: Optional[Values] = None
        self.usage: Values = {}  # counts of earlier checks, by name
        self.beyond: Counter = Counter()  # violations in a row, by value
        self.warned: set = set()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None
    ) -> None:
        """Start a check, when one is due."""
        if self.model is not None and self.every_n_train_iters(runner, self.interval):
            self.model.health_monitor = self._measure

    @torch.no_grad()
    def _measure(self, features: Dict[str, Any]) -> None:
        """Measure what the algorithm probes."""
        self.values = self.values or {}
        for name, value in features.items():
            name, value = name.rstrip('_'), _evaluate(value)
            if isinstance(value, Tensor) and value.dim() == 1:
                self.usage[name] = value.double() + 0.9 * self.usage.get(name, 0)
                self.values.update(measure_usage(name, self.usage[name]))
            else:
                self.values.update(measure_features(name, value))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Log the numbers of a check, and compare them with their thresholds."""
        if self.model is not None:
            self.model.health_monitor = None
        if self.values is None:
            return
        values, self.values = self.values, None
        numbers = torch.stack([value.double() for value in values.values()]).tolist()
        found = dict(zip(values, numbers))
        # NaN: there was no pair
        found = {name: value for name, value in found.items() if value == value}
        for name, value in found.items():
            runner.message_hub.update_scalar(f'train/health_{name}', value)
        self._judge(runner, found)

    def after_train(self, runner: Runner) -> None:
        """Leave the algorithm as it was."""
        if self.model is not None:
            self.model.health_monitor = None

    def _judge(self, runner: Runner, values: Dict[str, float]) -> None:
        """Warn of values that violate their thresholds, and log that a value has recovered."""
        violations = defaultdict(dict)  # name → value, by the rule's words
        for name, value in values.items():
            rule = next((rule for rule in THRESHOLDS if name.endswith(rule.name)), None)
            if rule is None:
                continue
            self.beyond[name] = self.beyond[name] + 1 if rule.is_violated(value, rule.bound) else 0
            if name in self.warned:
                if not rule.is_violated(value, rule.recovery):
                    self.warned.remove(name)
                    text = f'health_{name} is {value:.3g}: that is over.'
                    log_event(runner, 'health_recovered', text, values={name: value})
            elif self.beyond[name] >= 2:
                self.warned.add(name)
                violations[rule.meaning, rule.advice][name] = value
        for (meaning, advice), found in violations.items():
            listed = ', '.join(f'health_{name} is {value:.3g}' for name, value in found.items())
            lr = _learning_rate(runner)
            text = (
                f'{listed} after {runner.iter + 1} iterations: {meaning}. {advice}; the learning '
                f'rate is {lr:.3g}.'
            )
            log_event(runner, 'health', text, 'WARNING', values=found, lr=lr)


def _learning_rate(runner: Runner) -> float:
    return max(group['lr'] for group in runner.optim_wrapper.optimizer.param_groups)


def _evaluate(value: Any) -> Any:
    """Call a function of :meth:`SelfSupervisor.probe`; leave everything else as it is."""
    return value() if callable(value) and not isinstance(value, Tensor) else value
