# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The wheel, the sdist, an editable install and a checkout on PYTHONPATH: all of them have the
configs and the tools where MMEngine and mim look for them."""

import json
import re
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
        (scripts,) = (wheel.read(n) for n in wheel.namelist() if n.endswith('/entry_points.txt'))
        licences = [n for n in wheel.namelist() if n.endswith('/LICENSE')]
        links = [
            i.filename for i in wheel.infolist() if i.external_attr >> 16 & 0o170000 == 0o120000
        ]
    modules = shipped(source, 'mmdense', {'.py', '.html'})
    modules = {name for name in modules if not name.startswith('mmdense/.mim')}
    assert names == modules | mim_files(source)
    assert licences and not links
    assert scripts.decode().split() == ['[console_scripts]', 'mmdense', '=', 'mmdense.cli:main']


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


@pytest.mark.parametrize(
    'way',
    [
        'wheel',
        pytest.param('wheel of sdist', marks=pytest.mark.slow),
        'editable',
        pytest.param('PYTHONPATH', marks=pytest.mark.slow),
    ],
)
def test_look_up(source, wheels, build, clean_venv, install, python, tmp_path, way):
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
def test_configs_of_siblings(repo, python, tmp_path, name):
    """On the maintained line MMEngine finds mmseg's with our help alone."""
    pytest.importorskip(name.split(':')[0])
    (tmp_path / 'inherits.py').write_text(f"_base_ = __import__('mmdense') and '{name}'")
    code = (
        'from mmengine.config import Config; one = Config.fromfile("inherits.py")\n'
        f'from mmengine.hub import get_config; two = get_config({name!r})\n'
        'assert one.model.type == two.model.type; print(one.model.type)'
    )
    assert python(sys.executable, code, tmp_path, PYTHONPATH=str(repo))
