# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .backbone_export import BackboneExportHook
from .key_queue_log import KeyQueueLogHook
from .lambda_warmup import LambdaWarmupHook
from .unreadable_images import UnreadableImagesHook, check_enough_images

__all__ = [
    'BackboneExportHook',
    'KeyQueueLogHook',
    'LambdaWarmupHook',
    'UnreadableImagesHook',
    'check_enough_images',
]
