# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Plan a run: images, then settings with their reasons, then a config and its time."""

from mmdense.models.selfsup import Setting

from .config_text import config_text
from .labels import Labels, survey_labels
from .methods import (
    METHODS,
    Method,
    base_config,
    find_method,
    read_config,
    read_recipe,
)
from .needs import Needs, estimate_needs
from .plan import Plan, make_plan, plan_for_gpus, plan_text, published_weights
from .settings import Options, choose_threads, derive_settings
from .survey import (
    Images,
    Machine,
    Network,
    survey_images,
    survey_machine,
    survey_network,
)
from .timing import Estimate, Times, advise, duration, estimate, time_steps
from .view_settings import largest_size, read_views

__all__ = [
    'METHODS',
    'Estimate',
    'Images',
    'Labels',
    'Machine',
    'Method',
    'Needs',
    'Network',
    'Options',
    'Plan',
    'Setting',
    'Times',
    'advise',
    'base_config',
    'choose_threads',
    'config_text',
    'derive_settings',
    'duration',
    'estimate',
    'estimate_needs',
    'find_method',
    'largest_size',
    'make_plan',
    'plan_for_gpus',
    'plan_text',
    'published_weights',
    'read_config',
    'read_recipe',
    'read_views',
    'survey_images',
    'survey_labels',
    'survey_machine',
    'survey_network',
    'time_steps',
]
