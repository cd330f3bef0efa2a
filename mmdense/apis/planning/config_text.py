# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Write settings as a config that inherits another and holds only what differs."""

import os.path as osp
import textwrap
from keyword import iskeyword
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union

import mmdense
from mmdense.models.selfsup import Setting

_WIDTH = 100


class _Leaf(NamedTuple):
    value: str
    comment: str


def config_text(
    base: Union[str, List[str]],
    settings: Sequence[Setting],
    work_dir: str,
    command: str,
    changes: Optional[Dict[str, Any]] = None,
    imports: Sequence[str] = (),
) -> str:
    """Write the text of a config file.

    Args:
        base (str | list[str]): What to inherit: a path below ``configs``, an absolute path, or
            ``package::path``.
        settings (Sequence[Setting]): What differs from it.
        work_dir (str): Where the run is to write.
        command (str): The command that writes the config, for the reader.
        changes (dict, optional): What differs from ``base`` before the settings.
        imports (Sequence[str]): Modules that the config imports.
    """
    tree = _change_tree(changes or {})
    whole_pipeline = tree.pop('train_pipeline', _Leaf('_base_.train_pipeline', ''))
    pipeline: List[str] = []
    for setting in settings:
        comment = f'{setting.name}: {setting.reason}'
        for key, value in setting.config.items():
            if key.startswith('pipeline.'):
                pipeline += _comment(comment, '') if comment else []
                pipeline.append(f'{_place(key)} = {value!r}')
            else:
                _insert_leaf(tree, key, _Leaf(literal(value), comment))
            comment = ''  # once
    if pipeline or 'train_pipeline' in (changes or {}):
        pipeline = [f'train_pipeline = {whole_pipeline.value}', *pipeline, '']
        _insert_leaf(tree, 'train_dataloader.dataset.pipeline', _Leaf('train_pipeline', ''))
    lines = [
        *_comment(f'Written by `{command}`, mmdense {mmdense.__version__}.', ''),
        '# Runs as any config of OpenMMLab: mim train mmdense THIS_FILE, or in a checkout',
        '# python tools/train.py THIS_FILE',
        base_line(base),
    ]
    if imports:
        modules = dict(imports=list(imports), allow_failed_imports=False)
        lines.append(f'custom_imports = {literal(modules)}')
    lines += ['', *pipeline]
    for key, node in tree.items():
        lines += _render(key, node, '', ' = ')
    lines.append(f'work_dir = {work_dir!r}')
    return '\n'.join(lines) + '\n'


def base_line(base: Union[str, List[str]]) -> str:
    """Return the line of a config that inherits others.

    Args:
        base (str | list[str]): As in :func:`config_text`.
    """

    def complete(name: str) -> str:
        return name if '::' in name or osp.isabs(name) else f'mmdense::{name}'

    names = complete(base) if isinstance(base, str) else [complete(name) for name in base]
    return f"_base_ = __import__('mmdense') and {names!r}"


def literal(value: Any) -> str:
    """Return a value as configs write it: ``dict(a=1)``."""
    if _has_names(value):
        return f'dict({", ".join(f"{k}={literal(v)}" for k, v in value.items())})'
    if isinstance(value, dict):
        return f'{{{", ".join(f"{k!r}: {literal(v)}" for k, v in value.items())}}}'
    if isinstance(value, list):
        parts = list(map(literal, value))
        several = len(parts) > 1 or len(''.join(parts)) > 105
        if several and all(isinstance(part, dict) for part in value):  # one a line
            return '\n    '.join(['[', *(f'{part},' for part in parts)]) + '\n]'
        return f'[{", ".join(parts)}]'
    return repr(value)


def _has_names(value: Any) -> bool:
    """Return whether a value is a dict whose keys can be names of arguments."""
    return isinstance(value, dict) and all(k.isidentifier() and not iskeyword(k) for k in value)


def _change_tree(changes: Dict[str, Any]) -> Dict[str, Any]:
    """Return nested dicts with a leaf for each value that is no dict."""
    return {
        key: _change_tree(value) if value and _has_names(value) else _Leaf(literal(value), '')
        for key, value in changes.items()
    }


def _insert_leaf(tree: Dict[str, Any], key: str, leaf: _Leaf) -> None:
    *parents, last = key.split('.')
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = leaf


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
    """Return ``train_pipeline[1]['transforms'][0]`` for ``pipeline.1.transforms.0``."""
    names = key.split('.')[1:]
    return 'train_pipeline' + ''.join(f'[{n}]' if n.isdigit() else f'[{n!r}]' for n in names)
