# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from math import ceil, log
from typing import Optional

from mmengine.dist import get_world_size
from mmengine.hooks import Hook, LoggerHook
from mmpretrain.utils import get_ori_model

from mmdense.models.layers import KeyQueue, MomentumEncoder
from mmdense.registry import HOOKS

from ..events import log_event
from .momentum_encoder import accumulated


@HOOKS.register_module()
class KeyQueueLogHook(Hook):
    """Log how full the key queue is, and the loss at chance level, ln(1 + K).

    A queue starts with random vectors, which are easy to distinguish from real keys: the loss
    RISES toward chance level while real keys replace them, and falls only then. Users take that
    for divergence, so the log explains it.

    It warns of keys that are older than one horizon of the momentum encoder, 1 / momentum steps:
    their age alone distinguishes them from fresh ones (docs/evidence.md). In the papers' recipes
    the oldest key has a quarter of it.

    The queue is read (which waits for the device) only when the logger writes a line, and when
    the queue should be full.
    """

    def before_train(self, runner) -> None:
        """Explain how the loss is going to behave."""
        model = get_ori_model(runner.model)
        queues = [m for m in model.modules() if isinstance(m, KeyQueue)]
        # Queues of one model advance together; the longest is full last.
        self.queue = max(queues, key=lambda queue: queue.queue_len, default=None)
        if self.queue is None:
            return
        loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self.interval = loggers[0].interval if loggers else 50
        self.full = self._fill() >= 1
        batch = (getattr(runner.train_dataloader, 'batch_size', None) or 1) * get_world_size()
        length = self.queue.queue_len
        self.iters_left = ceil((length - int(self.queue.filled)) / batch)
        if not self.full:
            ending = 's' * (self.iters_left > 1)
            log_event(
                runner,
                'queue_fills',
                f'The key queue is {self._fill():.0%} full. While it fills, for the next '
                f'{self.iters_left} iteration{ending} ({length} keys, {batch} an iteration), the '
                f'loss rises toward chance level, ln(1 + {length}) = {self._chance():.2f}. This is '
                'not divergence.',
                fill=self._fill(),
                iterations_left=self.iters_left,
                queue_len=length,
                chance=self._chance(),
            )
        self._warn_of_old_keys(runner, model, batch * accumulated(runner))

    def _warn_of_old_keys(self, runner, model, batch: int) -> None:
        encoders = [m for m in model.modules() if isinstance(m, MomentumEncoder)]
        length = self.queue.queue_len
        age = max((encoder.momentum * length / batch for encoder in encoders), default=0)
        if age <= 1:
            return
        better = max(int(length / age / 4) // batch, 1) * batch
        log_event(
            runner,
            'old_keys',
            f'The oldest of {length} keys is {age:.1f} horizons of the momentum encoder (1 / '
            'momentum steps) old: the age alone distinguishes keys, whatever is in the images. '
            f'Set model.queue_len to {better} or so, or a smaller model.momentum.',
            'WARNING',
            horizons=age,
            queue_len=length,
            suggested_queue_len=better,
        )

    def after_train_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Publish ``queue_fill`` in [0, 1] and ``chance`` to every log backend."""
        if self.queue is None:
            return
        self.iters_left -= 1
        logged = self.every_n_inner_iters(batch_idx, self.interval) or self.end_of_epoch(
            runner.train_dataloader, batch_idx
        )
        if not logged and self.iters_left:
            return
        fill = self._fill()
        if logged:
            runner.message_hub.update_scalar('train/queue_fill', fill)
            runner.message_hub.update_scalar('train/chance', self._chance())
        if fill >= 1 and not self.full:
            self.full = True
            log_event(
                runner,
                'queue_full',
                f'The key queue is full (iteration {runner.iter + 1}). The loss can rise further, '
                'while the keys of the first weights leave the queue; then it falls. A loss that '
                f'stays at chance level, {self._chance():.2f}, has learned nothing.',
                iteration=runner.iter + 1,
                chance=self._chance(),
            )

    def _fill(self) -> float:
        return int(self.queue.filled) / self.queue.queue_len

    def _chance(self) -> float:
        return log(1 + self.queue.queue_len)
