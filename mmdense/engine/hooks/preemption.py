# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import logging
import os
import signal
import threading
from contextlib import suppress
from typing import Optional

import torch
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import distributed

from mmdense.datasets.workers import defer_signals
from mmdense.registry import HOOKS

from ..events import log_event
from .checkpoint import CheckpointHook
from .momentum_encoder import accumulated
from .progress_bar import ProgressBarHook


def announce_interrupt() -> None:
    """Say on stderr, at the first Ctrl-C, what is going to happen."""
    text = (
        '\nCtrl-C: the running iteration ends, a checkpoint is saved, then training ends. '
        'A second Ctrl-C ends it at once, without saving.\n'
    )
    with suppress(OSError):
        os.write(2, text.encode())  # a signal may interrupt any other writer


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Save on SIGTERM and SIGUSR1 after the running iteration, and end with exit code 0.

    Cluster schedulers send them before they take a machine away. One process that gets the
    signal is enough: all agree on the iteration to stop after, by one byte over the network in
    every iteration, which nothing waits for. ``tools/dist_train.sh`` passes the signals on;
    torchrun does not.

    The data loaders' workers of :class:`~mmdense.datasets.UnlabeledDataset`, which may get the
    signal as well, continue meanwhile.

    With 'SIGINT' among the signals Ctrl-C saves, too, and ends with the shell's 130; a second
    one ends at once. The first one says so on stderr.

    Args:
        signals (Sequence[str]): Defaults to ('SIGTERM', 'SIGUSR1').
    """

    priority = 'LOWEST'  # after the hooks that finish the iteration

    def __init__(self, signals=('SIGTERM', 'SIGUSR1')) -> None:
        self.signals = [getattr(signal, name) for name in signals if hasattr(signal, name)]
        self.received: Optional[int] = None

    def before_train(self, runner: Runner) -> None:
        """Listen to the signals."""
        self.received, self.agreement = None, None
        self.process = os.getpid()
        listens = threading.current_thread() is threading.main_thread()  # Python's own rule
        if not any(isinstance(hook, CheckpointHook) for hook in runner.hooks):
            listens = False
            runner.logger.warning(
                "PreemptionHook needs mmdense's CheckpointHook to save with: without it signals "
                'end this run at once'
            )
        signals = self.signals if listens else ()
        self.before = {number: signal.signal(number, self._receive) for number in signals}
        defer_signals(bool(signals))
        # a group of its own next to the one of the GPUs: nothing has to wait for a device
        self.group = distributed.new_group(backend='gloo') if is_distributed() else None

    def _receive(self, number: int, frame) -> None:
        if os.getpid() == self.process:  # else in a worker: see init_worker
            if number == self.received == signal.SIGINT:
                raise KeyboardInterrupt
            if number == signal.SIGINT:
                announce_interrupt()
            self.received = number

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Save and end, if any process had a signal one iteration ago."""
        if self.group is None:
            stop = self.received is not None
        else:
            stop = False
            if self.agreement is not None:
                word, work = self.agreement
                work.wait()
                stop = bool(word)
            word = torch.tensor([self.received is not None], dtype=torch.uint8)
            work = distributed.all_reduce(
                word, distributed.ReduceOp.MAX, group=self.group, async_op=True
            )
            self.agreement = word, work
        # no checkpoint holds gradients that are still being accumulated
        complete_step = (runner.iter + 1) % accumulated(runner) == 0
        if stop and complete_step and not self.is_last_train_iter(runner):
            self._save_and_end(runner)

    def _save_and_end(self, runner: Runner) -> None:
        name = signal.Signals(self.received).name if self.received else 'signal to another process'
        for hook in runner.hooks:
            if isinstance(hook, ProgressBarHook):
                hook.close()
            if isinstance(hook, CheckpointHook):
                hook.save_now(runner)
                log_event(
                    runner,
                    'preempted',
                    f'{name}: saved {hook.last_ckpt} and ended; --resume continues from it.',
                    'WARNING',
                    signal=name,
                    checkpoint=hook.last_ckpt,
                    iterations=runner.iter + 1,
                )
        if self.group is not None:
            distributed.barrier(group=self.group)  # no peer is left in the middle of a message
        runner.visualizer.close()
        logging.shutdown()
        # at once: workers that wait for work, and gloo's threads, would be waited for
        os._exit(130 if self.received == signal.SIGINT else 0)

    def after_train(self, runner: Runner) -> None:
        """Leave the signals as they were."""
        defer_signals(False)
        for number, handler in self.before.items():
            signal.signal(number, handler)
