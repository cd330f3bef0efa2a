# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .export import describe_product, export_backbone, save_backbone
from .formats import Recognised, recognise
from .io import read_checkpoint
from .model_config import saved_model_config
from .self_sup_pretrained import SelfSupPretrained

__all__ = [
    'Recognised',
    'SelfSupPretrained',
    'describe_product',
    'export_backbone',
    'read_checkpoint',
    'recognise',
    'save_backbone',
    'saved_model_config',
]
