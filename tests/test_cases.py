# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Inputs of real users: each script of ``tests/cases`` exits with 1 while its fault is there."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent / 'cases').glob('*/repro.py'))


def test_there_are_scripts():
    assert len(SCRIPTS) >= 14


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.parent.name)
def test_names_that_it_imports_exist(script):
    imported = 0
    for node in ast.walk(ast.parse(script.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            imported += 'mmdense' in [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'mmdense':
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), node.module
            imported += 1
    assert imported


@pytest.mark.slow
@pytest.mark.timeout(1000)  # the fourth starts 14 programs
@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.parent.name)
def test_its_fault_is_mended(script, run, require):
    for node in ast.walk(ast.parse(script.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] in ('mmdet', 'mmseg'):
            require(node.module.split('.')[0])
    done = run(sys.executable, script, timeout=900)
    assert done.returncode == 0, done.stdout
