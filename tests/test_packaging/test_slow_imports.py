# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What start-up leaves out, and that it is there when somebody wants it; in interpreters of their
own."""

import subprocess
import sys

import pytest

SHORTENED = 'from mmdense.utils.slow_imports import shorten_imports; shorten_imports()'


def run(repo, code: str, shortened: bool = True) -> str:
    code = f'{SHORTENED}\n{code}' if shortened else code
    return subprocess.check_output([sys.executable, '-c', code], cwd=repo, text=True).strip()


def test_a_run_imports_no_package_that_it_does_not_use(repo):
    code = """
import sys
from mmdense.utils import register_all_modules
register_all_modules()
print({'mmdet', 'mmseg', 'matplotlib', 'scipy'} & set(sys.modules))
"""
    assert run(repo, code).splitlines()[-1] == 'set()'


@pytest.mark.parametrize('first', ['mmdense.models', 'mmdet.models', 'mmpretrain.models'])
def test_mmpretrains_layer_for_mmdet_is_there_with_mmdet(repo, first):
    pytest.importorskip('mmdet')
    code = f"""
import importlib.util
import mmdense, {first}
import mmpretrain.models.utils as utils
print(utils.ResLayerExtraNorm is None)
importlib.util.find_spec('mmdet.models')  # asks, and imports nothing
import mmdet.models
from mmdet.registry import MODELS
from mmpretrain.models.utils.res_layer_extra_norm import ResLayerExtraNorm
assert MODELS.get('ResLayerExtraNorm') is utils.ResLayerExtraNorm is ResLayerExtraNorm is not None
"""
    # mmdet's own import of mmpretrain needs the layer at once, as without mmdense
    assert run(repo, code).splitlines()[-1] == str(first != 'mmdet.models')


def test_torchscript_works_and_the_collector_runs(repo):
    code = """
import gc
import mmdense.models
import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from mmengine.optim import ZeroRedundancyOptimizer as wrapper

print(gc.isenabled(), isinstance(torch.jit.script(torch.nn.Linear(2, 2)), torch.jit.ScriptModule),
      issubclass(wrapper, ZeroRedundancyOptimizer))
"""
    assert run(repo, code).splitlines()[-1] == 'True True True'


def test_a_collector_that_is_off_stays_off(repo):
    code = 'import gc; gc.disable(); import mmdense.models; print(gc.isenabled())'
    assert run(repo, code).splitlines()[-1] == 'False'


def test_other_programs_are_left_alone(repo):
    """``import mmdense`` changes no import of theirs."""
    code = (
        'import sys; before = list(sys.meta_path); import mmdense; print(sys.meta_path == before)'
    )
    assert run(repo, code, shortened=False) == 'True'
