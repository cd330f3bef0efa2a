# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.

import pytest


@pytest.fixture
def in_processes(run_forked, tmp_path, request):
    """Run a function of the test's file in processes over gloo; return what each returned. The
    file ends with main()."""
    import tiny_algorithms
    import torch

    def call(function, *arguments, number=2):
        file = request.module.__file__
        options = dict(number=number, path=tiny_algorithms.TESTS)
        done = run_forked(file, function.__name__, tmp_path, *arguments, **options)
        assert done.returncode == 0, done.stdout
        return [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(number)]

    return call
