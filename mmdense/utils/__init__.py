# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .setup_env import register_all_modules

__all__ = ['register_all_modules']
