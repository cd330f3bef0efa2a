# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Settings as the text of a config that inherits another and holds only what differs."""

import textwrap
from typing import Any, Dict, List, NamedTuple, Sequence

import mmdense

from .settings import Setting

_WIDTH = 100


class _Leaf(NamedTuple):
    value: str
    comment: str


def config_text(base: str, settings: Sequence[Setting], work_dir: str, command: str) -> str:
    """The text of a config file.

    Args:
        base (str): What to inherit, of :func:`base_config`.
        settings (Sequence[Setting]): What differs from it.
        work_dir (str): Where the run is to write.
        command (str): That which writes it, for the reader.
    """
    tree: Dict[str, Any] = {}
    pipeline: List[str] = []
    for setting in settings:
        comment = f'{setting.name}: {setting.reason}'
        for key, value in setting.config.items():
            if key.startswith('pipeline.'):
                if comment:
                    pipeline += _comment(comment, '')
                pipeline.append(f'{_place(key)} = {value!r}')
            else:
                *parents, last = key.split('.')
                node = tree
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[last] = _Leaf(_literal(value), comment)
            comment = ''  # once
    if pipeline:
        pipeline = ['train_pipeline = _base_.train_pipeline', *pipeline, '']
        node = tree['train_dataloader'].setdefault('dataset', {})
        node['pipeline'] = _Leaf('train_pipeline', '')
    lines = [
        *_comment(f'Written by `{command}`, mmdense {mmdense.__version__}.', ''),
        '# Goes on as any config of OpenMMLab: mim train mmdense THIS_FILE, or in a checkout',
        '# python tools/train.py THIS_FILE',
        f"_base_ = __import__('mmdense') and 'mmdense::{base}'",
        '',
        *pipeline,
    ]
    for key, node in tree.items():
        lines += _render(key, node, '', ' = ')
    lines.append(f'work_dir = {work_dir!r}')
    return '\n'.join(lines) + '\n'


def _render(key: str, node: Any, indent: str, equals: str) -> List[str]:
    end = ',' if indent else ''
    if isinstance(node, _Leaf):
        return [*_comment(node.comment, indent), f'{indent}{key}{equals}{node.value}{end}']
    inner = [line for k, n in node.items() for line in _render(k, n, indent + '    ', '=')]
    return [f'{indent}{key}{equals}dict(', *inner, f'{indent}){end}']


def _comment(text: str, indent: str) -> List[str]:
    width = _WIDTH - len(indent) - 2
    return [f'{indent}# {line}' for line in textwrap.wrap(text, width, break_on_hyphens=False)]


def _place(key: str) -> str:
    """``pipeline.1.transforms.0`` → ``train_pipeline[1]['transforms'][0]``."""
    names = key.split('.')[1:]
    return 'train_pipeline' + ''.join(f'[{n}]' if n.isdigit() else f'[{n!r}]' for n in names)


def _literal(value: Any) -> str:
    """As configs are written: ``dict(a=1)``."""
    if isinstance(value, dict):
        return f'dict({", ".join(f"{k}={_literal(v)}" for k, v in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(_literal, value))}]'
    return repr(value)
