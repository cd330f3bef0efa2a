# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Read a run from its work directory: scalars, events and state, also while they are written."""

import ast
import inspect
import json
import re
import time
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from mmdense.checkpoints.model_config import _DictCalls
from mmdense.engine.events import EVENTS_FILE, read_events
from mmdense.registry import MODELS
from mmdense.utils.checks import is_number
from mmdense.utils.errors import InputError
from mmdense.utils.paths import check_run

# The heading of a kind of event. Events of another kind are shown if they are warnings or errors.
_HEADINGS = dict(
    health='health',
    health_recovered='health',
    skipped_step='skipped',
    unreadable_image='unreadable',
    unreadable_images='unreadable',
    preempted='course',
    resumed_with_difference='course',
    queue_full='course',
    dense_loss_starts='course',
    schedule_changed='course',
)


class Curve(NamedTuple):
    """Hold a scalar over the run: ``steps`` are iterations, both arrays float64 of one length."""

    steps: np.ndarray
    values: np.ndarray


class Event(NamedTuple):
    """Hold an event as a report shows it: ``kind`` is health, skipped, unreadable, course or
    other, ``time`` the first of ``count`` times that it was written."""

    kind: str
    time: str
    level: str
    text: str
    count: int


class State(NamedTuple):
    """Hold the state of a run: ``kind`` is finished, running or interrupted; ``text`` gives the
    position, and the way to continue."""

    kind: str
    text: str


@dataclass
class RunLog:
    """Hold a run, as its work directory describes it.

    Attributes:
        directory (Path): The work directory.
        folders (List[str]): The folder of each start, in order.
        starts (List[float]): First logged iteration of each resumption.
        config_name (str): Name of the config file; '' if it is not there.
        config_text (str): The dumped config of the last start.
        config (dict): The same as values, read as data: nothing in it runs.
        train (Dict[str, Curve]): Scalars of training by name.
        evaluation (Dict[str, Curve]): Scalars of evaluations by name.
        per_epoch (int, optional): Iterations in an epoch.
        processes (int, optional): Number of processes that trained; None if it is not known.
        started (str): Time of the first start.
        seconds (float): Duration of all starts together.
        state (State): Whether the run is finished.
        events (List[Event]): Warnings, errors and the course of the run.
        without_events (List[str]): Folders of the starts that wrote scalars and no events.
        queue_filled_at (int, optional): Iteration that filled the key queue, by the events.
        dense_from (int, optional): First iteration with the dense loss, where it started late.
        guesses (Dict[str, float]): Scores of the most frequent class, by metric, in per cent.
        checkpoints (List[Tuple[str, Path]]): Label and file, in order; of a run that kept
            snapshots these, and the last checkpoint.
        stopped_at (int): Completed iterations, by the event that ended the last start; 0
            without one.
    """

    directory: Path
    folders: List[str]
    starts: List[float] = field(default_factory=list)
    config_name: str = ''
    config_text: str = ''
    config: Dict[str, Any] = field(default_factory=dict)
    train: Dict[str, Curve] = field(default_factory=dict)
    evaluation: Dict[str, Curve] = field(default_factory=dict)
    per_epoch: Optional[int] = None
    processes: Optional[int] = 1
    started: str = ''
    seconds: float = 0.0
    state: State = State('interrupted', '')
    events: List[Event] = field(default_factory=list)
    without_events: List[str] = field(default_factory=list)
    queue_filled_at: Optional[int] = None
    dense_from: Optional[int] = None
    guesses: Dict[str, float] = field(default_factory=dict)
    checkpoints: List[Tuple[str, Path]] = field(default_factory=list)
    stopped_at: int = 0

    def setting(self, *keys: str) -> Any:
        """Return a value of the config, ``setting('model', 'type')``; None if there is none."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def last_step(self) -> int:
        """Return the completed iterations, by the last logged line or the event at the end."""
        logged = max((curve.steps[-1] for curve in self.train.values()), default=0)
        return max(int(logged), self.stopped_at)

    @property
    def max_steps(self) -> Optional[int]:
        """Return the iterations of the complete run, if they are known."""
        if self.setting('train_cfg', 'max_iters'):
            return self.setting('train_cfg', 'max_iters')
        epochs = self.setting('train_cfg', 'max_epochs')
        return epochs * self.per_epoch if epochs and self.per_epoch else None

    @property
    def batch_size(self) -> Optional[int]:
        """Return the images in an iteration, over all processes."""
        size = self.setting('train_dataloader', 'batch_size')
        return size * self.processes if isinstance(size, int) and self.processes else None

    @property
    def images_per_second(self) -> Optional[Curve]:
        """Return the throughput, from the time of an iteration and the batch."""
        times = self.train.get('time')
        if times is None or self.batch_size is None:
            return None
        good = times.values > 0
        return Curve(times.steps[good], self.batch_size / times.values[good])

    @property
    def loading_share(self) -> Optional[Curve]:
        """Return the share of an iteration that waits for data, in [0, 1]."""
        times, waits = self.train.get('time'), self.train.get('data_time')
        if times is None or waits is None or len(times.steps) != len(waits.steps):
            return None
        good = times.values > 0
        return Curve(times.steps[good], waits.values[good] / times.values[good])

    @property
    def chance(self) -> Optional[float]:
        """Return ``loss`` at chance level; None without a key queue.

        A loss that has a part for each stage of the backbone (``loss_*_stage*``) is their sum,
        weighted by ``model.stage_weights``; each part has the logged chance level. None if the
        weights are not known.
        """
        logged = self.train.get('chance')
        if logged is None:
            return None
        found = [re.fullmatch(r'loss_\w+_stage(\d+)', name) for name in self.train]
        stages = [int(match[1]) for match in found if match]
        if not stages:
            return float(logged.values[-1])
        weights = self.setting('model', 'stage_weights')
        weights = weights or _default_argument(self.setting('model', 'type'), 'stage_weights')
        if weights is None:
            return None
        by_stage = dict(zip(sorted(set(stages)), weights))
        return float(logged.values[-1] * sum(by_stage.get(stage, 1.0) for stage in stages))

    @property
    def queue_full_at(self) -> Optional[float]:
        """Return the first iteration with a full queue, by its event, or the first logged one; inf
        while the queue fills, None without one."""
        fill = self.train.get('queue_fill')
        if fill is None:
            return None
        if self.queue_filled_at is not None:
            return float(self.queue_filled_at)
        full = fill.steps[fill.values >= 1]
        return float(full[0]) if len(full) else float('inf')


def _default_argument(kind: Any, name: str) -> Any:
    """Return the default of an argument of a registered model; None if there is none."""
    MODELS.import_from_location()
    found = MODELS.module_dict.get(str(kind).rpartition('.')[2])  # nothing else is imported
    argument = inspect.signature(found).parameters.get(name) if found else None
    return None if argument is None or argument.default is argument.empty else argument.default


@dataclass
class _Start:
    """Hold one start of a run: events, and iteration and seconds of its training lines."""

    folder: Path
    events: List[Dict[str, Any]]
    steps: array = field(default_factory=lambda: array('d'))
    times: array = field(default_factory=lambda: array('d'))

    def find(self, kind: str) -> Optional[Dict[str, Any]]:
        """Return the last event of a kind; None without one."""
        return next((event for event in reversed(self.events) if event['kind'] == kind), None)

    @property
    def trains(self) -> bool:
        """Return whether it is a training, not an evaluation."""
        return bool(self.steps) or self.find('started') is not None

    @property
    def begin(self) -> datetime:
        """Return the time of the start, which names the folder."""
        return _start_time(self.folder.name)

    @property
    def seconds(self) -> float:
        """Return the duration until the last event, and of the iterations logged after it."""
        seconds, done = 0.0, -1
        if self.events:
            end = datetime.fromisoformat(self.events[-1]['time'])
            seconds = max(0.0, (end - self.begin).total_seconds())
            done = self.events[-1]['iter']
        steps, times = np.array(self.steps), np.array(self.times)
        steps, times = steps[steps > done], times[steps > done]
        if not len(steps):
            return seconds
        before = done if done >= 0 else max(0.0, 2 * steps[0] - steps[min(1, len(steps) - 1)])
        return seconds + float((np.diff(steps, prepend=min(before, steps[0])) * times).sum())


def read_run(directory: str) -> RunLog:
    """Read a work directory of MMEngine.

    A later start replaces the lines of earlier ones for the same iterations. A line that is cut
    short is left out; the last one of a running training may be.

    Args:
        directory (str): The folder that ``--work-dir`` names, or the folder of one start in it.

    Returns:
        RunLog: The run. One of an older mmdense or of another package has no events.

    Raises:
        InputError: There is no run.
    """
    check_run(directory)
    folder = Path(directory)
    if (folder / 'vis_data').is_dir():
        folder = folder.resolve().parent
    folders = sorted(
        path
        for path in folder.iterdir()
        if _start_time(path.name) is not None and any(_list_files(path))
    )
    if not folders:
        raise InputError(
            f'{directory} holds no run: looked for folders such as 20260131_235959 with a log '
            'in it; give the work directory of a run (--work-dir, work_dirs/CONFIG)'
        )
    run = RunLog(folder, [path.name for path in folders])
    starts = [_Start(path, read_events(path)) for path in folders]
    _read_config(run, folders)
    _read_scalars(run, starts)
    _read_course(run, starts)
    run.checkpoints = _list_checkpoints(folder, run.per_epoch or 1)
    run.state = _state(run, starts)
    return run


def _start_time(name: str) -> Optional[datetime]:
    """Return the time that MMEngine names a folder by; None for another name."""
    if not re.fullmatch(r'\d{8}_\d{6}', name):
        return None
    try:
        return datetime.strptime(name, '%Y%m%d_%H%M%S')
    except ValueError:
        return None


def _list_files(folder: Path) -> List[Path]:
    """Return the files that a start writes to: log, scalars and events."""
    names = ('*.log', EVENTS_FILE, 'vis_data/scalars.json')
    return [path for name in names for path in folder.glob(name)]


def _read_config(run: RunLog, folders: List[Path]) -> None:
    names = sorted(run.directory.glob('*.py'), key=lambda path: path.stat().st_mtime)
    run.config_name = names[-1].name if names else ''
    own = run.config_name.replace('_whole.py', '.py')  # see mmdense.engine.training.keep_config
    run.config_name = own if (run.directory / own).is_file() else run.config_name
    dumped = [folder / 'vis_data' / 'config.py' for folder in folders]
    for path in reversed([*names, *dumped]):
        if path.is_file():
            run.config_text = path.read_text(encoding='utf-8', errors='replace')
            break
    try:
        tree = ast.parse(run.config_text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                value = ast.literal_eval(_DictCalls().visit(node.value))
            except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
                continue  # a value that only a program can compute
            run.config[node.targets[0].id] = value


# ---------------------------------------------------------------- scalars


class _Columns:
    """Collect scalars by name, in the order of their iterations."""

    def __init__(self, skipped: Tuple[str, ...]) -> None:
        self.skipped = skipped
        self.by_name: Dict[str, Tuple[array, array]] = defaultdict(lambda: (array('d'), array('d')))

    def add(self, row: Dict[str, Any], step: float) -> None:
        """Append the numbers of a line."""
        for name, value in row.items():
            if name not in self.skipped and is_number(value):
                steps, values = self.by_name[name]
                steps.append(step)
                values.append(value)

    def drop_from(self, step: float, names: Any = None) -> None:
        """Remove the values from an iteration on, of all names or of some."""
        for name in list(self.by_name) if names is None else names:
            steps, values = self.by_name.get(name, ((), ()))
            while steps and steps[-1] >= step:
                steps.pop()
                values.pop()

    def curves(self) -> Dict[str, Curve]:
        """Return the columns that have values."""
        return {
            name: Curve(np.array(steps), np.array(values))
            for name, (steps, values) in self.by_name.items()
            if steps
        }


def _read_scalars(run: RunLog, starts: List[_Start]) -> None:
    train = _Columns(('step', 'iter', 'epoch'))
    evaluation = _Columns(('step', 'iter', 'epoch', 'time', 'data_time'))
    step = 0.0
    for start in starts:
        for row in _rows(start.folder / 'vis_data' / 'scalars.json'):
            # lines of training have both; an evaluation counts epochs in 'step' without 'iter'
            if 'iter' not in row or 'time' not in row:
                at = row['step'] if 'iter' in row else step
                evaluation.drop_from(at, row)
                evaluation.add(row, at)
                continue
            step = row['step']
            if not start.steps:
                train.drop_from(step)
                evaluation.drop_from(step)
                run.starts = [other for other in run.starts if other < step] + [step]
            start.steps.append(step)
            start.times.append(row['time'] if is_number(row['time']) else 0.0)
            if is_number(row.get('epoch')) and row['epoch'] >= 1:
                run.per_epoch = max(run.per_epoch or 1, -int(-step // row['epoch']))
            train.add(row, step)
    run.train, run.evaluation = train.curves(), evaluation.curves()
    for name in [name for name in run.train if name.startswith('health_')]:
        run.train[name] = _keep_measured(run.train[name], _health_interval(run))
    run.starts = run.starts[1:]


def _health_interval(run: RunLog) -> int:
    """Return the iterations between two checks of the features."""
    hooks = [*(run.setting('default_hooks') or {}).values(), *(run.setting('custom_hooks') or ())]
    hooks = [hook for hook in hooks if isinstance(hook, dict)]
    found = [h.get('interval') for h in hooks if 'HealthMonitorHook' in str(h.get('type'))]
    return next((i for i in found if isinstance(i, int) and i > 0), 50)


def _keep_measured(curve: Curve, interval: int) -> Curve:
    """Keep a value where it was measured: each line of the log repeats the last one.

    Args:
        curve (Curve): Values by the iteration of the line.
        interval (int): Iterations between two measurements.
    """
    checks = (curve.steps // interval).astype(int)
    first = np.flatnonzero(np.diff(checks, prepend=0) > 0)
    if not len(first):  # other numbers of a check
        return curve
    return Curve(checks[first].astype(float) * interval, curve.values[first])


def _rows(path: Path) -> Any:
    """Yield the lines of a file of scalars that have a step."""
    if not path.is_file():
        return
    with open(path, encoding='utf-8', errors='replace') as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and is_number(row.get('step')):
                yield row


# ---------------------------------------------------------------- events


def _read_course(run: RunLog, starts: List[_Start]) -> None:
    """Take lengths, times and events from all starts."""
    trainings = [start for start in starts if start.trains]
    run.started = starts[0].begin.strftime('%Y-%m-%d %H:%M:%S')
    run.seconds = sum(start.seconds for start in starts)
    run.without_events = [start.folder.name for start in trainings if not start.events]
    started = trainings[-1].find('started') if trainings else None
    if started is not None:
        run.processes = _count(started, 'processes')
        run.per_epoch = _count(started, 'epoch_length') or run.per_epoch
    elif run.setting('launcher') not in (None, 'none'):
        run.processes = None
    events = [event for start in starts for event in start.events]
    full = [_count(event, 'iteration') for event in events if event['kind'] == 'queue_full']
    run.queue_filled_at = min(filter(None, full), default=None)
    late = [_count(event, 'iteration') for event in events if event['kind'] == 'dense_loss_starts']
    run.dense_from = min(filter(None, late), default=None)
    for event in events:
        guesses = event.get('guesses') if event['kind'] == 'evaluation' else None
        if isinstance(guesses, dict):
            run.guesses = {str(k): float(v) for k, v in guesses.items() if is_number(v)}
    for kind in ('preempted', 'finished'):
        ended = trainings[-1].find(kind) if trainings else None
        run.stopped_at = max(run.stopped_at, _count(ended or {}, 'iterations') or 0)
    run.events = _shown_events(events)


def _count(event: Dict[str, Any], name: str) -> Optional[int]:
    """Return a whole number above 0 of an event; None if there is none."""
    value = event.get(name)
    return int(value) if is_number(value) and value >= 1 else None


def _shown_events(events: List[Dict[str, Any]]) -> List[Event]:
    count: Counter = Counter()
    first_time: Dict[tuple, str] = {}
    for event in events:
        heading, level, text = _HEADINGS.get(event['kind']), event['level'], event['text']
        if event['kind'] == 'started' and event.get('resumed'):
            heading = 'course'
            origin = f' from {event["resumed_from"]}' if event.get('resumed_from') else ''
            text = f'Resumed{origin} after {event["iter"]:,} iterations'
        if heading is None and level == 'INFO':
            continue
        key = (heading or 'other', level, text)
        count[key] += 1
        first_time.setdefault(key, event['time'].replace('T', ' '))
    return [
        Event(kind, first_time[kind, level, text], level, text, number)
        for (kind, level, text), number in count.items()
    ]


def _list_checkpoints(folder: Path, per_epoch: int) -> List[Tuple[str, Path]]:
    found, kept = [], []
    for path in [*folder.glob('*.pth'), *folder.glob('snapshots/*.pth')]:
        match = re.fullmatch(r'(epoch|iter)_(\d+)\.pth', path.name)
        if match:
            unit, steps = ('epoch', per_epoch) if match[1] == 'epoch' else ('iteration', 1)
            files = found if path.parent == folder else kept
            files.append((int(match[2]) * steps, f'{unit} {match[2]}', path))
    if kept:
        found = sorted(kept) + [last for last in sorted(found)[-1:] if last[0] > max(kept)[0]]
    return [(label, path) for _, label, path in sorted(found)]


# ---------------------------------------------------------------- state


def _state(run: RunLog, starts: List[_Start]) -> State:
    step, total = run.last_step, run.max_steps
    where = f'iteration {step:,}' + (f' of {total:,}' if total else '')
    if run.per_epoch:
        epochs = run.setting('train_cfg', 'max_epochs')
        epoch = -(-step // run.per_epoch)
        where = f'epoch {epoch}' + (f' of {epochs}' if epochs else '') + f', {where}'
    last = next((start for start in reversed(starts) if start.trains), starts[-1])
    if _is_finished(run, last):
        return State('finished', where)
    preempted = last.find('preempted')
    if preempted is not None:
        return State('interrupted', f'at {where}. {preempted["text"]}')
    # Lines come at their own pace; a checkpoint or an evaluation takes a while more.
    pace = run.train.get('time')
    gap = 0.0
    if pace is not None and len(pace.steps) > 1:
        gap = float((pace.steps[-1] - pace.steps[-2]) * pace.values[-1])
    age = time.time() - max(path.stat().st_mtime for path in _list_files(starts[-1].folder))
    if age < max(120.0, 5 * gap):
        left = ''
        if pace is not None and total:
            typical = float(np.nanmedian(pace.values[-50:]))
            left = f', about {timedelta(seconds=round((total - step) * typical))} left'
        return State('running', f'at {where}{left}')
    ago = timedelta(seconds=round(age))
    return State('interrupted', f'at {where}; nothing was logged for {ago}. --resume continues it')


def _is_finished(run: RunLog, last: _Start) -> bool:
    """Return whether the last start reached the end: by its event, by the lines, or, for a start
    that wrote none of its course, by a checkpoint of the last iteration."""
    total = run.max_steps
    if last.find('finished') is not None or (total and run.last_step >= total):
        return True
    if last.find('started') is not None or not total:
        return False
    train_cfg = run.setting('train_cfg') or {}
    names = [f'epoch_{train_cfg.get("max_epochs")}.pth', f'iter_{total}.pth']
    paths = [run.directory / name for name in names]
    begin = last.begin.timestamp()
    return any(path.is_file() and path.stat().st_mtime >= begin for path in paths)
