# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""mmdense/configs: for `with read_base()`, a shim for each classic config."""

from pathlib import Path

import pytest
from mmengine.config import Config

REPO = Path(__file__).resolve().parents[2]
SHIM = """\
# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
# The classic config of this name, for `with read_base()`; every file here says just this.
globals().update(__import__('mmdense').compat.classic_config())
"""


def shim_of(recipe):
    """Names with dashes cannot be imported."""
    return recipe.with_name(recipe.name.replace('-', '_'))


RECIPES = sorted(
    path.relative_to(REPO / 'configs')
    for path in (REPO / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)


def test_each_config_has_one():
    names = [shim_of(recipe) for recipe in RECIPES]
    assert len(set(names)) == len(names) > 30
    folder = REPO / 'mmdense' / 'configs'
    found = {path.relative_to(folder): path.read_text() for path in folder.rglob('*.py')}
    wrong = [str(folder / name) for name in names if found.get(name) != SHIM]
    how = f'for shim in {" ".join(wrong)}; do cp {folder}/densecl_r50_coco.py $shim; done'
    assert not wrong, f'missing, or not just this:\n{SHIM}Run: {how}'
    left = [str(folder / name) for name in found if name not in names]
    assert not left, f'no config stands behind: rm {" ".join(left)}'


@pytest.mark.parametrize('recipe', RECIPES, ids=str)
def test_says_the_same(recipe, tmp_path, require):
    if recipe.parts[0] == 'transfer':
        require(recipe.parts[1])
    module = '.'.join(['mmdense', 'configs', *shim_of(recipe).with_suffix('').parts])
    child = tmp_path / 'child.py'
    child.write_text(
        f'from mmengine.config import read_base\nwith read_base():\n    from {module} import *\n'
        'model.own = 1\n'
    )
    config, classic = (Config.fromfile(str(p)) for p in (child, REPO / 'configs' / recipe))
    classic.model.own = 1
    assert config.to_dict() == classic.to_dict()
    config.dump(str(tmp_path / 'dump.py'))
    assert Config.fromfile(str(tmp_path / 'dump.py')).to_dict() == classic.to_dict()


def test_may_be_read_directly():
    """By a tool, without `with read_base()`."""
    config, shim = (
        Config.fromfile(str(REPO / folder / 'densecl' / f'densecl_resnet50_8xb32{name}_coco.py'))
        for folder, name in (('configs', '-coslr-800e'), ('mmdense/configs', '_coslr_800e'))
    )
    assert shim.to_dict() == config.to_dict()


def test_says_which_config_is_gone(tmp_path):
    folder = tmp_path / 'mmdense' / 'configs'
    folder.mkdir(parents=True)
    (folder / 'gone.py').write_text(SHIM)
    with pytest.raises(ImportError, match=r'gone.py stands for 0 files in .*\.mim'):
        Config.fromfile(str(folder / 'gone.py'))
