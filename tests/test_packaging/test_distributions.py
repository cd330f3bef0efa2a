# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The wheel, the sdist, an editable install and a checkout on PYTHONPATH: all of them have the
configs and the tools where MMEngine and mim look for them."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

# Run in the environment under test; MMEngine's own look-ups, from a folder that is not ours.
LOOK_UP = """
import json, sys
from pathlib import Path
import mmdense
from mmengine.config import Config
from mmengine.hub import get_config

found = {'version': mmdense.__version__, 'file': mmdense.__file__, 'configs': {}}
mim = Path(mmdense.__file__).parent / '.mim'
for metafile in Config.fromfile(mim / 'model-index.yml')['Import']:
    for model in Config.fromfile(mim / metafile)['Models']:
        name = model['Config'].split('/', 1)[1]
        one = get_config(f'mmdense::{name}')
        Path('inherits.py').write_text(f'_base_ = "mmdense::{name}"\\n')
        two = Config.fromfile('inherits.py')
        assert one.model.type and one.model.type == two.model.type
        found['configs'][name] = one.model.type
found['tools'] = sorted(p.name for p in (mim / 'tools').iterdir())
print(json.dumps(found))
"""

# As other projects' tools do: nothing has imported mmdense when _base_ is read.
INHERIT = """
from pathlib import Path
from mmengine.config import Config
Path('inherits.py').write_text("_base_ = __import__('mmdense') and 'mmdense::{name}'")
print(Config.fromfile('inherits.py').model.type)
"""


def python(executable, code, cwd, **env):
    result = subprocess.run(
        [str(executable), '-c', code],
        cwd=cwd,
        env={'PATH': '/usr/bin:/bin', 'HOME': str(cwd), **env},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()[-1]


def build(kind, source, out):
    """What pip calls, without an isolated environment and so without the network."""
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


@pytest.fixture(scope='module')
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


@pytest.fixture(scope='module')
def sdist(source, tmp_path_factory):
    return build('sdist', source, tmp_path_factory.mktemp('sdist'))


@pytest.fixture(scope='module')
def wheels(source, sdist, tmp_path_factory):
    """The wheel of the checkout, and that of the sdist."""
    unpacked = tmp_path_factory.mktemp('unpacked')
    with tarfile.open(sdist) as tar:
        tar.extractall(unpacked)
    (unpacked,) = unpacked.iterdir()
    return {
        'checkout': build('wheel', source, tmp_path_factory.mktemp('wheel')),
        'sdist': build('wheel', unpacked, tmp_path_factory.mktemp('wheel_of_sdist')),
    }


@pytest.fixture
def clean_venv(tmp_path):
    """A venv that has the packages of this environment, but not its mmdense: the path of its
    packages is added, and an editable mmdense hangs on a .pth file that is then not read."""
    subprocess.check_call([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv'])
    (site,) = (tmp_path / 'venv').glob('lib/python*/site-packages')
    ours = [p for p in sys.path if Path(p).name in ('site-packages', 'dist-packages')]
    (site / 'packages.pth').write_text('\n'.join(ours))
    return tmp_path / 'venv' / 'bin' / 'python', site


def install(wheel, site):
    subprocess.check_call(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index']
        + ['--target', str(site), str(wheel)]
    )


def shipped(source, folder, suffixes):
    return {
        p.relative_to(source).as_posix()
        for p in (source / folder).rglob('*')
        if p.suffix in suffixes and p.is_file()
    }


def mim_files(source):
    files = shipped(source, 'configs', {'.py', '.yml', '.md'})
    files |= shipped(source, 'tools', {'.py', '.sh'}) | {'model-index.yml'}
    return {f'mmdense/.mim/{name}' for name in files}


def configs_of(source):
    index = yaml.safe_load((source / 'model-index.yml').read_text())
    models = [
        model
        for metafile in index['Import']
        for model in yaml.safe_load((source / metafile).read_text())['Models']
    ]
    return {model['Config'].split('/', 1)[1] for model in models}


@pytest.mark.parametrize('of', ['checkout', 'sdist'])
def test_wheel_has_everything_and_nothing_else(source, wheels, of):
    with zipfile.ZipFile(wheels[of]) as wheel:
        names = {n for n in wheel.namelist() if '.dist-info/' not in n}
        licences = [n for n in wheel.namelist() if n.endswith('/LICENSE')]
        links = [
            i.filename for i in wheel.infolist() if i.external_attr >> 16 & 0o170000 == 0o120000
        ]
    modules = shipped(source, 'mmdense', {'.py'})
    modules = {name for name in modules if not name.startswith('mmdense/.mim')}
    assert names == modules | mim_files(source)
    assert licences and not links


def test_sdist_builds_and_has_no_tests(source, sdist):
    with tarfile.open(sdist) as tar:
        members = {m.name.split('/', 1)[-1]: m for m in tar.getmembers()}
    assert mim_files(source) | {'setup.py', 'LICENSE', 'requirements/runtime.txt'} <= set(members)
    assert not any(name.startswith('tests') for name in members)
    assert not any(m.issym() or m.islnk() for m in members.values())


def test_requires_no_openmmlab_and_no_torch(wheels):
    with zipfile.ZipFile(wheels['checkout']) as wheel:
        (metadata,) = (n for n in wheel.namelist() if n.endswith('/METADATA'))
        lines = wheel.read(metadata).decode().splitlines()
    required = [re.split(r'[^\w-]', line.split()[1])[0] for line in lines
                if line.startswith('Requires-Dist:')]  # fmt: skip
    assert required
    assert not [name for name in required if re.match(r'(onedl-)?mm|torch', name)]


@pytest.mark.parametrize('way', ['wheel', 'wheel of sdist', 'editable', 'PYTHONPATH'])
def test_look_up(source, wheels, clean_venv, tmp_path, way):
    executable, site = clean_venv
    env = {}
    if way == 'PYTHONPATH':
        env['PYTHONPATH'] = str(source)
    elif way == 'editable':
        install(build('editable', source, tmp_path / 'editable'), site)
    else:
        install(wheels['sdist' if way == 'wheel of sdist' else 'checkout'], site)
    away = tmp_path / 'away'
    away.mkdir()

    found = json.loads(python(executable, LOOK_UP, away, **env))

    scope = {}
    exec((source / 'mmdense' / 'version.py').read_text(), scope)
    assert found['version'] == scope['__version__']
    assert Path(found['file']).parents[1] == (site if 'wheel' in way else source)
    assert set(found['configs']) == configs_of(source)
    assert 'train.py' in found['tools']
    name = sorted(found['configs'])[0]
    inherited = python(executable, INHERIT.replace('{name}', name), away, **env)
    assert inherited == found['configs'][name]


@pytest.mark.parametrize('name', ['mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
                                  'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'])  # fmt: skip
def test_configs_of_siblings(repo, tmp_path, name):
    """On the maintained line MMEngine finds mmseg's with our help alone."""
    pytest.importorskip(name.split(':')[0])
    (tmp_path / 'inherits.py').write_text(f"_base_ = __import__('mmdense') and '{name}'")
    code = (
        'from mmengine.config import Config; one = Config.fromfile("inherits.py")\n'
        f'from mmengine.hub import get_config; two = get_config({name!r})\n'
        'assert one.model.type == two.model.type; print(one.model.type)'
    )
    assert python(sys.executable, code, tmp_path, PYTHONPATH=str(repo))


@pytest.mark.slow
def test_openmim_finds_the_wheel(source, wheels, clean_venv, tmp_path):
    """openmim itself, which lists the models of model-index.yml. Needs the package index."""
    executable, site = clean_venv
    install(wheels['checkout'], site)
    # Its dependencies would change the setuptools of an environment: only those it imports.
    tools = 'openmim==0.3.9 colorama pandas==2.2.3 pytz requests tabulate urllib3 '
    tools += 'charset-normalizer idna certifi openxlab opendatalab'
    subprocess.check_call(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps']
        + ['--target', str(tmp_path / 'tools'), *tools.split()]
    )
    code = (
        'from mim.commands.search import get_model_info\n'
        'print(sorted(get_model_info("mmdense", local=True, to_dict=True)))'
    )
    found = python(executable, code, tmp_path, PYTHONPATH=str(tmp_path / 'tools'))
    assert Path(sorted(configs_of(source))[0]).stem in found
