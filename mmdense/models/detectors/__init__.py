# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Name the detectors that are subclasses of mmdet's, and import mmdet only when one is built."""

from importlib import import_module
from types import ModuleType

from torch import nn

from mmdense.registry import MODELS
from mmdense.utils.errors import InputError


def import_mmdet(user: str, module: str = 'mmdet.models') -> ModuleType:
    """Return mmdet's models, or a module that imports mmdet.

    Args:
        user (str): Name of what needs mmdet, for the message.
        module (str): Name of the module in full.

    Raises:
        InputError: mmdet, or mmcv's operators, are not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f'{user} needs mmdet and mmcv with compiled operators, which cannot be imported '
            f'({error}): see "Installation" in docs/get_started.md'
        ) from None


@MODELS.register_module()
def DETR(**kwargs) -> nn.Module:
    """Build mmdet's DETR, which keeps the weights that ``init_cfg`` fills in.

    Args:
        kwargs: Arguments of ``mmdet.DETR``.

    Returns:
        nn.Module: :class:`mmdense.models.detectors.detr.DETR`.

    Raises:
        InputError: mmdet, or mmcv's operators, are not installed.
    """
    return import_mmdet('DETR', f'{__name__}.detr').DETR(**kwargs)


@MODELS.register_module()
def PreNormDETR(**kwargs) -> nn.Module:
    """Build a DETR with a pre-norm transformer, as UP-DETR and DETReg train it.

    Args:
        kwargs: Arguments of ``mmdet.DETR``.

    Returns:
        nn.Module: :class:`mmdense.models.detectors.detr.PreNormDETR`.

    Raises:
        InputError: mmdet, or mmcv's operators, are not installed.
    """
    return import_mmdet('PreNormDETR', f'{__name__}.detr').PreNormDETR(**kwargs)
