# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Events are data: complete, of one process, and never the end of a training."""

import ast
import json
import logging
import os
from datetime import datetime

import pytest
from mmengine.logging import MMLogger

from mmdense.engine import EventLogHook
from mmdense.engine.events import EVENTS_FILE, MESSAGE, WarningEvents, log_event, read_events


class FakeRunner:
    """The part of a runner that events are about."""

    iter, epoch = 7, 1

    def __init__(self, folder):
        self.log_dir = str(folder)
        self.logger = MMLogger(str(folder), log_file=str(folder.parent / 'run.log'))


@pytest.fixture
def runner(tmp_path):
    (tmp_path / 'start').mkdir()
    return FakeRunner(tmp_path / 'start')


def log_of(runner):
    for handler in runner.logger.handlers:
        handler.flush()
    return open(os.path.join(os.path.dirname(runner.log_dir), 'run.log')).read()


def test_the_line_and_its_event(runner):
    log_event(runner, 'queue_full', 'It is full: é', 'WARNING', iteration=8, names=['a', 'b'])
    log_event(runner, 'checkpoint', path='a.pth')
    first, second = read_events(runner.log_dir)
    time = datetime.fromisoformat(first.pop('time'))
    assert abs((datetime.now() - time).total_seconds()) < 60
    words = dict(kind='queue_full', level='WARNING', text='It is full: é', iter=7, epoch=1)
    assert first == dict(words, iteration=8, names=['a', 'b'])
    assert second['text'] == '' and second['path'] == 'a.pth'
    assert log_of(runner).count('WARNING - It is full') == 1 and 'a.pth' not in log_of(runner)


def test_names_that_are_taken(runner):
    with pytest.raises(TypeError, match='iter'):
        log_event(runner, 'checkpoint', iter=3)


def test_odd_characters(runner):
    """A file name may hold bytes that are no text, and line breaks."""
    name = os.fsdecode(b'a\xff\n.jpg')
    log_event(runner, 'unreadable_image', path=name)
    log_event(runner, 'unreadable_image', path='b.jpg')
    assert [e['path'] for e in read_events(runner.log_dir)] == ['a?\n.jpg', 'b.jpg']


def test_one_process_writes(runner, monkeypatch):
    monkeypatch.setattr('mmdense.engine.events.is_main_process', lambda: False)
    log_event(runner, 'checkpoint', 'saved')
    assert read_events(runner.log_dir) == []


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_is_said_once(runner, tmp_path):
    runner.logger.addHandler(WarningEvents(runner))
    path = tmp_path / 'start' / EVENTS_FILE
    path.symlink_to('/dev/full')
    for _ in range(3):
        log_event(runner, 'checkpoint', path='a.pth')
    assert log_of(runner).count('cannot write to') == 1
    assert 'No space left on device; training continues' in log_of(runner)
    # there is room again, behind the half of a line
    path.unlink()
    path.write_text('{"kind": "check')
    log_event(runner, 'finished', iterations=8)
    log_event(runner, 'finished', iterations=9)
    assert [e['iterations'] for e in read_events(runner.log_dir)] == [8, 9]


def test_warnings_of_every_package(runner):
    hook = EventLogHook()
    hook.before_run(runner)
    hook.before_run(runner)
    runner.logger.warning('the first')
    runner.logger.warning('the first')
    runner.logger.info('no warning')
    runner.logger.warning('"FileClient" will be deprecated in future.')
    runner.logger.error('an error in %s', 'a.py')
    log_event(runner, 'health', 'collapse', 'WARNING')
    found = [(e['kind'], e['level'], e['text']) for e in read_events(runner.log_dir)]
    assert found == [
        ('message', 'WARNING', 'the first'),
        ('message', 'ERROR', 'an error in a.py'),
        ('health', 'WARNING', 'collapse'),
    ]
    hook.after_run(runner)
    runner.logger.warning('after the run')
    assert len(read_events(runner.log_dir)) == 3
    assert not any(isinstance(h, WarningEvents) for h in runner.logger.handlers)


def test_a_logger_outlives_its_run(tmp_path):
    (tmp_path / 'start').mkdir()
    runner = FakeRunner(tmp_path / 'start')
    logger = runner.logger
    logger.addHandler(WarningEvents(runner))
    del runner
    logger.warning('said after it')
    assert not (tmp_path / 'start' / EVENTS_FILE).exists()


def test_events_do_not_depend_on_the_level_of_the_log(runner):
    runner.logger.setLevel(logging.ERROR)
    log_event(runner, 'queue_full', 'It is full', iteration=8)
    assert len(read_events(runner.log_dir)) == 1


def test_a_real_run(pretrained):
    """By tools/train.py: an epoch of four steps, a queue of 64 keys."""
    (folder,) = {path.parent for path in pretrained.parent.glob(f'*/{EVENTS_FILE}')}
    assert list(folder.glob('*.log'))
    lines = (folder / EVENTS_FILE).read_text().splitlines()
    events = read_events(folder)
    assert len(events) == len(lines) and all(json.loads(line) for line in lines)
    by_kind = {event['kind']: event for event in events}
    started, finished = by_kind['started'], by_kind['finished']
    assert events[-1] is finished and started['processes'] == 1
    assert not started['resumed'] and started['iter'] == 0
    assert finished['iterations'] == started['max_iters'] == finished['iter']
    assert by_kind['queue_fills']['queue_len'] == 64
    assert by_kind['checkpoint']['path'] == str(pretrained)
    assert by_kind['checkpoint']['iteration'] == finished['iterations']
    assert max(map(len, lines)) < 1000  # the meta of a checkpoint holds the complete config
    assert by_kind['backbone_exported']['path'] == str(pretrained.parent / 'backbone.pth')
    # what the log says in words the events say as data
    log = next(folder.glob('*.log')).read_text()
    assert by_kind['queue_fills']['text'] in log


def test_every_kind_is_documented(repo):
    """In the table of docs/cli.md."""
    calls = [
        node
        for path in (repo / 'mmdense').rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'log_event'
    ]
    kinds = {call.args[1].value for call in calls}
    assert len(kinds) >= 15
    page = (repo / 'docs' / 'cli.md').read_text(encoding='utf-8')
    assert not [kind for kind in kinds | {MESSAGE} if f'`{kind}`' not in page]
