# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .backbone_export import BackboneExportHook
from .checkpoint import CheckpointHook
from .exact_resume import ExactResumeHook
from .key_queue_log import KeyQueueLogHook
from .lambda_warmup import LambdaWarmupHook
from .loss_log import LossLogHook
from .momentum_twin import MomentumTwinHook
from .preemption import PreemptionHook
from .unreadable_images import UnreadableImagesHook, check_enough_images

__all__ = [
    'BackboneExportHook',
    'CheckpointHook',
    'ExactResumeHook',
    'KeyQueueLogHook',
    'LambdaWarmupHook',
    'LossLogHook',
    'MomentumTwinHook',
    'PreemptionHook',
    'UnreadableImagesHook',
    'check_enough_images',
]
