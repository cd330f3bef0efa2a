# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The benchmarks run, and what they compare is equal."""

import importlib
import sys

import pytest

STEP = ['--size', '64', '--batch-size', '2', '--batch-size-loss', '2']


@pytest.mark.parametrize(
    'name, options',
    [
        ('densecl', [*STEP, '--queue-len', '64']),
        ('pixpro', STEP),
        # so few prototypes that both views have some slots
        ('slotcon', [*STEP, '--num-prototypes', '4', '--clock', 'cpu']),
        ('lars', []),
    ],
)
def test_runs(name, options, repo, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(repo / 'benchmarks'))
    monkeypatch.setattr(sys, 'argv', [name, '--depth', '18', '--rounds', '1', *options])
    # pixpro and slotcon raise where a loss is not that of the formula
    importlib.import_module(name).main()
    out = capsys.readouterr().out
    assert '×' in out
    if options:
        assert 'extra memory: mmdense' in out and 'over the floor' in out
