# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Name the detectors that are subclasses of mmdet's, and import mmdet only when one is built."""

import sys
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Callable, Iterator

import torch
from torch import nn

from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

# Types in the config of a detector, of mmdet or here, that are built where a checkpoint names them:
# none fetches or runs anything.
SAFE_TYPES = (
    *('DETR', 'PreNormDETR', 'ChannelMapper', 'DETRHead', 'HungarianAssigner'),
    *('ConditionalDETR', 'ConditionalDETRHead', 'FocalLossCost', 'FocalLoss'),
    *('ClassificationCost', 'BBoxL1Cost', 'IoUCost', 'CrossEntropyLoss', 'L1Loss', 'GIoULoss'),
    *('DeformableDETR', 'DeformableDETRHead'),
)
_OPS = 'mmcv._ext'


def import_mmdet(user: str, module: str = 'mmdet.models') -> ModuleType:
    """Return mmdet's models, or a module that imports mmdet.

    mmdet imports all of mmcv's compiled operators. Where mmcv has none, those that a network does
    not call are not missed, and one that it calls raises an error: DETR calls none.

    Args:
        user (str): Name of what needs mmdet, for the message.
        module (str): Name of the module in full.

    Raises:
        InputError: mmdet is not installed.
    """
    try:
        with _operators():
            return import_module(module)
    except ImportError as error:
        raise InputError(
            f'{user} needs mmdet, which cannot be imported ({error}): see "Installation" in '
            'docs/get_started.md'
        ) from None


def has_operators() -> bool:
    """Return whether mmcv has its compiled operators."""
    try:
        import_module(_OPS)
    except ImportError:
        return False
    return True


@contextmanager
def _operators() -> Iterator[None]:
    """Let mmdet be imported in the context without mmcv's compiled operators."""
    if has_operators():
        yield
        return
    before = {_OPS: sys.modules[_OPS]} if _OPS in sys.modules else {}
    sys.modules[_OPS] = _MissingOperators(_OPS)
    try:
        yield
    finally:
        del sys.modules[_OPS]
        sys.modules.update(before)


class _MissingOperators(ModuleType):
    """Take the place of mmcv's compiled operators; one that is called raises an InputError."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(name)

        def operator(*args, **kwargs):
            raise InputError(
                f'{name} needs mmcv with compiled operators, which is not installed: see '
                '"Installation" in docs/get_started.md'
            )

        return operator


@MODELS.register_module()
def DETR(**kwargs) -> nn.Module:
    """Build mmdet's DETR, which keeps the weights that ``init_cfg`` fills in.

    Args:
        kwargs: Arguments of ``mmdet.DETR``.

    Returns:
        nn.Module: :class:`mmdense.models.detectors.detr.DETR`.

    Raises:
        InputError: mmdet is not installed.
    """
    return import_mmdet('DETR', f'{__name__}.detr').DETR(**kwargs)


@MODELS.register_module()
def ConditionalDETR(**kwargs) -> nn.Module:
    """Build mmdet's Conditional DETR, initialized as its authors do.

    Args:
        kwargs: Arguments of ``mmdet.ConditionalDETR``.

    Returns:
        nn.Module: :class:`mmdense.models.detectors.conditional_detr.ConditionalDETR`.

    Raises:
        InputError: mmdet is not installed.
    """
    module = import_mmdet('ConditionalDETR', f'{__name__}.conditional_detr')
    return module.ConditionalDETR(**kwargs)


@MODELS.register_module()
def PreNormDETR(**kwargs) -> nn.Module:
    """Build a DETR with a pre-norm transformer, as UP-DETR and DETReg train it.

    Args:
        kwargs: Arguments of ``mmdet.DETR``.

    Returns:
        nn.Module: :class:`mmdense.models.detectors.detr.PreNormDETR`.

    Raises:
        InputError: mmdet is not installed.
    """
    return import_mmdet('PreNormDETR', f'{__name__}.detr').PreNormDETR(**kwargs)


@MODELS.register_module()
def DeformableDETR(**kwargs) -> nn.Module:
    """Build mmdet's Deformable DETR, which keeps the weights that ``init_cfg`` fills in.

    Args:
        kwargs: Arguments of ``mmdet.DeformableDETR``.

    Returns:
        nn.Module: :class:`mmdense.models.detectors.deformable_detr.DeformableDETR`.

    Raises:
        InputError: mmdet is not installed; or mmcv has no compiled operators, which its attention
            needs on a GPU.
    """
    module = import_mmdet('DeformableDETR', f'{__name__}.deformable_detr')
    if torch.cuda.is_available() and not has_operators():
        raise InputError(
            'DeformableDETR needs mmcv with compiled operators on a GPU, which is not installed: '
            'see "Installation" in docs/get_started.md'
        )
    return module.DeformableDETR(**kwargs)
