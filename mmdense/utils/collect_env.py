# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Facts of the environment, for bug reports."""

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Dict, List

import mmdense
from mmdense.compat import check_dependencies, find_version
from mmdense.utils.mmengine_patches import find_checkpoint_loader

# Distributions of OpenMMLab that provide a module.
_DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}
_OPTIONAL = ('simplejpeg', 'lmdb', 'timm', 'onnx', 'onnxruntime', 'tensorboard', 'shtab')


def collect_env() -> Dict[str, str]:
    """Return facts that concern mmdense, then those of MMEngine's ``collect_env``.

    Returns:
        Dict[str, str]: Facts by name, each of one line. A missing or broken package is a fact too.
    """
    facts = {'mmdense': f'{mmdense.__version__} in {os.path.dirname(mmdense.__file__)}'}
    facts['dependencies'] = _dependencies()
    installed = {module: _installed(names) for module, names in _DISTRIBUTIONS.items()}
    for module, found in installed.items():
        facts[module] = ', '.join(found) or _undistributed(module)
    facts['mmcv ops'] = _ops()
    facts['OpenMMLab distribution'] = _find_distribution(installed)
    for module in _OPTIONAL:
        facts[module] = (_installed([module]) or ['- -'])[0].split()[-1]
    facts['checkpoint loader'] = _loader()
    facts['CPU cores'] = str(cpu_cores())
    facts['memory'] = _memory()
    facts.update(_gpus())
    for name, value in _collect_by_mmengine().items():
        facts.setdefault(name, ' '.join(str(value).split()))
    return facts


def _dependencies() -> str:
    try:
        check_dependencies()
    except ImportError as error:
        return str(error)
    return 'complete'


def _installed(names) -> List[str]:
    found = []
    for name in names:
        try:
            found.append(f'{name} {version(name)}')
        except PackageNotFoundError:
            continue
    return found


def _undistributed(module: str) -> str:
    found = find_version(module)
    if found is None:
        return '-'
    return f'{found or "?"}, a checkout in {os.path.dirname(find_spec(module).origin)}'


def _find_distribution(installed: Dict[str, List[str]]) -> str:
    names = [name for found in installed.values() for name in found]
    onedl = [name for name in names if name.startswith('onedl-')]
    if 0 < len(onedl) < len(names):
        classic = [name for name in names if name not in onedl]
        return f'MIXED, which breaks both: {", ".join(onedl)} (onedl) and {", ".join(classic)}'
    return 'onedl' if onedl else 'classic' if names else 'unknown (checkouts)'


def _ops() -> str:
    try:
        if find_spec('mmcv') is None or find_spec('mmcv._ext') is None:  # imports mmcv
            return 'not compiled: enough for pretraining and mmseg; mmdet needs them'
    except ImportError as error:
        return f'? ({str(error).splitlines()[0]})'
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        return f'compiled, but for another PyTorch: {str(error).splitlines()[0]}'
    return 'compiled'


def _loader() -> str:
    try:
        loader = find_checkpoint_loader('file.pth')
    except ImportError as error:  # PyTorch or MMEngine is missing or broken
        return f'? ({str(error).splitlines()[0]})'
    ours = loader.__module__.startswith('mmdense.')
    return 'restricted' if ours else 'NOT RESTRICTED: another package registered its own'


def cpu_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        size = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, ValueError, OSError):  # not on POSIX
        return '?'
    return f'{size / 2**30:.1f} GiB'


def _gpus() -> Dict[str, str]:
    try:
        import torch
    except ImportError as error:  # it is missing or broken
        return {'GPU': f'? (PyTorch cannot be imported: {str(error).splitlines()[0]})'}
    facts = {}
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        facts[f'GPU {i}'] = f'{device.name}, {device.total_memory / 2**30:.1f} GiB'
    return facts or {'GPU': 'none'}


def _collect_by_mmengine() -> Dict[str, object]:
    try:
        from mmengine.utils.dl_utils import collect_env as collect_by_mmengine

        return {k: v for k, v in collect_by_mmengine().items() if k != 'numpy_random_seed'}
    except Exception as error:  # it needs distutils, which Python 3.12 has only from setuptools
        return {'collect_env of MMEngine': f'{type(error).__name__}: {error}'}
