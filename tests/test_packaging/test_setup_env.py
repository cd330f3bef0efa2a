# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The logic of requirements/setup_env.sh and of the Makefile, with a stand-in for python that
notes what it is asked and installs nothing."""

import os
import shutil
import subprocess
import sys

import pytest

FAKE_PYTHON = f"""#!{sys.executable} -S
import os, shutil, signal, sys
from pathlib import Path

fake, me = Path(os.environ['FAKE']), Path(sys.argv[0])
args, line = sys.argv[1:], ' '.join(sys.argv[1:])
ops = me.parents[1] / 'lib/python3.11/site-packages/mmcv/_ext.so'
for rule in ('fail', 'kill'):
    if (fake / rule).exists() and (fake / rule).read_text() in line:
        if rule == 'kill':
            os.kill(os.getppid(), signal.SIGKILL)
        sys.exit(1)
if args[:2] == ['-m', 'venv']:
    Path(args[2], 'bin').mkdir(parents=True)
    Path(args[2], 'lib/python3.11/site-packages/mmcv').mkdir(parents=True)
    shutil.copy(me, Path(args[2], 'bin', 'python'))
elif args[:3] == ['-m', 'pip', 'wheel']:
    wheel = Path(args[args.index('-w') + 1], 'mmcv-0.whl')
    wheel.write_text((fake / 'compiles').read_text())
elif args[:2] == ['-m', 'pip'] and line.endswith('.whl'):
    shutil.copy(args[-1], ops)
elif args[0] == '-c' and 'mmcv.ops' in args[1]:
    sys.exit(not (ops.exists() and ops.read_text() == 'good'))
elif args[0] == '-c' and 'torch' in args[1]:
    print('torch-1/cp')
elif args[0] == '-c' and 'ensurepip' not in args[1] and 'Python.h' not in args[1]:
    print('3.11')
if args[0] == '-m':
    with open(fake / 'log', 'a') as f:
        print(line, os.environ.get('PYTHONPATH'), sep=' | ', file=f)
"""


class Checkout:
    """A checkout with the files of the set-up, and the stand-in."""

    def __init__(self, repo, root, fake):
        self.root, self.fake, self.log = root, fake, fake / 'log'
        for name in (
            'Makefile',
            'setup.py',
            'mmdense/version.py',
            'requirements/setup_env.sh',
            'requirements/pins.txt',
            'requirements/pins-classic.txt',
            'requirements/pins-common.txt',
            'requirements/runtime.txt',
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo / name, root / name)
        fake.mkdir(exist_ok=True)
        self.python = fake / 'python3.11'
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        (fake / 'compiles').write_text('good')

    def run(self, *command, **env):
        """Runs the set-up, or ``command``; returns its result and the pip and venv calls."""
        self.log.write_text('')
        env = {
            'PATH': f'{self.fake}:{os.environ["PATH"]}',
            'HOME': str(self.fake),
            'FAKE': str(self.fake),
            'CXX': 'true',
            **env,
        }
        result = subprocess.run(
            command or ['requirements/setup_env.sh'],
            cwd=self.root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return result, self.log.read_text().splitlines()

    @property
    def ext(self):
        return self.root / '.venv/lib/python3.11/site-packages/mmcv/_ext.so'

    def ops(self, **env):
        return self.run('requirements/setup_env.sh', '--ops', **env)


@pytest.fixture
def checkout(repo, tmp_path):
    return Checkout(repo, tmp_path / 'a', tmp_path / 'fake')


def ran(calls, word):
    return sum(word in call for call in calls)


def test_sets_up_once(checkout):
    result, calls = checkout.run()
    assert result.returncode == 0, result.stdout
    assert ran(calls, 'venv') == 1
    assert ran(calls, '-r requirements/pins.txt') == 1
    assert ran(calls, '-e .') == 1
    assert ran(calls, 'pip wheel') == 0
    # mmcv before torch, or its ops would be compiled.
    assert 'onedl-mmcv' in calls[2] and 'pins.txt' in calls[3]

    result, calls = checkout.run()
    assert result.returncode == 0
    assert calls == [] and result.stdout == ''


@pytest.mark.parametrize('pins', ['pins.txt', 'pins-common.txt'])
def test_other_pins_make_it_anew(checkout, pins):
    checkout.run()
    (checkout.root / '.venv' / 'old').touch()
    with open(checkout.root / 'requirements' / pins, 'a') as f:
        f.write('another==1\n')
    assert ran(checkout.run()[1], 'venv') == 1
    assert not (checkout.root / '.venv' / 'old').exists()


def test_other_metadata_installs_mmdense_alone(checkout):
    checkout.run()
    with open(checkout.root / 'setup.py', 'a') as f:
        f.write('\n')
    _, calls = checkout.run()
    assert len(calls) == 1 and '-e .' in calls[0]


@pytest.mark.parametrize('step', ['-m venv', 'onedl-mmcv', 'pins.txt', '-e .'])
@pytest.mark.parametrize('how', ['kill', 'fail'])
def test_recovers(checkout, how, step):
    (checkout.fake / how).write_text(step)
    assert checkout.run()[0].returncode != 0
    (checkout.fake / how).unlink()
    result, calls = checkout.run()
    assert result.returncode == 0, result.stdout
    assert '-e .' in calls[-1]
    assert checkout.run()[1] == []


@pytest.mark.parametrize('wreck', ['gone', 'dangling', 'broken', 'moved'])
def test_broken_environment_is_made_anew(checkout, wreck):
    checkout.run()
    python = checkout.root / '.venv' / 'bin' / 'python'
    if wreck == 'moved':  # its scripts and its link to the checkout name the old place
        target = checkout.root.with_name('b')
        checkout.root.rename(target)
        checkout.root = target
        python = target / '.venv' / 'bin' / 'python'
        # The stand-in has no prefix of its own.
        python.write_text(python.read_text().replace("print('3.11')", "print('elsewhere')"))
    else:
        python.unlink()
        if wreck == 'dangling':
            python.symlink_to('/nonexistent/python')
        elif wreck == 'broken':
            python.write_text('#!/bin/sh\nexit 127\n')
            python.chmod(0o755)
    result, calls = checkout.run()
    assert result.returncode == 0, result.stdout
    assert ran(calls, 'venv') == 1


def test_active_environment_is_not_its_own_parent(checkout):
    checkout.run()
    bin_dir = checkout.root / '.venv' / 'bin'
    shutil.copy(bin_dir / 'python', bin_dir / 'python3.11')
    (checkout.root / '.venv' / 'mmdense-pins.sha256').unlink()
    path = f'{bin_dir}:{checkout.fake}:{os.environ["PATH"]}'
    result, _ = checkout.run(PATH=path)
    assert result.returncode == 0, result.stdout


def test_ops_are_compiled_once_for_all_checkouts(repo, checkout, tmp_path):
    result, calls = checkout.ops()
    assert result.returncode == 0, result.stdout
    assert ran(calls, 'pip wheel') == 1
    assert checkout.ops()[1] == []
    assert checkout.run()[1] == [], 'what has ops keeps them'

    other = Checkout(repo, tmp_path / 'b', checkout.fake)
    result, calls = other.ops()
    assert result.returncode == 0, result.stdout
    assert ran(calls, 'pip wheel') == 0
    assert other.ext.read_text() == 'good'


def test_ops_that_do_not_import_are_compiled_again(checkout):
    checkout.ops()
    (wheel,) = checkout.fake.glob('.cache/mmdense/wheels/**/*.whl')

    # Damaged in the environment: the kept wheel mends it.
    checkout.ext.write_text('bad')
    result, calls = checkout.ops()
    assert result.returncode == 0 and ran(calls, 'pip wheel') == 0

    # Damaged there too: compiled again.
    checkout.ext.write_text('bad')
    wheel.write_text('bad')
    result, calls = checkout.ops()
    assert result.returncode == 0 and ran(calls, 'pip wheel') == 1
    assert wheel.read_text() == 'good'

    # And it does not go round and round.
    checkout.ext.write_text('bad')
    wheel.write_text('bad')
    (checkout.fake / 'compiles').write_text('bad')
    result, calls = checkout.ops()
    assert result.returncode == 1 and ran(calls, 'pip wheel') == 1
    assert 'do not import' in result.stdout.splitlines()[-1]


@pytest.mark.parametrize('how', ['kill', 'fail'])
def test_interrupted_compilation_leaves_no_wheel(checkout, how):
    checkout.run()
    (checkout.fake / how).write_text('pip wheel')
    assert checkout.ops()[0].returncode != 0
    for half in checkout.fake.glob('.cache/mmdense/wheels/**/building.*'):
        (half / 'half.whl').write_text('bad')
    (checkout.fake / how).unlink()
    result, calls = checkout.ops()
    assert result.returncode == 0 and ran(calls, 'pip wheel') == 1
    assert not list(checkout.fake.glob('.cache/mmdense/wheels/**/building.*'))


def test_place_of_the_wheels(checkout):
    checkout.ops(MMDENSE_CACHE=str(checkout.fake / 'mine'))
    assert list(checkout.fake.glob('mine/wheels/onedl-mmcv-*/torch-1/cp/*.whl'))


@pytest.mark.parametrize(
    'env, fails, line',
    [
        ({'PYTHON': 'python-of-nobody'}, None, 'no python-of-nobody on this machine'),
        ({}, 'version_info[:2])', 'is not python 3.11'),
        ({}, 'ensurepip', 'no venv module'),
        ({}, 'pins.txt', 'package index'),
        ({'CXX': 'compiler-of-nobody'}, None, 'no C++ compiler'),
        ({}, 'Python.h', 'no Python.h'),
        ({}, 'pip wheel', 'did not compile'),
    ],
)
def test_says_what_is_missing(checkout, env, fails, line):
    if fails:
        (checkout.fake / 'fail').write_text(fails)
    result, _ = checkout.ops(**env)
    assert result.returncode != 0
    last = result.stdout.splitlines()[-1]
    assert last.startswith('set-up: ') and line in last


@pytest.mark.parametrize(
    'target, call',
    [('demo', 'tools/demo.py'), ('test', '-m pytest'), ('lint', '-m pre_commit')],
)
def test_environment_of_the_user(checkout, target, call):
    """MMDENSE_PYTHON is used as it is, and sees the checkout."""
    python = checkout.fake / 'theirs' / 'python'
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$PYTHONPATH | $(command -v python) $*"\n')
    python.chmod(0o755)
    result, calls = checkout.run('make', '-s', target, MMDENSE_PYTHON=str(python), PYTHONPATH='/p')
    assert result.returncode == 0, result.stdout
    assert calls == [] and not (checkout.root / '.venv').exists()
    (line,) = result.stdout.splitlines()
    assert line.startswith(f'{checkout.root}:/p | {python} ') and call in line


def test_environment_of_the_user_is_missing(checkout):
    result, calls = checkout.run('make', 'test', MMDENSE_PYTHON='/nonexistent/python')
    assert result.returncode != 0 and calls == []
    assert 'MMDENSE_PYTHON=/nonexistent/python is not a program' in result.stdout


def test_make_sets_up_first(checkout):
    result, calls = checkout.run('make', '-s', 'test', 'PYTEST_ARGS=-k name')
    assert result.returncode == 0, result.stdout
    assert ran(calls, 'pip wheel') == 1
    assert 'pytest tests -m not slow -n 2 --dist loadfile -k name' in calls[-1]
    _, calls = checkout.run('make', '-s', 'demo', PYTHONPATH='/theirs')
    assert calls == []  # tools/demo.py, neither pip nor venv


def test_the_classic_line_has_its_own(checkout):
    result, calls = checkout.run('make', '-s', 'test-classic', 'PYTEST_ARGS=-k name')
    assert result.returncode == 0, result.stdout
    assert (checkout.root / '.venv-classic').is_dir() and not (checkout.root / '.venv').exists()
    assert ran(calls, '-r requirements/pins-classic.txt') == 1 and ran(calls, 'onedl') == 0
    assert ran(calls, 'pip wheel') == 1 and ' mmcv==' in ''.join(calls)
    assert list(checkout.fake.glob('.cache/mmdense/wheels/mmcv-*/torch-1/cp/*.whl'))
    assert 'pytest tests -m not slow -n 2 --dist loadfile -k name' in calls[-1]
    # an environment of the user's is for the other targets
    env = dict(MMDENSE_PYTHON='/bin/true', PYTHONPATH='/theirs')
    _, calls = checkout.run('make', '-s', 'test-classic', **env)
    assert len(calls) == 1 and 'pytest' in calls[0]


def test_unknown_argument(checkout):
    result, calls = checkout.run('requirements/setup_env.sh', '--op')
    assert result.returncode == 1 and calls == []
    assert result.stdout.strip() == 'set-up: unknown argument --op: there are --ops and --classic'
