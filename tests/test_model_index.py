# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The model index, read without PyTorch and MMEngine."""

import ast
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from tiny_algorithms import tiny_form

from mmdense.utils import model_index
from mmdense.utils.errors import InputError

EXAMPLE = tiny_form()
SHORT, LONG = EXAMPLE.recipe, EXAMPLE.full_recipe


def test_imports_are_light():
    path = Path(model_index.__file__)
    nodes = list(ast.walk(ast.parse(path.read_text(encoding='utf-8'))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names == {'functools', 'pathlib', 'typing', 'yaml', 'errors'}


def test_no_torch(run):
    code = (
        'import sys\n'
        'from mmdense.utils import model_index as m\n'
        f"print(m.config_path('{SHORT}'), m.short_names()['{LONG}'])\n"
        "print('torch' in sys.modules)"
    )
    done = run(sys.executable, '-c', code)
    path, short, torch = done.stdout.split()
    assert path.endswith(f'{LONG}.py') and (short, torch) == (SHORT, 'False')


def test_every_entry_has_a_config_and_a_collection():
    algorithms = {collection['Name'] for collection in model_index.collections()}
    assert len(algorithms) == len(model_index.collections()) >= 4
    for entry in model_index.entries():
        assert entry['In Collection'] in algorithms
        for name in model_index.entry_names(entry):
            assert Path(model_index.config_path(name)).stem == entry['Name']


def test_paths_of_configs_and_tools():
    by_path = model_index.config_path(f'{EXAMPLE.method}/{SHORT}.py')
    by_name = model_index.config_path(SHORT)
    assert Config.fromfile(by_path).model == Config.fromfile(by_name).model
    assert Path(model_index.tool_path('train.py')).is_file()
    assert (
        all(Path(path).parent.name in ('mmdet', 'mmseg', 'mmpretrain') for path in TRANSFER)
        and TRANSFER
    )
    with pytest.raises(
        InputError, match=f'there is no config {EXAMPLE.method}/none.py in .*configs'
    ):
        model_index.config_path(f'{EXAMPLE.method}/none.py')


TRANSFER = model_index.find_configs('transfer/mm*/*.py')


def test_folders_of_other_packages(tmp_path):
    package = tmp_path / 'package'
    package.mkdir()
    assert model_index.find_package_folder(package, 'configs') is None
    (tmp_path / 'configs').mkdir()
    assert model_index.find_package_folder(package, 'configs') == tmp_path / 'configs'
    (package / '.mim' / 'configs').mkdir(parents=True)
    assert model_index.find_package_folder(package, 'configs') == package / '.mim' / 'configs'
