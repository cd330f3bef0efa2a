# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .hooks import *  # noqa: F403
from .optimizers import *  # noqa: F403
from .schedulers import *  # noqa: F403
