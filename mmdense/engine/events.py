# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Write the events of a run as data, one JSON object a line, and read them."""

import json
import logging
import os.path as osp
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Set

from mmengine.dist import is_main_process
from mmengine.logging.logger import FilterDuplicateWarning
from mmengine.runner import Runner

from mmdense.utils.log_level import FILE_CLIENT_MESSAGE, FROZEN_MESSAGE

EVENTS_FILE = 'events.jsonl'
MESSAGE = 'message'  # the kind of a warning or an error of any logger call
_incomplete: Set[str] = set()  # files that lack an event


def log_event(runner: Runner, kind: str, text: str = '', level: str = 'INFO', **data: Any) -> None:
    """Log a text, and append the event that it tells of to ``events.jsonl`` next to the log.

    The first process writes the file. A disk that takes no more never ends a training: the
    event is left out, and the log says it once.

    Args:
        runner (Runner): The run; ``runner.log_dir`` gets the file.
        kind (str): One word that readers go by, such as 'queue_full'.
        text (str): The line of the log, and the words that a report shows. Defaults to '', which
            logs nothing: another package has its own line for it.
        level (str): 'INFO', 'WARNING' or 'ERROR'.
        **data: Numbers, strings, lists and dicts that describe the event. The names kind, time,
            level, iter, epoch and text are taken.
    """
    if text:
        runner.logger.log(getattr(logging, level), text, extra=dict(is_event=True))
    _append(runner, kind, text, level, data)


def _append(runner: Runner, kind: str, text: str, level: str, data: Dict[str, Any]) -> None:
    if not is_main_process():
        return
    path = osp.join(runner.log_dir, EVENTS_FILE)
    event = dict(
        kind=kind,
        time=datetime.now().isoformat(timespec='seconds'),
        iter=runner.iter,
        epoch=runner.epoch,
        level=level,
        text=text,
        **data,
    )
    line = json.dumps(event, ensure_ascii=False, default=str) + '\n'
    try:
        with open(path, 'a', encoding='utf-8', errors='replace') as file:
            file.write('\n' + line if path in _incomplete else line)  # ends a line that is torn
    except OSError as error:
        if path not in _incomplete:
            _incomplete.add(path)
            runner.logger.error(
                f'cannot write to {path}: {error.strerror or error}; training continues, and '
                'events are left out of it'
            )


def keep_record(record: logging.LogRecord) -> bool:
    """Return False for messages of MMEngine that ask nothing of a reader: on its own file client,
    which it builds at every save and never uses, and on each parameter without a gradient, such as
    all of a momentum encoder."""
    text = str(record.msg)
    return not (FILE_CLIENT_MESSAGE.match(text) or text.endswith(FROZEN_MESSAGE))


class WarningEvents(logging.Handler):
    """Write the warnings and errors of a logger as events of the kind 'message'.

    Records of :func:`log_event` have their event already. As in MMEngine's log, a warning that
    is repeated word by word is written once.

    Args:
        runner (Runner): The run, which is not kept alive: loggers outlive it.
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__(logging.WARNING)
        self.runner = weakref.ref(runner)
        self.addFilter(keep_record)
        self.addFilter(FilterDuplicateWarning(runner.logger.name))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if the run is still there."""
        runner = self.runner()
        if runner is None or hasattr(record, 'is_event'):
            return
        try:
            _append(runner, MESSAGE, record.getMessage(), record.levelname, {})
        except Exception:  # a logger call never ends a run
            self.handleError(record)


def read_events(folder: Path) -> List[Dict[str, Any]]:
    """Read the events of one start of a run.

    Args:
        folder (Path): The folder that holds ``events.jsonl``.

    Returns:
        List[Dict[str, Any]]: The events in order, each with kind, time, iter, epoch, level and
        text. A line that is torn or lacks one of them is left out; empty where there is no file.
    """
    path = Path(folder) / EVENTS_FILE
    if not path.is_file():
        return []
    events = []
    with open(path, encoding='utf-8', errors='replace') as file:
        for line in file:
            try:
                event = json.loads(line)
                datetime.fromisoformat(event['time'])
                words = (event['kind'], event['level'], event['text'])
                numbers = (event['iter'], event['epoch'])
            except (ValueError, KeyError, TypeError):
                continue
            if all(isinstance(w, str) for w in words) and all(isinstance(n, int) for n in numbers):
                events.append(event)
    return events
