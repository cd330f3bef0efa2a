# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def fuzz(tmp_path):
    """Runs a target of child.py in a process of its own; the figures that it ended with. A crash
    (a signal), a case that hangs and an exception that the target does not expect are failures."""

    def run(target: str, cases: int, seed: int = 0, timeout: int = 3600) -> dict:
        path = os.pathsep.join(filter(None, [str(REPO), os.environ.get('PYTHONPATH')]))
        done = subprocess.run(
            [sys.executable, REPO / 'tests/test_fuzz/child.py', target]
            + [str(cases), str(seed), str(tmp_path)],
            env=dict(os.environ, PYTHONPATH=path, NO_COLOR='1'),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        case = tmp_path / 'case'
        assert done.returncode == 0, (
            f'{target} ended with {done.returncode} at {case}:\n{done.stderr[-3000:]}'
        )
        figures = json.loads(done.stdout.splitlines()[-1])
        print(target, json.dumps(figures))
        return figures

    return run


@pytest.fixture
def grown():
    """How far memory has risen above where it was, in MB."""
    Path('/proc/self/clear_refs').write_text('5')  # the peak is now

    def peak():
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith('VmHWM:'))

    before = peak()
    return lambda: peak() - before
