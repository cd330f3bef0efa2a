# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Read, recognise, convert and load checkpoints."""

from .export import convert_checkpoint, convert_detector, describe_product, save_backbone
from .formats import Recognised, check_finite, recognise
from .io import read_checkpoint
from .model_config import saved_model_config
from .resume import latest_complete_checkpoint
from .self_sup_pretrained import SelfSupPretrained

__all__ = [
    'Recognised',
    'SelfSupPretrained',
    'check_finite',
    'convert_checkpoint',
    'convert_detector',
    'describe_product',
    'latest_complete_checkpoint',
    'read_checkpoint',
    'recognise',
    'save_backbone',
    'saved_model_config',
]
