# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import warnings
from typing import List, Optional

from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmdense.datasets.sampler import ResumableSampler
from mmdense.models.layers import MomentumEncoder
from mmdense.registry import HOOKS
from mmdense.utils.errors import CheckpointError
from mmdense.utils.mmengine_patches import is_resuming, number_batches_from
from mmdense.utils.randomness import seed_all

from ..events import log_event
from .momentum_encoder import accumulated


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Continue a resumed run as if it had not been interrupted, to the last bit.

    Randomness is not stored but derived from the position of the run: in a step from the seed,
    the process and the iteration, in the data from the numbers of
    :class:`~mmdense.datasets.ResumableSampler`. In the middle of an epoch the sampler begins
    where the run stopped, and batches are numbered from there: the log has the same lines.

    With another number of processes or another batch size, a resumed run continues with the next
    sample of the epoch. If the total batch differs, schedules that count iterations would be at
    another place: that is an error, or a line in the log if all schedules count epochs.

    A run that is resumed with more or fewer epochs has, from there on, the schedules of its config,
    and the learning rate of a run of that length. MMEngine keeps the schedules of the checkpoint:
    the learning rate would stay where the shorter run ended. A run of the same length keeps them.
    """

    known = True  # whether the checkpoint holds meta['course']
    priority = 'VERY_HIGH'  # the seeds hold for all hooks that follow in an iteration

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add ``meta['course']``: the batch and the epoch that iterations are counted in."""
        checkpoint['meta']['course'] = self._course(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Move a checkpoint that is resumed to this run: the same sample, on this run's schedule.

        Raises:
            CheckpointError: Schedules count iterations, and the total batch differs.
        """
        before, meta = checkpoint.get('meta', {}).get('course'), checkpoint.get('meta', {})
        self.known = before is not None
        if not is_resuming(runner):
            return
        now = self._course(runner)
        if before not in (None, now):
            self._move(runner, checkpoint, before, now)
        epoch = (before or now)['iterations']
        if _has_other_length(runner, checkpoint) and _replay_schedules(runner, checkpoint, epoch):
            log_event(
                runner,
                'schedule_changed',
                'The length of the run is not that of the checkpoint: the learning rate is from '
                'here on the one that a run with this config has at this place.',
                iteration=meta.get('iter', 0),
            )

    @staticmethod
    def _move(runner: Runner, checkpoint: dict, before: dict, now: dict) -> None:
        """Move ``meta['iter']`` to the same sample in iterations of this run."""
        meta = checkpoint['meta']
        changed = ', '.join(f'{k} {before[k]} → {now[k]}' for k in now if before[k] != now[k])
        iterations = meta['iter']
        if before['total batch'] != now['total batch'] or before['images'] != now['images']:
            by_iteration = [s for s in checkpoint.get('param_schedulers', ()) if not _by_epoch(s)]
            by_iteration += [
                part
                for part in runner.model.modules()
                if isinstance(part, MomentumEncoder) and part.end_momentum is not None
            ]
            if by_iteration or not isinstance(runner.train_loop, EpochBasedTrainLoop):
                raise CheckpointError(
                    f'this run differs from that of the checkpoint ({changed}), and its schedules '
                    'count iterations: keep the total batch (processes × batch size × '
                    'accumulation) and the images, or begin a new run from it with load_from'
                )
            samples = (iterations - meta['epoch'] * before['iterations']) * before['total batch']
            meta['iter'] = meta['epoch'] * now['iterations'] + samples // now['total batch']
        log_event(
            runner,
            'resumed_with_difference',
            f'Resumed with a difference: {changed}. It continues at iteration {meta["iter"]} of '
            f'epoch {meta["epoch"] + 1}; the learning rate is the one of the checkpoint.',
            'WARNING',
            before=before,
            now=now,
            iteration=meta['iter'],
        )

    @staticmethod
    def _course(runner: Runner) -> dict:
        loader = runner.train_dataloader
        accumulation = accumulated(runner)
        return {
            'processes': get_world_size(),
            'total batch': get_world_size() * _batch_size(loader) * accumulation,
            'images': len(loader.dataset),
            'iterations': len(loader),
        }

    def before_train(self, runner: Runner) -> None:
        """Move the sampler to the position of the run.

        Raises:
            CheckpointError: The processes are at different places.
        """
        places = all_gather_object((runner.epoch, runner.iter))
        if len(set(places)) > 1:
            raise CheckpointError(
                f'the processes have resumed from different checkpoints, (epoch, iteration) '
                f'{places}: all nodes need the same work directory, or --resume FILE'
            )
        seed = [runner.seed]
        broadcast_object_list(seed)  # with diff_rank_seed each process has its own
        self.seed = seed[0]
        loop, loader = runner.train_loop, runner.train_dataloader
        sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        done = runner.iter - runner.epoch * len(loader)
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        if isinstance(sampler, ResumableSampler):
            # the sampler was built before the checkpoint's seed was known
            changed, sampler.seed = sampler.seed != self.seed, self.seed
            if changed and getattr(loop, 'dataloader_iterator', None) is not None:
                # an IterBasedTrainLoop may have begun to draw
                loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)
            if by_epoch and not self.known and not 0 <= done < len(loader):
                runner.logger.warning(
                    f'The checkpoint does not say how long its epochs were, and iteration '
                    f'{runner.iter} is not in epoch {runner.epoch + 1} of {len(loader)} iterations '
                    'each: it continues with a complete epoch.'
                )
            elif by_epoch and done > 0:
                sampler.start_at(done * _batch_size(loader))
                number_batches_from(loop, done)
        elif by_epoch and done > 0:
            runner.logger.warning(
                f'{type(sampler).__name__} begins its epoch again, although {done} iterations of '
                'it are done; ResumableSampler would continue it.'
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None
    ) -> None:
        """Seed the step."""
        seed_all(self.seed, get_rank(), runner.iter)


def _batch_size(loader: DataLoader) -> int:
    return loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None) or 1


def _by_epoch(scheduler: dict) -> bool:
    return scheduler.get('by_epoch', True)


# what steps change in a scheduler
_PROGRESS = ('last_step', '_global_step', '_last_value', 'base_values', 'verbose')


def _has_other_length(runner: Runner, checkpoint: dict) -> bool:
    """Return whether the run of a checkpoint had another length, in epochs or in iterations."""
    loop = runner.train_loop
    name = 'max_epochs' if isinstance(loop, EpochBasedTrainLoop) else 'max_iters'
    before = checkpoint.get('message_hub', {}).get('runtime_info', {}).get(name)
    return before is not None and before != getattr(loop, name)


def _replay_schedules(runner: Runner, checkpoint: dict, epoch_length: int) -> bool:
    """Replace the schedules in a checkpoint by those of the config, at the same step.

    MMEngine's schedulers compute a value from the one before. So those of the config take all
    steps again, from the learning rate that the run began with.

    Args:
        runner (Runner): The runner, with fresh schedulers.
        checkpoint (dict): The checkpoint; its schedules and the values in its optimizer change.
        epoch_length (int): Iterations of an epoch of the checkpoint's run.

    Returns:
        bool: Whether they differ from the checkpoint's.
    """
    fresh, states = runner.param_schedulers, checkpoint.get('param_schedulers')
    groups = checkpoint.get('optimizer', {}).get('param_groups')
    config = runner.cfg.get('param_scheduler')
    if not (isinstance(fresh, list) and isinstance(states, list) and groups and config):
        return False  # several optimizers, or no config to build from
    same = len(fresh) == len(states)
    if same and not any(_differs(vars(s), state) for s, state in zip(fresh, states)):
        return False
    names = {scheduler.param_name for scheduler in fresh}
    for group, saved in zip(runner.optim_wrapper.param_groups, groups):
        for name in names:
            if f'initial_{name}' in saved:
                group[name] = group[f'initial_{name}'] = saved[f'initial_{name}']
    fresh = runner.build_param_scheduler(config)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the optimizer has taken no step
        _take_steps(fresh, checkpoint['meta'], epoch_length)
    for group, saved in zip(runner.optim_wrapper.param_groups, groups):
        saved.update({name: group[name] for name in names if name in group})
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in fresh]
    runner.param_schedulers = fresh
    return True


def _take_steps(schedulers: List[_ParamScheduler], meta: dict, epoch_length: int) -> None:
    """Take the steps of a run until a checkpoint, in the order of the run."""
    schedulers = [s for s in schedulers if not hasattr(s, 'need_val_args')]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    for epoch in range(meta['epoch'] + 1):
        last = meta['iter'] if epoch == meta['epoch'] else (epoch + 1) * epoch_length
        for _ in range(epoch * epoch_length, last) if by_iteration else ():
            for scheduler in by_iteration:
                scheduler.step()
        for scheduler in by_epoch if epoch < meta['epoch'] else ():
            scheduler.step()


def _differs(own: dict, saved: dict) -> bool:
    """Return whether two states of a scheduler are of different schedules."""
    keys = (own.keys() | saved.keys()) - {*_PROGRESS, 'optimizer'}
    return any(key not in own or key not in saved or own[key] != saved[key] for key in keys)
