# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from math import ceil, log
from typing import Optional

from mmengine.dist import get_world_size
from mmengine.hooks import Hook, LoggerHook
from mmpretrain.utils import get_ori_model

from mmdense.models.layers import KeyQueue, MomentumEncoder
from mmdense.registry import HOOKS

from .momentum_encoder import accumulated


@HOOKS.register_module()
class KeyQueueLogHook(Hook):
    """Logs how full the key queue is, and the loss of pure chance, ln(1 + K).

    A queue starts with random vectors, which are easy to tell from real keys:
    the loss RISES toward chance level while real keys replace them, and falls
    only then. Users take that for divergence, so the log says it in words.

    It warns of keys that live for more than one of the twin's horizons, 1 / momentum steps: they
    are told from fresh ones by their age alone (docs/evidence.md). In the papers' recipes it is
    a quarter of one.

    The queue is read (which waits for the device) only when the logger writes
    a line, and where it should be full.
    """

    def before_train(self, runner) -> None:
        """Says what to expect."""
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
            runner.logger.info(
                f'The key queue is {self._fill():.0%} full. While it fills, for the next '
                f'{self.iters_left} iteration{ending} ({length} keys, {batch} an iteration), the '
                f'loss rises toward chance level, ln(1 + {length}) = {self._chance():.2f}. This is '
                'not divergence: it falls once the queue is full.'
            )
        twins = [m for m in model.modules() if isinstance(m, MomentumEncoder)]
        batch *= accumulated(runner)
        age = max((twin.momentum * length / batch for twin in twins), default=0)
        if age > 1:
            runner.logger.warning(
                f"The oldest of {length} keys is {age:.1f} of the twin's horizons (1 / momentum "
                'steps) old: keys can be told apart by their age, whatever is in the images. Set '
                f'model.queue_len to {max(int(length / age / 4) // batch, 1) * batch} or so, or a '
                'smaller model.momentum.'
            )

    def after_train_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Publishes ``queue_fill`` in [0, 1] and ``chance`` to every log backend."""
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
            runner.logger.info(
                f'The key queue is full (iteration {runner.iter + 1}); from here on the loss '
                f'should fall. Chance level is {self._chance():.2f}.'
            )

    def _fill(self) -> float:
        return int(self.queue.filled) / self.queue.queue_len

    def _chance(self) -> float:
        return log(1 + self.queue.queue_len)
