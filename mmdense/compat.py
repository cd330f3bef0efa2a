# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Check the packages that mmdense stands on, and find configs by package.

There are two distributions of OpenMMLab that import under the same names: the maintained one
(``onedl-mmcv`` and others) and the classic one (``mmcv`` and others). pip does not know that and
installs one over the other, hence no requirement in setup.py and this check instead. It imports
none of the packages that it checks.
"""

import os.path as osp
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Optional

# module: (oldest version that does, first one that does not)
REQUIRED = {
    'torch': ('2.0.0', None),
    'mmengine': ('0.10.0', '1.0.0'),
    'mmcv': ('2.0.0', '2.5.0'),
    'mmpretrain': ('1.1.0', None),
}

# Packages that fix a module, by distribution of OpenMMLab: combinations that were tested.
FIXES = {
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


def find_version(module: str) -> Optional[str]:
    """Return the version of a module, without importing it.

    The module's own version.py is read, and not the metadata of a distribution: either one of
    OpenMMLab's can provide the module, and a checkout on PYTHONPATH has none.

    Returns:
        str, optional: None if the module is missing, '' if it does not say.
    """
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # it is blocked, or half imported
        spec = None
    if spec is None or spec.origin is None:
        return None
    scope: dict = {'__name__': f'{module}.version'}
    try:
        with open(osp.join(osp.dirname(spec.origin), 'version.py'), encoding='utf-8') as f:
            exec(f.read(), scope)
    except Exception:  # the import of the module will say what is wrong
        return ''
    return str(scope.get('__version__', ''))


def _parse(version: Optional[str]) -> Any:
    """Return a version that can be compared, or None if it is unknown."""
    try:
        from packaging.version import InvalidVersion, Version
    except ImportError:
        raise ImportError('packaging is not installed. Run: pip install packaging') from None
    try:
        return Version(version or '')
    except InvalidVersion:
        return None


def _providers() -> Dict[str, List[str]]:
    """Return the installed distributions that provide each required module."""
    from importlib.metadata import distributions  # imports much

    found: Dict[str, List[str]] = {module: [] for module in REQUIRED}
    for dist in distributions():
        name = (dist.metadata['Name'] or '').lower().replace('_', '-')
        modules = {*(dist.read_text('top_level.txt') or '').split(), name.replace('onedl-', '')}
        for module in modules & set(found):
            found[module].append(name)
    return found


def _find_distribution(providers: Dict[str, List[str]], torch: Optional[str]) -> str:
    """Return the distribution in use, or else the one that fits Python and PyTorch."""
    names = [dist for module in REQUIRED if module != 'torch' for dist in providers[module]]
    if names:
        return 'onedl' if any(name.startswith('onedl-') for name in names) else 'classic'
    version = _parse(torch)
    fits = sys.version_info >= (3, 10) and (version is None or version >= _parse('2.2'))
    return 'onedl' if fits else 'classic'


def _find_fix(modules: List[str], torch: Optional[str]) -> str:
    """Return the command that fixes ``modules`` and leaves the other distribution alone."""
    providers = _providers()
    fixes = FIXES[_find_distribution(providers, torch)]
    commands, remove, install = [], [], []
    for module in modules:
        if find_version(module) is not None and not providers[module]:
            # A checkout on PYTHONPATH, which pip would not reach.
            commands.append(f'git -C "{osp.dirname(osp.dirname(find_spec(module).origin))}" pull')
            continue
        install += fixes[module]
        if set(providers[module]) - {fixes[module][0].split('==')[0]}:
            # mmcv-full, mmcv-lite or the other distribution: they own the same files.
            remove += providers[module]
    if remove:
        commands.append('pip uninstall -y ' + ' '.join(sorted(set(remove))))
    if install:
        # Classic mmcv has no wheels on PyPI; mim knows where they are.
        mim = 'pip install openmim && mim' if 'mmcv==2.1.0' in install else 'pip'
        commands.append(f'{mim} install ' + ' '.join(f'"{package}"' for package in install))
    return ' && '.join(commands)


def runs_command() -> bool:
    """Return whether this process is the command ``mmdense``, which checks the dependencies itself.

    It has commands that need none, and answers in one line.
    """
    program, *words = getattr(sys, 'argv', None) or ['']
    if program == '-m':  # `python -m` looks for the module
        if not hasattr(sys, 'orig_argv'):  # Python 3.8 and 3.9 do not tell which module it is
            return True
        return sys.orig_argv[: len(sys.orig_argv) - len(words)][-1:] == ['mmdense']
    return osp.splitext(osp.basename(program))[0] == 'mmdense'


def check_dependencies() -> None:
    """Raise one ImportError for all modules that are missing, too old or too new."""
    wrong = {}
    torch = find_version('torch')
    for module, (minimum, maximum) in REQUIRED.items():
        found = torch if module == 'torch' else find_version(module)
        version = _parse(found)
        if found is None:
            fault = 'is not installed'
        elif version is not None and version < _parse(minimum):
            fault = f'is {found}, too old'
        elif version is not None and maximum and version >= _parse(maximum):
            fault = f'is {found}, too new'
        else:
            continue
        needs = f'>={minimum}' + (f',<{maximum}' if maximum else '')
        wrong[module] = f'{module} {fault} (mmdense needs {module}{needs})'
    if wrong:
        raise ImportError(f'{"; ".join(wrong.values())}. Run: {_find_fix(list(wrong), torch)}')


def _is_distribution(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, distribution  # imports much

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def find_config_packages() -> Dict[str, str]:
    """Return where the configs of ``_base_ = 'mmseg::…'`` and ``'mmdense::…'`` are.

    MMEngine maps the module before ``::`` to a distribution, and installs one that it does not
    find. It knows the classic names alone: with the maintained distribution it would not find
    mmseg, and would install the classic release over the maintained one. A name that is no
    distribution is looked up as a module, wherever it is imported from.

    Returns:
        dict[str, str]: Module → distribution or module, for the modules that MMEngine would not
        find.
    """
    # Not mmdense itself: for an editable install the classic MMEngine takes the folder of the
    # distribution, which has no module in it. The folder of this module is ours in any install.
    found = {'mmdense': 'mmdense.version'}
    for module, classic, maintained in (
        ('mmseg', 'mmsegmentation', 'onedl-mmsegmentation'),
        ('mmdet', 'mmdet', 'onedl-mmdetection'),
    ):
        if _is_distribution(classic):
            continue
        if find_spec(module) is not None:
            found[module] = module
        elif _is_distribution('onedl-mmengine'):
            found[module] = maintained
    return found


def classic_config() -> dict:
    """Return the config that a shim in ``mmdense/configs`` stands for.

    Pure-Python configs (``with read_base()``) cannot inherit classic ones, nor import names with
    dashes. A shim is the classic file of the same name, with ``_`` for ``-``, read when the shim is
    evaluated, so that the two cannot drift. The shim is the caller's file: MMEngine does not always
    set ``__file__``.

    Raises:
        ImportError: There is no such classic file, or more than one.
    """
    from mmengine.config import Config

    shim = Path(sys._getframe(1).f_code.co_filename)
    root = next(folder for folder in shim.parents if folder.name == 'configs')
    classic = root.parent / '.mim' / 'configs' / shim.parent.relative_to(root)
    found = [p for p in classic.glob('*.py') if p.stem.replace('-', '_') == shim.stem]
    if len(found) != 1:
        raise ImportError(f'{shim} stands for {len(found)} files in {classic}: reinstall mmdense')
    return Config.fromfile(str(found[0])).to_dict()
