# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import sys
from pathlib import Path

import pytest

# tiny.py, for these tests and for the processes that they start
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def in_processes(run_forked, tmp_path, request):
    """Run a function of the test's file in processes over gloo; return what each returned. The
    file ends with tiny.main()."""
    import torch

    def call(function, number=2):
        file = request.module.__file__
        done = run_forked(file, function.__name__, tmp_path, number=number)
        assert done.returncode == 0, done.stdout
        return [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(number)]

    return call
