# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .densecl_neck import DenseCLNeck
from .projection_mlp import ProjectionMLP
from .semantic_grouping import SemanticGrouping

__all__ = ['DenseCLNeck', 'ProjectionMLP', 'SemanticGrouping']
