# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Memory that a step has freed serves the next one, in processes of their own."""

import os
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc is of Linux')
def test_no_page_faults_again():
    assert page_faults(True) < page_faults(False) / 10


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc is of Linux')
def test_the_environments_setting_stays():
    assert page_faults(True, MALLOC_TRIM_THRESHOLD_='1') > page_faults(True) * 10
