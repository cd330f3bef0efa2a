# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .densecl_neck import DenseCLNeck
from .densesiam_neck import DenseSiamDecoder, DenseSiamNeck
from .detco_neck import DetCoNeck
from .dino_neck import DINONeck, WeightNormLinear
from .dropout_mlp import DropoutMLP
from .fpn import FPN
from .global_local_neck import GlobalLocalNeck
from .projection_mlp import ProjectionMLP
from .simclr_neck import SimCLRNeck
from .simple_feature_pyramid import SimpleFeaturePyramid
from .stage_neck import StageNeck

__all__ = [
    'DINONeck',
    'DenseCLNeck',
    'DenseSiamDecoder',
    'DenseSiamNeck',
    'DetCoNeck',
    'DropoutMLP',
    'FPN',
    'GlobalLocalNeck',
    'ProjectionMLP',
    'SimCLRNeck',
    'SimpleFeaturePyramid',
    'StageNeck',
    'WeightNormLinear',
]
