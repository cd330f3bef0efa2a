# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""From images to the settings of a run, each with its reason; to its config; to its time."""

from .config_text import config_text
from .labels import Labels, survey_labels
from .plan import Plan, make_plan, plan_for_gpus, published_weights
from .settings import Options, Setting, derive_settings
from .survey import (
    METHODS,
    Images,
    Machine,
    Network,
    base_config,
    read_config,
    read_recipe,
    survey_images,
    survey_machine,
    survey_network,
)
from .timing import Estimate, Times, advise, duration, estimate, time_steps

__all__ = [
    'METHODS',
    'Estimate',
    'Images',
    'Labels',
    'Machine',
    'Network',
    'Options',
    'Plan',
    'Setting',
    'Times',
    'advise',
    'base_config',
    'config_text',
    'derive_settings',
    'duration',
    'estimate',
    'make_plan',
    'plan_for_gpus',
    'published_weights',
    'read_config',
    'read_recipe',
    'survey_images',
    'survey_labels',
    'survey_machine',
    'survey_network',
    'time_steps',
]
