# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Packages that mmdense imports are declared, and declared packages are imported."""

import ast
import re
import sys
from pathlib import Path

import pytest

import mmdense

ROOT = Path(mmdense.__file__).parent
# requirements/runtime.txt says why none of these is in it
UNDECLARED = {'torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'cv2'}
MODULES = {'pillow': 'PIL', 'pyyaml': 'yaml'}  # those named otherwise than their package


def is_standard(module, repo):
    if hasattr(sys, 'stdlib_module_names'):
        return module in sys.stdlib_module_names
    pytest.skip('Python before 3.10 has no list of its modules')


def imported_modules():
    """Module → whether mmdense works without it: each import is in a function or in a try."""
    found = {}

    def visit(node, optional, name):
        if isinstance(node, (ast.FunctionDef, ast.Try)):
            optional = True
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for module in names:
            module = module.split('.')[0]
            found[module] = found.get(module, True) and optional
        for child in ast.iter_child_nodes(node):
            visit(child, optional, name)

    for path in sorted(ROOT.rglob('*.py')):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(('.mim/', 'configs/')):
            visit(ast.parse(path.read_text(encoding='utf-8')), False, name)
    return found


def declared(repo, name):
    """Modules of the packages in a file of requirements."""
    lines = (repo / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    names = [re.match(r'[\w.-]*', line).group().lower() for line in lines]
    return {MODULES.get(name, name.replace('-', '_')) for name in names if name}


def test_imports_are_declared(repo):
    modules = {m: o for m, o in imported_modules().items() if not is_standard(m, repo)}
    modules = {m: o for m, o in modules.items() if m != 'mmdense' and m not in UNDECLARED}
    runtime, optional = declared(repo, 'runtime'), declared(repo, 'optional')
    assert len(modules) > 8
    assert not {m for m, without in modules.items() if not without} - runtime
    assert not set(modules) - runtime - optional


def test_declared_packages_are_imported(repo):
    assert not declared(repo, 'runtime') - set(imported_modules())


def test_set_up_installs_what_is_declared(repo):
    """`pip install --no-deps` takes the pins alone."""
    pins = (repo / 'requirements' / 'pins-common.txt').read_text(encoding='utf-8')
    pins += (repo / 'requirements' / 'pins.txt').read_text(encoding='utf-8')
    pinned = {name.lower() for name in re.findall(r'^([\w.-]+)==', pins, re.MULTILINE)}
    lines = (repo / 'requirements' / 'runtime.txt').read_text(encoding='utf-8').splitlines()
    wanted = {line.lower() for line in lines if line and not line.startswith('#')}
    assert not wanted - pinned
