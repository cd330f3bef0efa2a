# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import atexit
import logging
import sys
from time import monotonic
from typing import Optional

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mmdense.registry import HOOKS


class _Speed(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f'{task.speed:.1f} images/s' if task.speed else '? images/s')


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Show one bar on a terminal, not MMEngine's lines: epoch, images a second, loss, time left.

    The lines are in the log file as ever; warnings are shown above the bar. Elsewhere (a file, a
    pipe, a terminal that cannot move the cursor) it does nothing.

    The loss is that of the last line that was logged: to read one in every step would be to wait
    for the device.
    """

    priority = 'VERY_LOW'  # after the logger

    def __init__(self) -> None:
        self.progress: Optional[Progress] = None

    def before_train(self, runner: Runner) -> None:
        """Show the bar, and quieten the console."""
        console = Console(stderr=True)
        if not is_main_process() or not console.is_terminal or console.is_dumb_terminal:
            return
        loader = runner.train_dataloader
        batch = getattr(loader, 'batch_size', None) or loader.batch_sampler.batch_size
        self.images = batch * get_world_size()
        # no thread that refreshes: the data loader forks, and what a thread holds stays locked
        self.progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            _Speed(),
            TextColumn('{task.fields[loss]}'),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            auto_refresh=False,
            speed_estimate_period=300,
            expand=True,
        )
        done = runner.iter * self.images
        self.task = self.progress.add_task(
            self._where(runner), total=runner.max_iters * self.images, completed=done, loss=''
        )
        self.shown = 0.0
        self.progress.start()
        console.show_cursor(True)  # or a killed run would leave none
        atexit.register(self.close)  # where a run ends by an error
        self.before = [
            (handler, handler.level, handler.stream)
            for handler in runner.logger.handlers
            if isinstance(handler, logging.StreamHandler)
            and not isinstance(handler, logging.FileHandler)
        ]
        for handler, _, _ in self.before:
            handler.setLevel(logging.WARNING)
            handler.setStream(sys.stderr)  # rich's, which writes above the bar

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Move the bar, and draw it four times a second at most."""
        if self.progress is None:
            return
        scalars = runner.message_hub.log_scalars
        loss = f'loss {scalars["train/loss"].current():.3f}' if 'train/loss' in scalars else ''
        self.progress.update(
            self.task, advance=self.images, description=self._where(runner), loss=loss
        )
        if monotonic() - self.shown > 0.25:
            self.shown = monotonic()
            self.progress.refresh()

    def after_train(self, runner: Runner) -> None:
        """Leave the bar where it ended, and the console as it was."""
        self.close()

    def close(self) -> None:
        """Close the bar; it may be called at any time."""
        if self.progress is None:
            return
        self.progress.stop()
        self.progress = None
        for handler, level, stream in self.before:
            handler.setLevel(level)
            handler.setStream(stream)

    @staticmethod
    def _where(runner: Runner) -> str:
        return f'epoch {min(runner.epoch + 1, runner.max_epochs)}/{runner.max_epochs}'
