# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""`import mmdense` beside what is missing, too old or too new, in interpreters of their own that
see nothing but the standard library, mmdense and stand-ins."""

import subprocess
import sys
from pathlib import Path

import packaging
import pytest

ONEDL = {'torch': '2.11.0+cu130', 'mmengine': '0.10.12', 'mmcv': '2.3.6', 'mmpretrain': '1.3.6'}
CLASSIC = {'torch': '2.1.2', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmpretrain': '1.2.0'}


def stand_in(root, versions, line):
    """Modules of these versions that a distribution of that line provides (None: a checkout)."""
    (root / 'packaging').symlink_to(Path(packaging.__file__).parent)  # comes with mmdense
    for module, version in versions.items():
        package = root / module
        package.mkdir()
        (package / '__init__.py').write_text('raise AssertionError("imported before the check")')
        (package / 'version.py').write_text(f'__version__ = {version!r}\n')
        if line is None and module != 'torch':
            continue
        name = f'onedl-{module}' if line == 'onedl' and module != 'torch' else module
        info = root / f'{name.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
        (info / 'top_level.txt').write_text(module)
    return root


def import_error(repo, root) -> str:
    result = subprocess.run(
        [sys.executable, '-S', '-c', 'import mmdense'],
        cwd=root,
        env={'PYTHONPATH': f'{root}:{repo}'},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def without(versions, *modules):
    return {k: v for k, v in versions.items() if k not in modules}


@pytest.mark.parametrize(
    'versions, line, says, command',
    [
        (
            {},
            'onedl',
            'mmpretrain is not installed',
            'pip install "torch==2.11.0" "torchvision==0.26.0" "onedl-mmengine==0.10.12" '
            '"onedl-mmcv==2.3.6" "onedl-mmpretrain==1.3.6"',
        ),
        (
            {'torch': '2.1.2'},
            'onedl',
            'mmcv is not installed',
            'pip install openmim && mim install "mmengine==0.10.7" "mmcv==2.1.0" '
            '"mmpretrain==1.2.0"',
        ),
        (
            without(ONEDL, 'mmpretrain'),
            'onedl',
            'mmpretrain is not installed (mmdense needs mmpretrain>=1.1.0)',
            'pip install "onedl-mmpretrain==1.3.6"',
        ),
        (
            # The newest torch, and still not the other line over theirs.
            {**without(CLASSIC, 'mmpretrain'), 'torch': '2.11.0'},
            'classic',
            'mmpretrain is not installed',
            'pip install "mmpretrain==1.2.0"',
        ),
        (
            {**ONEDL, 'mmengine': '0.9.1'},
            'onedl',
            'mmengine is 0.9.1, too old (mmdense needs mmengine>=0.10.0,<1.0.0)',
            'pip install "onedl-mmengine==0.10.12"',
        ),
        (
            {**CLASSIC, 'mmcv': '2.0.0rc4'},
            'classic',
            'mmcv is 2.0.0rc4, too old',
            'pip install openmim && mim install "mmcv==2.1.0"',
        ),
        (
            {**ONEDL, 'mmcv': '2.5.0'},
            'onedl',
            'mmcv is 2.5.0, too new',
            'pip install "onedl-mmcv==2.3.6"',
        ),
        (
            {**CLASSIC, 'torch': '1.13.1'},
            'classic',
            'torch is 1.13.1, too old (mmdense needs torch>=2.0.0)',
            'pip install "torch==2.1.2" "torchvision==0.16.2" "numpy<2"',
        ),
    ],
)
def test_says_what_is_wrong_and_what_mends_it(repo, tmp_path, versions, line, says, command):
    if sys.version_info < (3, 10):
        pytest.skip('the maintained line needs python 3.10')
    error = import_error(repo, stand_in(tmp_path, versions, line))
    assert error.startswith('ImportError: ')
    assert says in error
    assert error.endswith(f'. Run: {command}')


def test_old_name_of_mmcv_goes_first(repo, tmp_path):
    stand_in(tmp_path, {**CLASSIC, 'mmcv': '1.7.1'}, 'classic')
    (tmp_path / 'mmcv-1.7.1.dist-info' / 'METADATA').write_text(
        'Metadata-Version: 2.1\nName: mmcv-full\nVersion: 1.7.1\n'
    )
    assert 'Run: pip uninstall -y mmcv-full && pip' in import_error(repo, tmp_path)


def test_checkout_on_pythonpath(repo, tmp_path):
    stand_in(tmp_path, {**CLASSIC, 'mmengine': '0.9.0'}, None)
    error = import_error(repo, tmp_path)
    assert error.endswith(f'. Run: git -C "{tmp_path}" pull')


def test_commands_install_what_set_up_pins(repo):
    from mmdense.compat import FIXES

    for line, name in (('onedl', 'pins.txt'), ('classic', 'pins-classic.txt')):
        pins = (repo / 'requirements' / name).read_text().splitlines()
        for fixes in FIXES[line].values():
            exact = {fix for fix in fixes if '==' in fix}
            assert exact and exact <= set(pins)


def test_requirements_for_mim_say_the_same(repo):
    from mmdense.compat import REQUIRED

    lines = (repo / 'requirements' / 'mminstall.txt').read_text().splitlines()
    for module, (minimum, maximum) in REQUIRED.items():
        if module != 'torch':
            assert f'{module}>={minimum}' + (f',<{maximum}' if maximum else '') in lines


def test_import_is_light(repo):
    """Neither torch nor anything that only some users have."""
    code = (
        'import sys, mmdense; '
        'print({"torch", "mmcv", "mmcv.ops", "mmdet", "mmseg", "mmpretrain"} & set(sys.modules))'
    )
    out = subprocess.check_output([sys.executable, '-c', code], cwd=repo, text=True)
    assert out.strip() == 'set()'


def test_everything_imports_without_ops_and_downstream(repo):
    """Pretraining needs neither mmcv's compiled ops nor mmdet nor mmseg."""
    code = """
import sys

for missing in ('mmcv._ext', 'mmdet', 'mmseg'):
    sys.modules[missing] = None
from mmdense.utils import register_all_modules
register_all_modules()
print('fine')
"""
    out = subprocess.check_output([sys.executable, '-c', code], cwd=repo, text=True)
    assert out.splitlines()[-1] == 'fine'


PROGRAMS = {
    'tools/train.py': ['--help'],
    'tools/test.py': ['--help'],
    'tools/convert_checkpoint.py': ['--help'],
    'tools/convert_dataset.py': ['--help'],
    'tools/evaluate_features.py': ['--help'],
    'mmdense': ['check', 'no/such.pth'],
    'mmdense.cli.training': ['--help'],
}


@pytest.mark.parametrize('program', PROGRAMS)
def test_nothing_is_said_of_missing_ops(repo, program):
    """mmpretrain imports mmdet, if installed, which remarks on them."""
    name = 'path' if program.endswith('.py') else 'module'
    code = f"""
import runpy, sys

sys.modules['mmcv._ext'] = None
sys.argv[1:] = {PROGRAMS[program]}
runpy.run_{name}('{program}', run_name='__main__')
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=repo, text=True, capture_output=True)
    said = done.stderr.splitlines()
    assert [line[:15] for line in said] == ['mmdense: error:'] * (program == 'mmdense'), done.stderr
