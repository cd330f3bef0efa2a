# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The model of the config that MMEngine writes into a checkpoint."""

import ast
from contextlib import suppress
from typing import Any, Optional, Sequence

import mmengine.registry as root
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import nn

from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError


def saved_model_config(
    meta: dict, name: str = 'checkpoint', parts: Optional[Sequence[str]] = None
) -> Optional[dict]:
    """``model`` of ``meta['cfg']``, read as data; of an exported backbone, which has none, what
    its run wrote of it into ``meta['mmdense']``.

    MMEngine would run the text as a program, and would take any ``type`` that
    it does not know for the path of a function, import and call it; a file
    from elsewhere must do neither.

    Args:
        meta (dict): Of a checkpoint.
        name (str): Of the file, for messages.
        parts (Sequence[str], optional): Keys of ``model`` that are going to be
            built; the others' types are not looked at. Defaults to all of it.

    Returns:
        dict or None: Types in it are modules of MMEngine, mmcv, mmpretrain and
        mmdense. ``init_cfg`` and ``pretrained`` are left out at every level:
        the weights are in the checkpoint, and these could fetch others. None
        where there is no config, or ``model`` is not written out.

    Raises:
        CheckpointError: When it asks for anything else to be built.
    """
    model = _written_model(meta)
    if model is None:
        return None
    model = _without_initialisers(model)
    _check_types(model if parts is None else [model.get(part) for part in parts], name)
    return model


def saved_backbone_config(meta: dict) -> Optional[dict]:
    """The ``backbone`` of :func:`saved_model_config`; None too where it asks for anything else to
    be built."""
    with suppress(CheckpointError):
        backbone = (saved_model_config(meta, parts=['backbone']) or {}).get('backbone')
        return backbone if isinstance(backbone, dict) and 'type' in backbone else None
    return None


def _written_model(meta: dict) -> Optional[dict]:
    try:
        for node in ast.parse(meta['cfg']).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'model':
                return dict(ast.literal_eval(_DictCalls().visit(node.value)))
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        pass
    own = meta.get('mmdense')
    backbone = own.get('backbone') if isinstance(own, dict) else None
    return dict(backbone=backbone) if isinstance(backbone, dict) else None


def _without_initialisers(node: Any) -> Any:
    if isinstance(node, dict):
        skipped = ('init_cfg', 'pretrained')
        return {k: _without_initialisers(v) for k, v in node.items() if k not in skipped}
    if isinstance(node, (list, tuple)):
        return type(node)(_without_initialisers(item) for item in node)
    return node


class _DictCalls(ast.NodeTransformer):
    """``dict(a=1)`` → ``{'a': 1}``, so that ``ast.literal_eval`` takes it."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or node.args:
            return node
        keys = [ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys, [keyword.value for keyword in node.keywords])


_SCOPES = dict(mmengine=root.MODELS, mmpretrain=MMPRETRAIN_MODELS, mmdense=MODELS)
# Modules of mmpretrain that fetch a model, and perhaps its code, from elsewhere.
_FETCHES = ('.timm', '.hugging', '.multimodal')


def _check_types(node: Any, name: str) -> None:
    if isinstance(node, (list, tuple)):
        for item in node:
            _check_types(item, name)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == 'type' and not _is_registered(value) or key == '_scope_' and value not in _SCOPES:
            raise CheckpointError(
                f'{name} asks in its config for {key}={value!r}, which is no plain module of '
                'mmengine, mmcv, mmpretrain or mmdense: refused'
            )
        _check_types(value, name)


def _is_registered(kind: Any) -> bool:
    """Whether it names a layer or a model."""
    if not isinstance(kind, str):
        return False
    scope, _, short = kind.rpartition('.')
    if scope and scope not in _SCOPES:
        return False
    for registry in [_SCOPES[scope]] if scope else _SCOPES.values():
        registry.import_from_location()
        found = registry.module_dict.get(short)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return not any(part in found.__module__ for part in _FETCHES)
    return False
