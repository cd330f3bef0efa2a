# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import sys
from pathlib import Path

import pytest

# tiny.py, for these tests and for the processes that they start
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def in_processes(run, free_port, tmp_path, request):
    """Runs a function of the test's file in processes over gloo; what each returned. The file
    ends with tiny.main()."""
    import torch

    def call(function, number=2):
        launch = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', number]
        file = request.module.__file__
        done = run(*launch, '--master_port', free_port, file, function.__name__, tmp_path)
        assert done.returncode == 0, done.stdout
        return [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(number)]

    return call
