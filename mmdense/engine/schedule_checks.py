# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find settings of a run that have no effect or the wrong length, and that nothing else reports."""

import warnings
from typing import Any, Iterator, List, NamedTuple

from mmengine.optim import _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmdense.utils.errors import InputError

# schedulers that a run usually has for its start alone
_WARMUPS = ('Linear', 'Constant')


class _Schedule(NamedTuple):
    """Hold a scheduler with its place in the config.

    Attributes:
        key (str): Key of the config for ``--cfg-options``, such as 'param_scheduler.0'.
        config (dict): Its config.
        scheduler (_ParamScheduler): What MMEngine built from it.
        scale (int): Iterations of a unit of the scheduler's lengths.
        per (int): Units of the scheduler in a unit of the config.
        unit (str): 'epoch' or 'iteration', of the config.
    """

    key: str
    config: dict
    scheduler: _ParamScheduler
    scale: int
    per: int
    unit: str

    @property
    def name(self) -> str:
        return f'{type(self.scheduler).__name__} ({self.key})'

    @property
    def end(self) -> float:
        """Return the step at which its curve ends, in its own unit."""
        steps = getattr(self.scheduler, 'T_max', getattr(self.scheduler, 'total_steps', None))
        return self.scheduler.end if steps is None else self.scheduler.begin + steps

    def at(self, step: float) -> str:
        return f'{self.unit} {step / self.per:g}'


def try_schedules(configs: Any, runner: Runner) -> None:
    """Let each scheduler take two steps, and take the steps back.

    MMEngine reads some values at a later step of the run only.

    Args:
        configs (Any): ``param_scheduler`` of the config.
        runner (Runner): The runner, with its schedulers built.

    Raises:
        InputError: A scheduler cannot compute its steps from the values of its config.
    """
    for found in _schedules(configs, runner):
        scheduler = found.scheduler
        if hasattr(scheduler, 'need_val_args'):  # it waits for a metric
            continue
        groups = scheduler.optimizer.param_groups
        state, values = dict(vars(scheduler)), [group[scheduler.param_name] for group in groups]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # the optimizer has taken no step
                scheduler._global_step = max(scheduler._global_step, scheduler.begin - 1)
                for _ in range(min(2, scheduler.end - scheduler._global_step - 1)):
                    scheduler.step()
            list(_describe(found, [], runner))  # compares the lengths
        except (ArithmeticError, TypeError, ValueError) as error:
            own = {k: v for k, v in found.config.items() if k != 'type'}
            raise InputError(
                f'{found.name} cannot compute a step ({error}): its values are {own}'
            ) from None
        finally:
            vars(scheduler).update(state)
            for group, value in zip(groups, values):
                group[scheduler.param_name] = value


def describe_schedules(configs: Any, runner: Runner) -> List[str]:
    """Describe each schedule whose end is not that of the run.

    Args:
        configs (Any): ``param_scheduler`` of the config.
        runner (Runner): The runner, with its schedulers built.

    Returns:
        list[str]: A line for each: the setting, its length, that of the run, and what to set.
    """
    schedules = list(_schedules(configs, runner))
    return [line for found in schedules for line in _describe(found, schedules, runner)]


def describe_save_best(runner: Runner) -> List[str]:
    """Describe each ``save_best`` that no validation gives a metric.

    Returns:
        list[str]: A line for each checkpoint hook with ``save_best``, where the run has no
        validation, or none before its end.
    """
    if not any(getattr(hook, 'save_best', None) for hook in runner.hooks):
        return []
    loop = runner.train_loop
    length = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    if runner.val_loop is None:
        why, fix = 'the run has no validation', 'give val_dataloader, val_cfg and val_evaluator'
    elif max(loop.val_interval, loop.val_begin) > length:
        why = f'the run ends at {length}, before its first validation'
        fix = 'lower train_cfg.val_interval and train_cfg.val_begin'
    else:
        return []
    return [
        f'save_best of the checkpoint hook has no effect: {why}, and the scores of a '
        f'DenseEvaluationHook do not count. Leave save_best out, or {fix}.'
    ]


def _schedules(configs: Any, runner: Runner) -> Iterator[_Schedule]:
    built = runner.param_schedulers
    if not isinstance(built, dict):
        yield from _pairs('param_scheduler', configs, built, runner)
        return
    for name, schedulers in built.items():  # one list for each of several optimizers
        one = configs if not isinstance(configs, dict) or 'type' in configs else configs[name]
        key = 'param_scheduler' if one is configs else f'param_scheduler.{name}'
        yield from _pairs(key, one, schedulers, runner)


def _pairs(key: str, configs: Any, built: list, runner: Runner) -> Iterator[_Schedule]:
    alone = isinstance(configs, (dict, _ParamScheduler))
    epoch = len(runner.train_dataloader)
    for i, (config, scheduler) in enumerate(zip([configs] if alone else configs, built)):
        config = dict(config) if isinstance(config, dict) else {}
        converted = config.get('convert_to_iter_based')
        yield _Schedule(
            key if alone else f'{key}.{i}',
            config,
            scheduler,
            scale=epoch if scheduler.by_epoch else 1,
            per=epoch if converted else 1,
            unit='epoch' if scheduler.by_epoch or converted else 'iteration',
        )


def _describe(found: _Schedule, schedules: List[_Schedule], runner: Runner) -> Iterator[str]:
    scheduler, loop = found.scheduler, runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if hasattr(scheduler, 'need_val_args'):
        if runner.val_loop is None:
            yield f'{found.name} has no effect: it waits for a validation, and the run has none.'
        return
    if scheduler.by_epoch and not by_epoch:
        yield (
            f'{found.name} has no effect: it counts epochs, and the loop iterations. Give it '
            'by_epoch=False and its lengths in iterations.'
        )
        return
    length = loop.max_epochs if scheduler.by_epoch else loop.max_iters
    if scheduler.begin >= length:
        yield (
            f'{found.name} has no effect: it begins at {found.at(scheduler.begin)}, and the run '
            f'ends at {found.at(length)}. Set {found.key}.begin lower.'
        )
    elif hasattr(scheduler, 'milestones') or hasattr(scheduler, 'step_size'):
        yield from _describe_steps(found, length)
    else:
        yield from _describe_curve(found, schedules, length)


def _describe_steps(found: _Schedule, length: int) -> Iterator[str]:
    """Describe a schedule whose steps are not all in the run; ``length`` is that of the run."""
    scheduler = found.scheduler
    last = min(length, scheduler.end)
    if hasattr(scheduler, 'milestones'):
        late = [m for m in sorted(scheduler.milestones) if scheduler.begin + m >= last]
        if late:
            yield (
                f'{found.name} never reaches {"milestone" if len(late) == 1 else "milestones"} '
                f'{", ".join(f"{m / found.per:g}" for m in late)}: it ends at '
                f'{found.at(last)}. Set {found.key}.milestones to lower numbers.'
            )
    elif scheduler.begin + scheduler.step_size >= last:
        yield (
            f'{found.name} changes nothing: its step_size is '
            f'{scheduler.step_size / found.per:g}, and {found.at(length)} is the end. Set '
            f'{found.key}.step_size lower.'
        )


def _describe_curve(found: _Schedule, schedules: List[_Schedule], length: int) -> Iterator[str]:
    """Describe a schedule whose curve ends after the run, or before it; ``length`` is that of the
    run."""
    scheduler, run = found.scheduler, f'the run at {found.at(length)}'
    value = _WORDS.get(scheduler.param_name, scheduler.param_name)
    if getattr(scheduler, 'warmup', 0) >= length - scheduler.begin:
        yield (
            f'The run ends within the warm-up of {found.name}, {scheduler.warmup / found.per:g} '
            f'{found.unit}s: the learning rate only rises. Set {found.key}.warmup lower than '
            f'{length / found.per:g}.'
        )
    elif _is_flat(scheduler):
        return
    elif found.end > length:
        yield (
            f'The schedule of the {value} is cut: {found.name} ends at {found.at(found.end)}, '
            f'{run}. {_remedy(found, length)}'
        )
    elif found.end < length and _is_last(found, schedules):
        after = 'stays as it is then'
        if hasattr(scheduler, 'T_max') and found.end < scheduler.end:
            after = 'rises again then'
        yield (
            f'{found.name} ends at {found.at(found.end)}, {run}: the {value} {after}. '
            f'{_remedy(found, length)}'
        )


def _remedy(found: _Schedule, length: int) -> str:
    """Return the settings by which a schedule ends with the run."""
    changes = [f'{found.key}.end={length / found.per:g}']
    for name in ('T_max', 'total_steps'):
        if name in found.config:
            steps = (length - found.scheduler.begin) / found.per
            changes.insert(0, f'{found.key}.{name}={steps:g}')
            break
    remedy = f'Set {" ".join(changes)}'
    if 'T_max' in found.config:
        return f'{remedy}, or leave T_max and end out of the config: they follow the run.'
    return f'{remedy}.'


_WORDS = dict(lr='learning rate')


def _is_flat(scheduler: _ParamScheduler) -> bool:
    """Return whether a scheduler has no end of its own: an exponential, or restarts."""
    return any(name in type(scheduler).__name__ for name in ('Exponential', 'Restart'))


def _is_last(found: _Schedule, schedules: List[_Schedule]) -> bool:
    """Return whether no other schedule goes on where this one ends, and it is no warm-up."""
    name = type(found.scheduler).__name__
    if name.startswith(_WARMUPS) and getattr(found.scheduler, 'end_factor', 1) >= 1:
        return False
    end = found.end * found.scale
    others = [s for s in schedules if s.scheduler is not found.scheduler]
    return not any(
        s.scheduler.param_name == found.scheduler.param_name
        and s.scheduler.optimizer is found.scheduler.optimizer
        and s.scheduler.end * s.scale > end
        for s in others
    )
