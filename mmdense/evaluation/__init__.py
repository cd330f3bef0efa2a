# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .classifiers import LinearProbe, NearestNeighbours
from .dense_features import calibrate_on, evaluate_features
from .labelled_data import LabelledBoxes, LabelledImage, LabelledMaps
from .unsupervised_iou import UnsupervisedIoU

__all__ = [
    'LabelledBoxes',
    'LabelledImage',
    'LabelledMaps',
    'LinearProbe',
    'NearestNeighbours',
    'UnsupervisedIoU',
    'calibrate_on',
    'evaluate_features',
]
