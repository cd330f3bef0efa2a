# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import sys

import pytest


@pytest.fixture
def in_processes(run, free_port, tmp_path, request):
    """Run a function of the test's file in processes over gloo; return what each returned. The
    file ends with main()."""
    import tiny_algorithms
    import torch

    def call(function, *arguments, number=2):
        launch = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', number]
        file = request.module.__file__
        command = [*launch, '--master_port', free_port, file, function.__name__, tmp_path]
        done = run(*command, *arguments, path=tiny_algorithms.TESTS)
        assert done.returncode == 0, done.stdout
        return [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(number)]

    return call
