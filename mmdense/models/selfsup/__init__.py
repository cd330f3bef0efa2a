# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .base import DenseSelfSupervisor
from .densecl import DenseCL
from .pixpro import PixPro
from .slotcon import SlotCon

__all__ = ['DenseCL', 'DenseSelfSupervisor', 'PixPro', 'SlotCon']
