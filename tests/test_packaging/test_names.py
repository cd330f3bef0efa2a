# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""An algorithm is its file, its configs and its test file: little else names it."""

import ast
import re
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from tiny_algorithms import algorithms, tiny_form, tiny_model

REPO = Path(__file__).resolve().parents[2]
FOLDERS = ('mmdense', 'tools', 'benchmarks', 'tests')
# configs, published results and their study, and inputs of users
NOT_CODE = ('mmdense/configs/', 'mmdense/.mim/', 'benchmarks/evidence/', 'tests/cases/')
LIMIT = 12


def code_files():
    """Return all Python files, by their path from the root."""
    paths = (path for folder in FOLDERS for path in (REPO / folder).rglob('*.py'))
    named = {path.relative_to(REPO).as_posix(): path for path in paths}
    return {name: path for name, path in named.items() if not name.startswith(NOT_CODE)}


def own_files(algorithm):
    """Return an algorithm's own files: those that bear its name, and those of its modules."""
    parts = [algorithm.lower(), *tiny_form(algorithm).own]
    own = {name for name in code_files() if any(part in name.lower() for part in parts)}
    for module in tiny_model(algorithm).modules():
        source = sys.modules[type(module).__module__].__file__ or ''
        if source.startswith(str(REPO / 'mmdense')):
            own.add(Path(source).relative_to(REPO).as_posix())
    return own


@lru_cache(maxsize=None)
def words(text):
    """Return the line and the text of every identifier and every string but docstrings."""
    return list(_words(text))


def _words(text):
    tree = ast.parse(text)
    docstrings = set()
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            docstrings.add(id(body[0].value))
    for node in ast.walk(tree):
        line = getattr(node, 'lineno', None) or getattr(getattr(node, 'value', None), 'lineno', 0)
        for field in ('id', 'attr', 'name', 'asname', 'arg', 'module'):
            if isinstance(getattr(node, field, None), str):
                yield line, getattr(node, field)
        text = getattr(node, 'value', None) if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and id(node) not in docstrings:
            yield line, text


def lines_that_name(algorithm, text):
    """Return the numbers of the lines of code that name an algorithm, in any spelling; MoCo v3 is
    another one than MoCo."""
    small, large = algorithm.lower(), algorithm.upper()
    pattern = re.compile(rf'(?:{algorithm}|{small})(?![a-z]| ?v\d|V\d)|{large}(?![A-Z]|v\d|V\d)')
    return sorted({line for line, word in words(text) if pattern.search(word)})


@pytest.mark.parametrize('algorithm', algorithms())
def test_few_files_name_an_algorithm(algorithm):
    own, naming = own_files(algorithm), {}
    for name, path in code_files().items():
        lines = lines_that_name(algorithm, path.read_text(encoding='utf-8'))
        if lines and name not in own:
            naming[name] = lines
    found = '\n'.join(f'{name}: {", ".join(map(str, lines))}' for name, lines in naming.items())
    assert len(naming) <= LIMIT, f'{len(naming)} files name {algorithm}:\n{found}'


def test_it_finds_names():
    text = '''
"""ToyCL is in this docstring."""
import toycl_neck  # ToyCL
x = 1  # toycl
y = f'configs/toycl_r50_{x}.py'
z = dict(ToyCL=1)
w = ToyCLNeck, Toyclutter, 'toyclutter'
'''
    assert lines_that_name('ToyCL', text) == [3, 5, 6, 7]
    assert lines_that_name('ToyCon', 'ToyContrastHead(toy_contrast)') == []
