# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmdense.registry import HOOKS
from mmdense.utils.mmengine_patches import find_resumed_file, is_resuming

from ..events import WarningEvents, keep_record, log_event


@HOOKS.register_module()
class EventLogHook(Hook):
    """Write the start and the end of a run, and the warnings of every package, as events.

    ``mmdense report`` reads them from ``events.jsonl`` next to the log. Other hooks add their
    own by :func:`~mmdense.engine.events.log_event`.
    """

    priority = 'LOWEST'  # the run is finished when all other hooks are

    def __init__(self) -> None:
        # of the runner that builds this hook, before the runner builds the optimizer
        MMLogger.get_current_instance().addFilter(keep_record)

    def before_run(self, runner: Runner) -> None:
        """Listen to the logger."""
        self.after_run(runner)
        runner.logger.addHandler(WarningEvents(runner))

    def before_train(self, runner: Runner) -> None:
        """Write the event 'started': processes, lengths, and the checkpoint of a resumed run."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        log_event(
            runner,
            'started',
            processes=get_world_size(),
            epoch_length=len(runner.train_dataloader) if by_epoch else None,
            max_iters=runner.max_iters,
            resumed=bool(is_resuming(runner) and runner.iter),
            resumed_from=find_resumed_file(runner),
        )

    def after_train(self, runner: Runner) -> None:
        """Write the event 'finished'."""
        log_event(runner, 'finished', iterations=runner.iter)

    def after_run(self, runner: Runner) -> None:
        """Leave the logger as it was; it may serve another run of this process."""
        for handler in list(runner.logger.handlers):
            if isinstance(handler, WarningEvents):
                runner.logger.removeHandler(handler)
