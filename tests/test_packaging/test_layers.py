# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Imports go down only, also those inside functions: docs/design.md names the floors."""

import ast
from pathlib import Path

import mmdense

ROOT = Path(mmdense.__file__).parent
# From the ground up. The rooms of one floor do not know each other.
FLOORS = [
    {'version', 'compat', 'registry'},
    {'utils'},
    {'datasets'},
    {'models'},
    {'checkpoints'},
    {'evaluation'},
    {'engine', 'visualization'},
    {'apis'},
    {'cli'},
]
# The two faces of the package, which hand on what is above them.
FACES = {'__init__.py', 'utils/setup_env.py'}


def _floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def _imported_rooms(path: Path):
    """Yields (line, room) of every import of mmdense in a file."""
    package = ('mmdense', *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join([*base, *([node.module] if node.module else [])])
            names = [f'{module}.{alias.name}' for alias in node.names]
        for name in names:
            parts = name.split('.')
            if parts[0] == 'mmdense' and len(parts) > 1 and parts[1] != '__version__':
                yield node.lineno, parts[1]


def test_imports_go_down():
    wrong = []
    for path in sorted(ROOT.rglob('*.py')):
        name = path.relative_to(ROOT).as_posix()
        room = name.split('/')[0].replace('.py', '')
        if name in FACES or room in ('__main__', 'configs', '.mim'):
            continue
        for line, other in _imported_rooms(path):
            up = _floor(other) > _floor(room)
            beside = _floor(other) == _floor(room) and other != room and _floor(room) > 0
            if up or beside:
                wrong.append(f'{name}:{line} {room} imports {other}')
    assert not wrong, '\n'.join(wrong)


def test_every_room_has_a_floor():
    rooms = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.glob('*.py'))} - {'configs'}
    assert rooms <= set().union(*FLOORS)
