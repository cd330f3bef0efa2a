# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .base import DenseSelfSupervisor
from .densecl import DenseCL
from .detco import DetCo
from .pixpro import PixPro
from .slotcon import SlotCon

__all__ = ['DenseCL', 'DenseSelfSupervisor', 'DetCo', 'PixPro', 'SlotCon']
