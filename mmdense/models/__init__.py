# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmdense.utils.plugins import import_plugins

from .backbones import *  # noqa: F403
from .data_preprocessor import SelfSupDataPreprocessor  # noqa: F401
from .detectors import DETR, DeformableDETR, PreNormDETR  # noqa: F401
from .heads import *  # noqa: F403
from .layers import *  # noqa: F403
from .losses import *  # noqa: F403
from .necks import *  # noqa: F403
from .selfsup import *  # noqa: F403
from .utils import *  # noqa: F403

import_plugins()  # algorithms of other packages
