# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What mmdense asks of the packages under it, and how MMEngine finds it.

There are two lines of OpenMMLab that import under the same names: the
maintained one (``onedl-mmcv``...) and the classic one (``mmcv``...). pip knows
nothing of that and installs one over the other, hence no requirement in
setup.py and this check instead. It imports none of the packages it looks at.
"""

import os.path as osp
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, Optional

# module: (oldest version that does, first one that does not)
REQUIRED = {
    'torch': ('2.0.0', None),
    'mmengine': ('0.10.0', '1.0.0'),
    'mmcv': ('2.0.0', '2.5.0'),
    'mmpretrain': ('1.1.0', None),
}

# What mends a module, by line: combinations that mmdense was tried with.
MENDS = {
    'onedl': {
        'torch': ('torch==2.11.0', 'torchvision==0.26.0'),
        'mmengine': ('onedl-mmengine==0.10.12',),
        'mmcv': ('onedl-mmcv==2.3.6',),
        'mmpretrain': ('onedl-mmpretrain==1.3.6',),
    },
    'classic': {
        'torch': ('torch==2.1.2', 'torchvision==0.16.2', 'numpy<2'),
        'mmengine': ('mmengine==0.10.7',),
        'mmcv': ('mmcv==2.1.0',),
        'mmpretrain': ('mmpretrain==1.2.0',),
    },
}


def _key(version: str) -> tuple:
    """Sorts versions; a release candidate comes before its release."""
    release, rest = re.match(r'v?([\d.]*)(.*)', version).groups()
    numbers = [int(n) for n in release.split('.') if n]
    return numbers + [0] * (4 - len(numbers)), not re.match(r'[-_]?(a|b|rc|dev)', rest)


def find_version(module: str) -> Optional[str]:
    """The version ``module`` would give itself, without importing it.

    None where the module is missing, '' where it does not say. Its own
    version.py is asked, and not the metadata of a distribution, since either
    line can provide the module, and a checkout on PYTHONPATH has none.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return None
    scope: dict = {'__name__': f'{module}.version'}
    try:
        with open(osp.join(osp.dirname(spec.origin), 'version.py'), encoding='utf-8') as f:
            exec(f.read(), scope)
    except Exception:  # whatever is wrong with it, its import will say
        return ''
    return str(scope.get('__version__', ''))


def _providers() -> Dict[str, List[str]]:
    """The installed distributions that provide each required module."""
    found: Dict[str, List[str]] = {module: [] for module in REQUIRED}
    for dist in distributions():
        name = (dist.metadata['Name'] or '').lower().replace('_', '-')
        modules = {*(dist.read_text('top_level.txt') or '').split(), name.replace('onedl-', '')}
        for module in modules & set(found):
            found[module].append(name)
    return found


def _line(providers: Dict[str, List[str]], torch: Optional[str]) -> str:
    """The line that is in use, or else the one that fits python and torch."""
    names = [dist for module in REQUIRED if module != 'torch' for dist in providers[module]]
    if names:
        return 'onedl' if any(name.startswith('onedl-') for name in names) else 'classic'
    fits = sys.version_info >= (3, 10) and (not torch or _key(torch) >= _key('2.2'))
    return 'onedl' if fits else 'classic'


def _mend(modules: List[str], torch: Optional[str]) -> str:
    """The command that mends ``modules`` and leaves the other line alone."""
    providers = _providers()
    line = _line(providers, torch)
    commands, remove, install = [], [], []
    for module in modules:
        if find_version(module) is not None and not providers[module]:
            # Somebody's checkout on PYTHONPATH, which pip would not reach.
            commands.append(f'git -C "{osp.dirname(osp.dirname(find_spec(module).origin))}" pull')
            continue
        mends = MENDS[line][module]
        install += mends
        if set(providers[module]) - {mends[0].split('==')[0]}:
            # mmcv-full, mmcv-lite or the other line: they own the same files.
            remove += providers[module]
    if remove:
        commands.append('pip uninstall -y ' + ' '.join(sorted(set(remove))))
    if install:
        # Classic mmcv has no wheels on PyPI; mim knows where they are.
        mim = 'pip install openmim && mim' if 'mmcv==2.1.0' in install else 'pip'
        commands.append(f'{mim} install ' + ' '.join(f'"{package}"' for package in install))
    return ' && '.join(commands)


def check_dependencies() -> None:
    """Raises one ImportError for all that is missing, too old or too new."""
    wrong = {}
    torch = find_version('torch')
    for module, (minimum, maximum) in REQUIRED.items():
        found = torch if module == 'torch' else find_version(module)
        if found is None:
            fault = 'is not installed'
        elif found and _key(found) < _key(minimum):
            fault = f'is {found}, too old'
        elif found and maximum and _key(found) >= _key(maximum):
            fault = f'is {found}, too new'
        else:
            continue
        needs = f'>={minimum}' + (f',<{maximum}' if maximum else '')
        wrong[module] = f'{module} {fault} (mmdense needs {module}{needs})'
    if wrong:
        raise ImportError(f'{"; ".join(wrong.values())}. Run: {_mend(list(wrong), torch)}')


def _is_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def map_packages() -> None:
    """Lets ``_base_ = 'mmseg::...'`` and ``'mmdense::...'`` find their configs.

    MMEngine maps the module before ``::`` to the distribution that it looks
    for, and installs where it finds none. It knows the classic names alone:
    on the maintained line it would not find mmseg, and would install the
    classic release beside or over the maintained one. What no distribution
    has for a name is looked up as a module, wherever it is imported from.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    # Not mmdense itself: for an editable install the classic MMEngine takes the folder of the
    # distribution, which has no module in it. The folder of this module is ours in any install.
    MODULE2PACKAGE['mmdense'] = 'mmdense.version'
    for module, maintained in (('mmseg', 'onedl-mmsegmentation'), ('mmdet', 'onedl-mmdetection')):
        classic = MODULE2PACKAGE.get(module, module)
        if _is_distribution(classic):
            continue
        if find_spec(module) is not None:
            MODULE2PACKAGE[module] = module
        elif _is_distribution('onedl-mmengine'):
            MODULE2PACKAGE[module] = maintained


def classic_config() -> dict:
    """The config that a shim in ``mmdense/configs`` stands for.

    Pure-Python configs (``with read_base()``) cannot inherit classic ones, nor
    import names with dashes. A shim is the classic file of the same name, with
    ``_`` for ``-``, read when it is evaluated, so that the two cannot drift.
    The caller's file name says which: MMEngine does not always set __file__.
    """
    from mmengine.config import Config

    shim = Path(sys._getframe(1).f_code.co_filename)
    root = next(folder for folder in shim.parents if folder.name == 'configs')
    classic = root.parent / '.mim' / 'configs' / shim.parent.relative_to(root)
    found = [p for p in classic.glob('*.py') if p.stem.replace('-', '_') == shim.stem]
    if len(found) != 1:
        raise ImportError(f'{shim} stands for {len(found)} files in {classic}: reinstall mmdense')
    return Config.fromfile(str(found[0])).to_dict()
