# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""How commands start: without PyTorch, and with nothing slow before a path is refused."""

import ast
import sys

import pytest

import mmdense

BLOCK = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)


sys.meta_path.insert(0, Blocked())
"""
SLOW = {'torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'numpy', 'matplotlib'}


@pytest.fixture
def bare(run, tmp_path):
    """Run a command in a Python without some packages."""

    def call(*words, without=('torch', 'torchvision'), more=''):
        (tmp_path / 'sitecustomize.py').write_text(BLOCK.format(blocked=set(without)) + more)
        return run(sys.executable, '-m', 'mmdense', *words, path=tmp_path, cwd=tmp_path)

    return call


def test_help_and_version_without_packages(bare):
    everything = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'numpy', 'packaging')
    done = bare('--version', without=everything)
    assert (done.returncode, done.stdout) == (0, f'mmdense {mmdense.__version__}\n')
    for words in (['--help'], ['pretrain', '--help'], ['list']):
        done = bare(*words, without=everything)
        assert done.returncode == 0 and 'Traceback' not in done.stdout, done.stdout


def test_env_without_torch(bare):
    """It says what is missing, and how to install it."""
    done = bare('env')
    assert done.returncode == 0 and 'Traceback' not in done.stdout, done.stdout
    facts = dict(line.split('  ', 1) for line in done.stdout.splitlines())
    assert facts['mmdense'].strip().startswith(mmdense.__version__)
    assert 'torch is not installed' in facts['dependencies'] and 'pip install' in done.stdout
    assert facts['CPU cores'].strip().isdigit()


@pytest.mark.parametrize('missing', ['torch', 'mmengine', 'mmpretrain', 'packaging'])
def test_a_command_that_needs_packages_says_so_in_one_line(bare, missing, tmp_path):
    (tmp_path / 'x.pth').touch()
    done = bare('check', 'x.pth', without=[missing])
    assert done.returncode == 1 and done.stdout.count('\n') == 1, done.stdout
    assert done.stdout.startswith(f'mmdense: error: {missing} is not installed')
    assert 'Run: pip install' in done.stdout


def test_python_without_orig_argv(bare, tmp_path):
    """Python 3.8 and 3.9 do not say while they look for it which module they run."""
    older = "if hasattr(sys, 'orig_argv'):\n    del sys.orig_argv\n"
    done = bare('list', more=older)
    assert done.returncode == 0 and 'Traceback' not in done.stdout, done.stdout
    (tmp_path / 'x.pth').touch()
    done = bare('check', 'x.pth', more=older)
    assert done.returncode == 1 and done.stdout.count('\n') == 1, done.stdout
    assert done.stdout.startswith('mmdense: error: torch is not installed')


def test_importing_mmdense_still_raises_without_torch(run, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(BLOCK.format(blocked={'torch'}))
    done = run(sys.executable, '-c', 'import mmdense', path=tmp_path)
    assert done.returncode == 1 and 'ImportError: torch is not installed' in done.stdout


WRONG = dict(
    check=['check', 'no/such.pth'],
    check_images=['check', 'x.pth', '--images', 'no/such'],
    check_config=['check', 'x.pth', '--for', 'no/such.py'],
    export=['export', 'no/such.pth', '--to', 'timm'],
    export_out=['export', 'x.pth', '--to', 'timm', '--out', '/proc/no/such.pth'],
    show=['show', 'no/such.pth', '.'],
    show_images=['show', 'x.pth', '.', 'no/such'],
    show_out=['show', 'x.pth', '.', '--out', '/proc/no/such'],
    report=['report', 'no/such'],
    report_out=['report', '.', '--out', '/proc/no/such.html'],
    pretrain=['pretrain', 'no/such'],
    pretrain_out=['pretrain', '.', '--out', '/proc/no/such'],
    pretrain_pattern=['pretrain', 'no/such*.jpg'],
    pretrain_init=['pretrain', '.', '--init', 'no/such.pth'],
    pretrain_labels=['pretrain', '.', '--labels', 'no/such'],
    pretrain_method=['pretrain', '.', '--method', 'no/such'],
    plan=['plan', 'no/such'],
    download=['download', 'no/such'],
)
QUIET = dict(list=['list'], completion=['completion', 'bash'], version=['--version'])


@pytest.mark.parametrize('case', [*WRONG, *QUIET])
def test_nothing_slow_is_imported(case, run, tmp_path, require):
    if case == 'completion':
        require('shtab')
    (tmp_path / 'x.pth').touch()
    program = tmp_path / 'mmdense.py'  # the name of the command
    program.write_text(
        'import atexit, sys\n'
        f'sys.path.remove({str(tmp_path)!r})\n'
        'from mmdense.cli import main\n'
        f'atexit.register(lambda: print(sorted({SLOW!r} & set(sys.modules))))\n'
        'main()\n'
    )
    done = run(sys.executable, program, *(WRONG.get(case) or QUIET[case]), cwd=tmp_path)
    *_, last = done.stdout.splitlines()
    assert ast.literal_eval(last) == [], done.stdout
    if case in WRONG:
        assert done.returncode == 1 and done.stdout.count('\n') == 2
        assert done.stdout.startswith('mmdense: error: ') and 'no/such' in done.stdout


def test_a_name_in_a_package_and_a_url_are_no_paths():
    from mmdense.utils.paths import check_checkpoint, check_config, check_images

    check_config('mmdet::faster_rcnn/x.py')
    check_checkpoint('https://example.com/x.pth')
    check_images('photos.zip/inner')


def test_dir_shows_what_there_is():
    names = dir(mmdense)
    assert {'get_model', 'list_models', 'models', 'registry', 'checkpoints'} <= set(names)
    for name in ('models', 'get_model', 'apis'):
        assert getattr(mmdense, name)
    with pytest.raises(AttributeError):
        mmdense.nothing  # noqa: B018
