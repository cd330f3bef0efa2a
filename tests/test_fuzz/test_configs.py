# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A recipe with a mistake in it trains, or ends with one line; never with a traceback."""

import pytest


@pytest.mark.parametrize('cases, seed', [(20, 2), pytest.param(500, 1, marks=pytest.mark.slow)])
@pytest.mark.timeout(7200)
def test_edited_recipes(fuzz, tmp_path, cases, seed):
    figures = fuzz('configs', cases, seed, timeout=7200)
    found = tmp_path / 'tracebacks'
    assert not found.exists(), found.read_text()
    assert figures['cases'] >= cases
    assert figures['outcomes']['trained'] > cases / 10
    assert figures['outcomes']['refused'] > cases / 10
    for line in (tmp_path / 'lines').read_text().splitlines():
        assert len(line) < 600, line
