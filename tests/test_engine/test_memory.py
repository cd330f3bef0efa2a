# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Memory that a step has freed serves the next one, in processes of their own."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mmdense.utils import memory

CODE = """
import resource
import torch
from mmdense.utils.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
for _ in range(3):
    torch.ones(10, 1024, 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(10, 1024, 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep, **env) -> int:
    env = {k: v for k, v in os.environ.items() if not k.startswith(('MALLOC', 'GLIBC'))} | env
    return int(subprocess.check_output([sys.executable, '-c', CODE.format(keep=keep)], env=env))


@pytest.fixture
def calls(monkeypatch):
    """What is set in glibc, by its number."""
    made = {}
    libc = SimpleNamespace(mallopt=made.__setitem__)
    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: libc)
    monkeypatch.setattr(memory.sys, 'platform', 'linux')
    for name in memory._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return made


def test_what_is_set(calls, monkeypatch):
    memory.keep_freed_memory()
    assert calls == {-1: -1, -4: 0}  # never trimmed, and no mapping of its own for a tensor
    calls.clear()
    for name in memory._SETTINGS:
        with monkeypatch.context() as patch:
            patch.setenv(name, '1')
            memory.keep_freed_memory()
    assert not calls


# Where the system takes back what a process has not used for a moment, it faults all the same.
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc is of Linux')
def test_no_page_faults_again():
    assert min(page_faults(True) for _ in range(5)) < page_faults(False) / 10
