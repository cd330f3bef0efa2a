# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Read the model of the config that MMEngine writes into a checkpoint, as data."""

import ast
from contextlib import suppress
from typing import Any, Optional, Sequence, Tuple, Union

import mmengine.registry
import mmpretrain.registry
from torch import nn

import mmdense.registry
from mmdense.models.detectors import SAFE_TYPES
from mmdense.utils.errors import CheckpointError


def saved_model_config(
    meta: dict, name: str = 'checkpoint', parts: Optional[Sequence[str]] = None
) -> Optional[dict]:
    """Return ``model`` of ``meta['cfg']``, read as data.

    An exported backbone has none, and its run wrote the backbone's config into
    ``meta['mmdense']``.

    MMEngine would run the text as a program, and would take any ``type`` that
    it does not know for the path of a function, import and call it; a file
    from elsewhere must do neither.

    Args:
        meta (dict): Of a checkpoint.
        name (str): Of the file, for messages.
        parts (Sequence[str], optional): Keys of ``model`` that are going to be
            built; the types of others are not checked. Defaults to all of it.

    Returns:
        dict or None: Types in it are modules of MMEngine, mmcv, mmpretrain and
        mmdense, and :data:`mmdense.models.detectors.SAFE_TYPES`. ``init_cfg`` and
        ``pretrained`` are left out at every level: the weights are in the
        checkpoint, and these could fetch others. None where there is no config,
        or ``model`` is not written out.

    Raises:
        CheckpointError: When it asks for anything else to be built.
    """
    model = _written_model(meta)
    if model is None:
        return None
    model = _without_initialisers(model)
    built = model if parts is None else [model.get(part) for part in parts]
    foreign = find_foreign_type(built, ['MODELS'], nn.Module)
    if foreign is not None:
        raise CheckpointError(
            f'{name} asks in its config for {foreign[0]}={foreign[1]!r}, which is no plain module '
            'of mmengine, mmcv, mmpretrain or mmdense: refused'
        )
    return model


def saved_backbone_config(meta: dict) -> Optional[dict]:
    """Return the ``backbone`` of :func:`saved_model_config` in the form for other packages; None
    too where it asks for anything else to be built."""
    with suppress(CheckpointError):
        backbone = (saved_model_config(meta, parts=['backbone']) or {}).get('backbone')
        known = isinstance(backbone, dict) and 'type' in backbone
        return as_transferred(backbone) if known else None
    return None


def as_transferred(backbone: dict) -> dict:
    """Return the config of a backbone in the form that returns maps in other packages.

    A backbone that is special in training has ``transfer_config``: that of MAE hides patches, and
    its weights are those of a vision transformer. All others are returned as they are.
    """
    kind = backbone.get('type')
    registry = mmdense.registry.MODELS
    registry.import_from_location()
    if isinstance(kind, str):
        kind = registry.module_dict.get(kind.rpartition('.')[2])
    convert = getattr(kind, 'transfer_config', None)
    return backbone if convert is None else convert(backbone)


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
    """Turn ``dict(a=1)`` into ``{'a': 1}``, so that ``ast.literal_eval`` takes it."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or node.args:
            return node
        keys = [ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys, [keyword.value for keyword in node.keywords])


_REGISTRIES = dict(
    mmengine=mmengine.registry, mmpretrain=mmpretrain.registry, mmdense=mmdense.registry
)
# Modules of mmpretrain that fetch a model, and perhaps its code, from elsewhere.
FETCHES = ('.timm', '.hugging', '.multimodal')


def find_foreign_type(
    node: Any, registries: Sequence[str], bases: Union[type, Tuple[type, ...]]
) -> Optional[Tuple[str, Any]]:
    """Find what a config asks for apart from registered classes of some kinds.

    A config from elsewhere is built only if this finds nothing: MMEngine takes any other ``type``
    for the path of a function, imports it and calls it.

    Args:
        node (Any): A config, or a part of one.
        registries (Sequence[str]): Names of the registries to look in, as ``['MODELS']``, of
            MMEngine (with mmcv), mmpretrain and mmdense.
        bases (type or tuple[type, ...]): Classes that the registered ones must inherit from.

    Returns:
        tuple[str, Any], optional: The first key and value that ask for something else; None where
        none does.
    """
    if isinstance(node, (list, tuple)):
        return next(filter(None, (find_foreign_type(n, registries, bases) for n in node)), None)
    if not isinstance(node, dict):
        return None
    for key, value in node.items():
        if key == 'type' and not _is_registered(value, registries, bases):
            return key, value
        if key == '_scope_' and value not in _REGISTRIES:
            return key, value
        found = find_foreign_type(value, registries, bases)
        if found is not None:
            return found
    return None


def _is_registered(
    kind: Any, registries: Sequence[str], bases: Union[type, Tuple[type, ...]]
) -> bool:
    """Return whether a type names a registered class that inherits from ``bases``."""
    if not isinstance(kind, str):
        return False
    scope, _, short = kind.rpartition('.')
    if scope in ('', 'mmdet', 'mmdense') and short in SAFE_TYPES and 'MODELS' in registries:
        return True
    if scope and scope not in _REGISTRIES:
        return False
    for module in [_REGISTRIES[scope]] if scope else _REGISTRIES.values():
        for registry in (getattr(module, name) for name in registries):
            registry.import_from_location()
            found = registry.module_dict.get(short)
            if isinstance(found, type) and issubclass(found, bases):
                return not any(part in found.__module__ for part in FETCHES)
    return False
