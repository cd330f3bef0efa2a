# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .backbone_export import BackboneExportHook
from .checkpoint import CheckpointHook
from .dense_evaluation import DenseEvaluationHook
from .event_log import EventLogHook
from .exact_resume import ExactResumeHook
from .gradients import ClipEachGradientHook, FreezeLayersHook
from .health import HealthMonitorHook
from .invalid_values import CheckInvalidValuesHook
from .key_queue_log import KeyQueueLogHook
from .lambda_warmup import LambdaWarmupHook
from .loss_log import LossLogHook
from .momentum_encoder import MomentumEncoderHook
from .preemption import PreemptionHook
from .progress_bar import ProgressBarHook
from .region_warmup import RegionWarmupHook
from .unreadable_images import UnreadableImagesHook, check_enough_images

__all__ = [
    'BackboneExportHook',
    'CheckInvalidValuesHook',
    'CheckpointHook',
    'ClipEachGradientHook',
    'DenseEvaluationHook',
    'EventLogHook',
    'ExactResumeHook',
    'FreezeLayersHook',
    'HealthMonitorHook',
    'KeyQueueLogHook',
    'LambdaWarmupHook',
    'LossLogHook',
    'MomentumEncoderHook',
    'PreemptionHook',
    'ProgressBarHook',
    'RegionWarmupHook',
    'UnreadableImagesHook',
    'check_enough_images',
]
