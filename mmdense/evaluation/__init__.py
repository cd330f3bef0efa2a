# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .unsupervised_iou import UnsupervisedIoU

__all__ = ['UnsupervisedIoU']
