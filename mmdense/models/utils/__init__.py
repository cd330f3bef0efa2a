# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .correspondence import gather_cells, match_cells
from .key_queue import KeyQueue, unflatten_queues
from .momentum_encoder import MomentumEncoder
from .shuffled_bn import shuffled_forward

__all__ = [
    'KeyQueue',
    'MomentumEncoder',
    'gather_cells',
    'match_cells',
    'shuffled_forward',
    'unflatten_queues',
]
