# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What a work directory says about its run: scalars, events and state, also while it is written."""

import ast
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
from mmdense.utils.errors import InputError
from mmdense.utils.log_level import FILE_CLIENT_MESSAGE

_LINE = re.compile(r'(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - \S+ - (\w+) - (.*)')
_POSITION = re.compile(r'(?:Epoch\(train\)\s+\[(\d+)\])|(?:Iter\(train\))\s')
_OF = re.compile(r'\[\s*(\d+)/(\d+)\]')
# What belongs to which heading, and lines of level INFO that are worth telling.
_KINDS = [
    ('health', re.compile(r'^health_')),
    ('skipped', re.compile(r'its step is skipped')),
    ('unreadable', re.compile(r'^cannot read image |images .* cannot be read')),
    ('course', re.compile(r': saved .* and ended; |^resumed |queue is full \(')),
]


class Curve(NamedTuple):
    """A scalar over the run: ``steps`` are iterations, both arrays float64 of one length."""

    steps: np.ndarray
    values: np.ndarray


class Event(NamedTuple):
    """A line of the log: ``kind`` is health, skipped, unreadable, course or other."""

    kind: str
    time: str
    level: str
    text: str
    count: int  # how often it was said


class State(NamedTuple):
    """``kind`` is finished, running or interrupted; ``text`` says where, and how to go on."""

    kind: str
    text: str


@dataclass
class RunLog:
    """A run, as its work directory tells it.

    Attributes:
        directory (Path): The work directory.
        sessions (List[str]): Folders of its starts and resumptions, in order.
        starts (List[float]): First logged iteration of each resumption.
        config_name (str): Of the config file; '' if not there.
        config_text (str): The last session's dumped config.
        config (dict): The same as values, read as data: nothing in it runs.
        train (Dict[str, Curve]): Scalars of training by name.
        evaluation (Dict[str, Curve]): Those of evaluations.
        per_epoch (int, optional): Iterations in an epoch.
        processes (int): That trained.
        started (str): When the first session began.
        seconds (float): Of all sessions together, by the log.
        state (State): What has become of it.
        events (List[Event]): Warnings and the run's course.
        checkpoints (List[Tuple[str, Path]]): Label and file, in order; of a run that kept
            snapshots these, and the last checkpoint.
        stopped_at (int): Iterations that were done when it was told to stop; 0 if it was not.
    """

    directory: Path
    sessions: List[str]
    starts: List[float] = field(default_factory=list)
    config_name: str = ''
    config_text: str = ''
    config: Dict[str, Any] = field(default_factory=dict)
    train: Dict[str, Curve] = field(default_factory=dict)
    evaluation: Dict[str, Curve] = field(default_factory=dict)
    per_epoch: Optional[int] = None
    processes: int = 1
    started: str = ''
    seconds: float = 0.0
    state: State = State('interrupted', '')
    events: List[Event] = field(default_factory=list)
    checkpoints: List[Tuple[str, Path]] = field(default_factory=list)
    stopped_at: int = 0

    def setting(self, *keys: str) -> Any:
        """A value of the config, ``setting('model', 'type')``; None where there is none."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def last_step(self) -> int:
        """Iterations done, by the last logged line, or by what was said at the end."""
        logged = max((curve.steps[-1] for curve in self.train.values()), default=0)
        return max(int(logged), self.stopped_at)

    @property
    def max_steps(self) -> Optional[int]:
        """Iterations of the whole run, if that is known."""
        if self.setting('train_cfg', 'max_iters'):
            return self.setting('train_cfg', 'max_iters')
        epochs = self.setting('train_cfg', 'max_epochs')
        return epochs * self.per_epoch if epochs and self.per_epoch else None

    @property
    def batch_size(self) -> Optional[int]:
        """Images in an iteration, over all processes."""
        size = self.setting('train_dataloader', 'batch_size')
        return size * self.processes if isinstance(size, int) else None

    @property
    def images_per_second(self) -> Optional[Curve]:
        """From the time of an iteration and the batch."""
        times = self.train.get('time')
        if times is None or self.batch_size is None:
            return None
        good = times.values > 0
        return Curve(times.steps[good], self.batch_size / times.values[good])

    @property
    def loading_share(self) -> Optional[Curve]:
        """How much of an iteration is waiting for data, in [0, 1]."""
        times, waits = self.train.get('time'), self.train.get('data_time')
        if times is None or waits is None or len(times.steps) != len(waits.steps):
            return None
        good = times.values > 0
        return Curve(times.steps[good], waits.values[good] / times.values[good])

    @property
    def chance(self) -> Optional[float]:
        """What ``loss`` is when nothing is known; None without a queue.

        DetCo's loss is a weighted sum of losses over the stages, each of which
        has the logged chance level.
        """
        logged = self.train.get('chance')
        if logged is None:
            return None
        found = [re.fullmatch(r'loss_\w+_stage(\d+)', name) for name in self.train]
        stages = [int(match[1]) for match in found if match]
        if not stages:
            return float(logged.values[-1])
        weights = self.setting('model', 'stage_weights') or (0.1, 0.4, 0.7, 1.0)
        by_stage = dict(zip(sorted(set(stages)), weights))
        return float(logged.values[-1] * sum(by_stage.get(stage, 1.0) for stage in stages))

    @property
    def queue_full_at(self) -> Optional[float]:
        """First iteration with a full queue, as the log says it, else the first logged one; inf
        while it fills, None without one."""
        fill = self.train.get('queue_fill')
        if fill is None:
            return None
        said = (re.search(r'queue is full \(iteration (\d+)\)', e.text) for e in self.events)
        found = [int(match[1]) for match in said if match]
        if found:
            return float(min(found))
        full = fill.steps[fill.values >= 1]
        return float(full[0]) if len(full) else float('inf')


def read_run(directory: str) -> RunLog:
    """Reads a work directory of MMEngine.

    A later session replaces what earlier ones have logged of the same
    iterations. A line that is cut short, as the last one of a run that goes on
    may be, is left out.

    Args:
        directory (str): As ``--work-dir`` names it, or one session's folder in
            it.

    Returns:
        RunLog: What is there.

    Raises:
        InputError: There is no run.
    """
    folder = Path(directory)
    if not folder.is_dir():
        what = 'is no directory' if folder.exists() else 'does not exist'
        raise InputError(f'{directory} {what}: give the work directory of a run')
    if (folder / 'vis_data').is_dir():
        folder = folder.resolve().parent
    sessions = sorted(
        path
        for path in folder.iterdir()
        if re.fullmatch(r'\d{8}_\d{6}', path.name) and any(_files(path))
    )
    if not sessions:
        raise InputError(
            f'{directory} holds no run: looked for folders such as 20260131_235959 with a log '
            'in it; give the work directory of a run (--work-dir, work_dirs/CONFIG)'
        )
    run = RunLog(folder, [session.name for session in sessions])
    _read_config(run, sessions)
    _read_scalars(run, sessions)
    ends = _read_texts(run, sessions)
    saved = re.search(r'iter_(\d+)\.pth', ends.get('stopped') or '')
    run.stopped_at = int(saved[1]) if saved else 0
    run.checkpoints = _checkpoints(folder, run.per_epoch or 1)
    run.state = _state(run, sessions, ends)
    return run


def _files(session: Path) -> List[Path]:
    """The logs of a session: text and scalars."""
    return [*session.glob('*.log'), *session.glob('vis_data/scalars.json')]


def _read_config(run: RunLog, sessions: List[Path]) -> None:
    names = sorted(run.directory.glob('*.py'), key=lambda path: path.stat().st_mtime)
    run.config_name = names[-1].name if names else ''
    own = run.config_name.replace('_whole.py', '.py')  # see mmdense.engine.training.keep_config
    run.config_name = own if (run.directory / own).is_file() else run.config_name
    dumped = [session / 'vis_data' / 'config.py' for session in sessions]
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
                continue  # not written out
            run.config[node.targets[0].id] = value


def _read_scalars(run: RunLog, sessions: List[Path]) -> None:
    new = lambda: defaultdict(lambda: (array('d'), array('d')))  # noqa: E731
    train, evaluation = new(), new()
    step = 0
    for session in sessions:
        path = session / 'vis_data' / 'scalars.json'
        if not path.is_file():
            continue
        first = True
        with open(path, encoding='utf-8', errors='replace') as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(row, dict) or not _is_number(row.get('step')):
                    continue
                # lines of training have both; an evaluation's own step counts epochs without 'iter'
                if 'iter' in row and 'time' in row:
                    step = row['step']
                    if first:
                        _forget(train, step)
                        _forget(evaluation, step)
                        run.starts = [start for start in run.starts if start < step] + [step]
                    first = False
                    if row.get('epoch') == 1:
                        run.per_epoch = max(run.per_epoch or 1, int(step))
                    _add(train, row, step, ('step', 'iter', 'epoch'))
                else:
                    at = row['step'] if 'iter' in row else step
                    _forget({name: evaluation[name] for name in row if name in evaluation}, at)
                    _add(evaluation, row, at, ('step', 'iter', 'epoch', 'time', 'data_time'))
    for source, target in ((train, run.train), (evaluation, run.evaluation)):
        for name, (steps, values) in source.items():
            if steps:
                target[name] = Curve(np.array(steps), np.array(values))
    run.starts = run.starts[1:]


def _add(columns: dict, row: dict, step: float, skip: Tuple[str, ...]) -> None:
    for name, value in row.items():
        if name not in skip and _is_number(value):
            columns[name][0].append(step)
            columns[name][1].append(value)


def _forget(columns: dict, step: float) -> None:
    """What was logged from an iteration on."""
    for steps, values in columns.values():
        while steps and steps[-1] >= step:
            steps.pop()
            values.pop()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_texts(run: RunLog, sessions: List[Path]) -> Dict[str, Any]:
    """Events, and what was said of the end of the last session."""
    said: Counter = Counter()
    first_time: Dict[tuple, str] = {}
    ends: Dict[str, Any] = {}
    for session in sessions:
        end = dict(trains=False, finished=False, saved=None, stopped='')
        path = session / f'{session.name}.log'
        times = []
        if not path.is_file():
            continue
        with open(path, encoding='utf-8', errors='replace') as file:
            for line in file:
                match = _LINE.match(line)
                if match is None:
                    if 'GPU number: ' in line:
                        run.processes = int(re.search(r'GPU number: (\d+)', line)[1])
                    continue
                when, level, text = match.groups()
                times = [times[0] if times else when, when]
                if level == 'INFO':
                    if _POSITION.match(text):
                        end['trains'] = True
                        position = _OF.search(text)
                        if text.startswith('Epoch') and position:
                            run.per_epoch = int(position[2])
                        continue
                    if text.startswith('Saving checkpoint at '):
                        end['saved'] = text[len('Saving checkpoint at ') :]
                    end['trains'] |= text.startswith('Checkpoints will be saved to ')
                    end['finished'] |= text.startswith('Backbone alone: ')
                if ': saved ' in text and ' and ended; ' in text:
                    end['stopped'] = text
                kind = next((kind for kind, words in _KINDS if words.search(text)), 'other')
                if (level != 'INFO' or kind != 'other') and not FILE_CLIENT_MESSAGE.match(text):
                    said[kind, level, text] += 1
                    first_time.setdefault((kind, level, text), when)
        ends = end if end['trains'] else ends  # else it was an evaluation
        if times:
            run.started = run.started or times[0]
            begin, end = (datetime.strptime(t, '%Y/%m/%d %H:%M:%S') for t in times)
            run.seconds += (end - begin).total_seconds()
    run.events = [
        Event(kind, first_time[kind, level, text], level, text, count)
        for (kind, level, text), count in said.items()
    ]
    return ends


def _checkpoints(folder: Path, per_epoch: int) -> List[Tuple[str, Path]]:
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


def _state(run: RunLog, sessions: List[Path], ends: Dict[str, Any]) -> State:
    step, total = run.last_step, run.max_steps
    where = f'iteration {step:,}' + (f' of {total:,}' if total else '')
    if run.per_epoch:
        epochs = run.setting('train_cfg', 'max_epochs')
        epoch = -(-step // run.per_epoch)
        where = f'epoch {epoch}' + (f' of {epochs}' if epochs else '') + f', {where}'
        if epochs and ends.get('saved') == f'{epochs} epochs':
            ends['finished'] = True
    if total and (ends.get('saved') == f'{total} iterations' or step >= total):
        ends['finished'] = True
    if ends.get('finished'):
        return State('finished', where)
    if ends.get('stopped'):
        return State('interrupted', f'at {where}. {ends["stopped"]}')
    # Lines come at their own pace; a checkpoint or an evaluation takes a while more.
    pace = run.train.get('time')
    gap = 0.0
    if pace is not None and len(pace.steps) > 1:
        gap = float((pace.steps[-1] - pace.steps[-2]) * pace.values[-1])
    age = time.time() - max(path.stat().st_mtime for path in _files(sessions[-1]))
    if age < max(120.0, 5 * gap):
        left = ''
        if pace is not None and total:
            typical = float(np.nanmedian(pace.values[-50:]))
            left = f', about {timedelta(seconds=round((total - step) * typical))} left'
        return State('running', f'at {where}{left}')
    ago = timedelta(seconds=round(age))
    return State('interrupted', f'at {where}; nothing was logged for {ago}. --resume goes on')
