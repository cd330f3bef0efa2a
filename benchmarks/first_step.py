# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Runs a tool of OpenMMLab until the first batch is there and its step would begin.

    python benchmarks/first_step.py tools/train.py CONFIG …

It imports nothing of what it measures: the loops are changed when the tool imports them.
"""

import os
import runpy
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class StopAtStep(MetaPathFinder):
    """End the process where MMEngine's loops would make the first step."""

    def find_spec(self, name, path=None, target=None):
        if name != 'mmengine.runner.loops':
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for loop in (module.EpochBasedTrainLoop, module.IterBasedTrainLoop):
                loop.run_iter = lambda *_: os._exit(0)

        spec.loader.exec_module = exec_module
        return spec


if __name__ == '__main__':
    sys.meta_path.insert(0, StopAtStep())
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name='__main__')
    raise SystemExit('there was no step')
