# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Distributions of this checkout, and environments that have them installed."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


def _environment(home, **env):
    """That of a user who knows nothing of this checkout."""
    return {'PATH': '/usr/bin:/bin', 'HOME': str(home), 'no_proxy': '127.0.0.1', **env}


@pytest.fixture(scope='session')
def python():
    """Runs code in an interpreter; the last line that it prints."""

    def call(executable, code, cwd, **env):
        result = subprocess.run(
            [str(executable), '-c', code],
            cwd=cwd,
            env=_environment(cwd, **env),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.splitlines()[-1]

    return call


@pytest.fixture(scope='session')
def build():
    """What pip calls, without an isolated environment and so without the network."""

    def call(kind, source, out):
        out.mkdir(exist_ok=True)
        code = f'from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})'
        subprocess.run(
            [sys.executable, '-c', code],
            cwd=source,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        (built,) = out.iterdir()
        return built

    return call


@pytest.fixture(scope='session')
def source(repo, tmp_path_factory):
    """A clean copy: what git knows and what it would take, nothing that was built."""
    if not (repo / '.git').exists():
        pytest.skip('not a git checkout')
    listed = subprocess.check_output(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=repo, text=True
    )
    copy = tmp_path_factory.mktemp('source')
    for name in filter(None, listed.split('\0')):
        file = repo / name
        if file.is_symlink() or file.exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope='session')
def sdist(source, build, tmp_path_factory):
    return build('sdist', source, tmp_path_factory.mktemp('sdist'))


@pytest.fixture(scope='session')
def wheels(source, build, sdist, tmp_path_factory):
    """The wheel of the checkout, and that of the sdist."""
    unpacked = tmp_path_factory.mktemp('unpacked')
    with tarfile.open(sdist) as tar:
        tar.extractall(unpacked)
    (unpacked,) = unpacked.iterdir()
    return {
        'checkout': build('wheel', source, tmp_path_factory.mktemp('wheel')),
        'sdist': build('wheel', unpacked, tmp_path_factory.mktemp('wheel_of_sdist')),
    }


def _make_venv(folder):
    """A venv that has the packages of this environment, but not its mmdense: the path of its
    packages is added, and an editable mmdense hangs on a .pth file that is then not read."""
    subprocess.check_call([sys.executable, '-m', 'venv', '--without-pip', folder / 'venv'])
    (site,) = (folder / 'venv').glob('lib/python*/site-packages')
    ours = [p for p in sys.path if Path(p).name in ('site-packages', 'dist-packages')]
    (site / 'packages.pth').write_text('\n'.join(ours))
    return folder / 'venv' / 'bin' / 'python', site


@pytest.fixture
def clean_venv(tmp_path):
    """Without mmdense: its interpreter, and its site-packages."""
    return _make_venv(tmp_path)


def _install(wheel, site):
    subprocess.check_call(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index']
        + ['--target', str(site), str(wheel)]
    )


@pytest.fixture(scope='session')
def install():
    return _install


@pytest.fixture(scope='session')
def installed(wheels, tmp_path_factory):
    """With the wheel: its interpreter, and its site-packages."""
    executable, site = _make_venv(tmp_path_factory.mktemp('installed'))
    _install(wheels['checkout'], site)
    return executable, site


@pytest.fixture
def run_in(installed, tmp_path):
    """Runs the interpreter that has the wheel, in a project outside the checkout; its exit code
    and output."""

    def call(*arguments, cwd=tmp_path, **env):
        return subprocess.run(
            [str(installed[0]), *map(str, arguments)],
            cwd=cwd,
            env=_environment(cwd, OMP_NUM_THREADS='2', **env),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )

    return call


@pytest.fixture(scope='session')
def openmim(tmp_path_factory):
    """A folder for PYTHONPATH with openmim in it. Needs the package index."""
    # Its dependencies would change the setuptools of an environment: only those it imports.
    tools = 'openmim==0.3.9 colorama pandas==2.2.3 pytz requests tabulate urllib3 '
    tools += 'charset-normalizer idna certifi openxlab opendatalab'
    folder = tmp_path_factory.mktemp('openmim')
    subprocess.check_call(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps']
        + ['--target', str(folder), *tools.split()]
    )
    return folder
