# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The algorithm of docs/add_an_algorithm.md, in a package of its own, from the first command to a
detector."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from tiny_algorithms import tiny_form

from mmdense.cli import main
from mmdense.registry import MODELS

EXAMPLE = tiny_form()
SETTINGS = ['--backbone', 'resnet18', '--epochs', '2', '--size', '32', '--workers', '0']
SETTINGS += ['--batch-size', '8']  # two steps an epoch


def distribution(folder, name, *lines):
    """Writes what pip leaves of a package, into a folder for PYTHONPATH."""
    info = folder / f'{name.replace("-", "_")}-1.0.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text('\n'.join(['[mmdense.algorithms]', *lines, '']))


@pytest.fixture(scope='module')
def example(repo):
    """The module, as the page has it."""
    page = (repo / 'docs' / 'add_an_algorithm.md').read_text()
    (code,) = re.findall(r'```python\n(.*?)```', page, re.S)
    return code


@pytest.fixture
def module(example, tmp_path):
    """A folder with the module alone."""
    folder = tmp_path / 'module'
    folder.mkdir()
    (folder / 'place_siam.py').write_text(example)
    return folder


@pytest.fixture
def package(module, monkeypatch):
    """The module with an entry point, installed as far as this process can see."""
    distribution(module, 'place-siam', 'placesiam = place_siam:PlaceSiam')
    monkeypatch.syspath_prepend(str(module))
    yield module
    sys.modules.pop('place_siam', None)
    MODELS._module_dict.pop('PlaceSiam', None)


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """A command in this process, in an empty folder: exit code, out, err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMDENSE_TRACEBACK', raising=False)

    def run(*arguments):
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def fresh(code, *paths, **kwargs):
    """Runs code in a new process that has these folders on PYTHONPATH."""
    path = os.pathsep.join([*map(str, paths), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=dict(os.environ, PYTHONPATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )
    return done.returncode, done.stdout


# A run that is told to stop in its third step.
STOPPED = """
import os, signal
from mmdense.apis.planning import find_method
from mmdense.cli import main

kind = find_method('placesiam').kind
loss, steps = kind.loss, []

def counted(*args, **kwargs):
    steps.append(1)
    if len(steps) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return loss(*args, **kwargs)

kind.loss = counted
main({})
"""


def log_of(run):
    return ''.join(path.read_text() for path in Path(run).rglob('*.log'))


def read_state(path):
    return torch.load(path, weights_only=True)['state_dict']


def test_from_the_command_to_a_detector(call, package, repo, images, tmp_path):
    code, _, err = call('pretrain', images, '--method', 'moco')
    assert code == 1 and re.fullmatch(
        r"mmdense: error: method must be one of .*, placesiam, got 'moco'\n", err
    )

    # stopped in the second epoch, resumed
    command = ['pretrain', images, '--method', 'placesiam', *SETTINGS, '--out', 'run']
    code, shown = fresh(STOPPED.format(command), package, cwd=tmp_path)
    assert code == 0 and 'SIGTERM: saved' in shown and 'The backbone is' not in shown, shown
    assert re.search(r'^predictor +128 +few images: a small predictor$', shown, re.M)
    assert re.search(r'^view size +32 px ', shown, re.M)
    assert (tmp_path / 'run' / 'iter_3.pth').exists()
    cfg = Config.fromfile('run/config.py')
    assert cfg.custom_imports.imports == ['place_siam']
    assert cfg.model.type == 'PlaceSiam' and cfg.model.backbone.depth == 18
    assert cfg.model.neck.in_channels == 512 and cfg.model.predictor.hid_channels == 128
    code, out, err = call(*command, '--resume')
    assert code == 0 and out.startswith(f'The backbone is {tmp_path}/run/backbone.pth'), err
    assert 'Ignored' not in err and 'resumed epoch: 1, iter: 3' in log_of('run')

    # without interruption, without the package: the same weights
    config = tmp_path / 'alone.py'
    text = (tmp_path / 'run' / 'config.py').read_text()
    config.write_text(re.sub('(?m)^custom_imports = .*\n', '', text))
    alone = tmp_path / 'alone'
    alone.mkdir()
    (package / 'place_siam.py').rename(alone / 'place_siam.py')
    arguments = ['train.py', str(config), '--work-dir', 'other', '--custom-imports', 'place_siam']
    arguments += ['--cfg-options', 'default_hooks.health.interval=2']
    program = f'import sys, runpy; sys.argv = {arguments!r}\n'
    program += f'runpy.run_path({str(repo / "tools" / "train.py")!r}, run_name="__main__")'
    code, shown = fresh(program, alone, cwd=tmp_path)
    assert code == 0, shown
    assert re.search(r'health_dense_rank: [\d.]+', shown), shown
    assert re.search(r'health_dense_positive_similarity: -?[\d.]+', shown)
    one, two = read_state('run/backbone.pth'), read_state('other/backbone.pth')
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert Config.fromfile('other/alone.py', import_custom_modules=False).custom_imports == dict(
        imports=['place_siam']
    )

    # what the commands make of it
    code, out, err = call('check', 'run/epoch_2.pth')
    assert code == 0 and 'a ResNet-18 written by mmdense PlaceSiam' in out, err
    code, out, err = call('show', 'run/epoch_2.pth', images, '--number', '1', '--size', '64')
    assert code == 0 and (tmp_path / 'work_dirs/show/index.html').exists(), err
    code, out, err = call('report', 'other')
    assert code == 0, err
    page = (tmp_path / 'other' / 'report.html').read_text()
    assert 'dense_rank' in page

    # into a classifier's backbone, and a detector's
    for scope in ('mmpretrain', 'mmdet'):
        pytest.importorskip(scope)
        for file in ('backbone.pth', 'epoch_2.pth'):
            init = dict(type='mmdense.SelfSupPretrained', checkpoint=str(Path('run', file)))
            with DefaultScope.overwrite_default_scope(scope):
                network = ROOT.build(dict(type=f'{scope}.ResNet', depth=18, init_cfg=init))
                network.init_weights()
            state = network.state_dict()
            assert all(torch.equal(state[name], value) for name, value in one.items())


def test_in_a_new_process(package, tmp_path):
    """Entry points are known without PyTorch, and imported with mmdense's models; a broken one is
    one warning."""
    broken = tmp_path / 'broken'
    distribution(broken, 'no-good', 'nogood = no_such_module:Algorithm')
    code, shown = fresh(
        'import sys\n'
        'from mmdense.cli import build_parser\n'
        'from mmdense.utils.plugins import find_plugins\n'
        'build_parser()\n'
        'assert list(find_plugins()) == ["nogood", "placesiam"], find_plugins()\n'
        'assert "torch" not in sys.modules\n'
        'import place_siam\n'  # the module first: it imports mmdense, which imports the module
        'from mmdense.registry import MODELS\n'
        'assert MODELS.get("PlaceSiam") is place_siam.PlaceSiam\n',
        package,
        broken,
    )
    assert code == 0, shown
    (warning,) = [line for line in shown.splitlines() if 'no_such_module' in line]
    assert 'WARNING - no-good: there is no method nogood, for no_such_module cannot be' in warning
    assert 'place_siam' not in shown


RECIPES = {
    'a path': "'recipe.py'",
    'a name': "'somebody::theirs/recipe.py'",
    'a dict': "dict(_base_='recipe.py', optim_wrapper=dict(optimizer=dict(lr=0.5)))",
    'its views': "dict(_base_='recipe.py', train_pipeline=VIEWS)",
}
VIEWS = """[
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=2, transforms=[[
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomResizedCrop', scale=128, crop_ratio_range=(0.5, 1.0)),
    ]]),
    dict(type='PackInputs'),
]"""


@pytest.mark.parametrize('kind', RECIPES)
def test_recipes(kind, package, example, tmp_path):
    """Each way to declare one; the config that is written has what the recipe says."""
    from mmdense.apis.planning import find_method
    from mmdense.apis.planning.plan import Images, Machine, Network, Plan, _with_settings, plan_text
    from mmdense.apis.planning.settings import Options

    recipe = re.search(r'    recipe = (dict\(\n.*?\n    \))\n', example, re.S)[1]
    scope = {}
    exec(f'recipe = {recipe}', scope)
    text = '\n'.join(f'{key} = {value!r}' for key, value in scope['recipe'].items())
    somebody = package / 'somebody' / 'configs' / 'theirs'
    somebody.mkdir(parents=True)
    (package / 'somebody' / '__init__.py').touch()
    for folder in (package, somebody):
        (folder / 'recipe.py').write_text(text)
    code = example.replace(recipe, RECIPES[kind].replace('VIEWS', VIEWS))
    (package / 'place_siam.py').write_text(code)

    method = find_method('placesiam')
    assert method.kind.__name__ == method.recipe.model.type == 'PlaceSiam'
    images = Images(dict(data_root='/images', data_prefix=''), 3000, 64)
    machine, network = Machine('cpu', '', 0, 16 << 30, 8, ''), Network({}, 2048, 10**7, 10**7)
    options = Options(method='placesiam')
    plan = Plan(images, machine, network, method.base(3000), options, [], method)
    text = plan_text(_with_settings(plan), str(tmp_path / 'run'), 'x')
    cfg = Config.fromstring(text, '.py')
    assert cfg.model.type == 'PlaceSiam' and cfg.model.neck.hid_channels == 2048
    assert cfg.optim_wrapper.optimizer.lr == (0.0625 if kind == 'a dict' else 0.00625)
    transforms = cfg.train_dataloader.dataset.pipeline[1]['transforms'][0]
    crop = transforms[1] if kind == 'its views' else transforms[0]
    assert (crop.type, crop.scale) == ('RandomResizedCrop', 64)
    assert cfg.train_pipeline == cfg.train_dataloader.dataset.pipeline
    assert len(transforms) == (2 if kind == 'its views' else 5)


@pytest.mark.parametrize(
    'wrong, message',
    [
        (('class PlaceSiam', 'class Other'), 'place_siam:PlaceSiam cannot be imported: Attribute'),
        (('import cosine_similarity', 'import no_such'), 'cannot be imported: ImportError: '),
        (("type='PlaceSiam'", "type='SimSiam'"), 'of PlaceSiam builds SimSiam instead'),
        (('recipe = dict(', 'other = dict('), 'PlaceSiam declares no recipe'),
        (
            (f"_base_='mmdense::{EXAMPLE.method}/{EXAMPLE.recipe}.py',", ''),
            'PlaceSiam has no _base_',
        ),
        (('PlaceSiam(SelfSupervisor, Base', 'PlaceSiam(Base'), 'is no SelfSupervisor'),
    ],
)
def test_mistakes_are_one_line(call, package, example, images, wrong, message):
    assert wrong[0] in example
    (package / 'place_siam.py').write_text(example.replace(*wrong))
    try:
        code, out, err = call('pretrain', images, '--method', 'placesiam', '--out', 'run')
    finally:
        MODELS._module_dict.pop('Other', None)
    assert (code, out) == (1, '') and err.count('\n') == 1
    assert err.startswith('mmdense: error: method placesiam') and message in err
