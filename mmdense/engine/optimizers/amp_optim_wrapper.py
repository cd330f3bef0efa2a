# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Mixed precision on GPUs, as MMEngine has it, and on CPUs."""

import logging
from typing import Optional, Union

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper as _AmpOptimWrapper
from mmengine.optim import OptimWrapper
from mmengine.optim.optimizer.amp_optimizer_wrapper import GradScaler

from mmdense.registry import OPTIM_WRAPPERS

# what PyTorch can report of a CPU, by the names of its functions: PyTorch 2.1 has neither
_UNITS = dict(AMX='_is_amx_tile_supported', AVX512_BF16='_is_avx512_bf16_supported')


def find_bfloat16_units() -> Optional[str]:
    """Name the units of this CPU that compute in bfloat16 faster than in float32.

    Returns:
        str, optional: 'AMX', 'AVX512_BF16' or both; '' if PyTorch reports that there is none; None
        if this version of PyTorch cannot report it. PyTorch computes bfloat16 on every CPU, but
        without such a unit it takes about twice the time of float32.
    """
    reports = {unit: getattr(torch.cpu, name, None) for unit, name in _UNITS.items()}
    if not any(reports.values()):
        return None
    return ' and '.join(unit for unit, report in reports.items() if report and report())


def describe_slow_bfloat16() -> str:
    """Say why bfloat16 saves no time on this CPU; '' where it does."""
    units = find_bfloat16_units()
    if units:
        return ''
    if units is None:
        return f'PyTorch {torch.__version__} cannot report whether bfloat16 is fast on this CPU'
    return 'this CPU computes in bfloat16 more slowly than in float32: no AMX, no AVX512_BF16'


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(_AmpOptimWrapper):
    """Train in mixed precision: on a GPU as MMEngine's class of this name, and also on a CPU.

    On a CPU autocast computes in bfloat16, which has the range of float32: no loss needs to be
    scaled. Parameters, their gradients, the optimizer's state and the buffers stay float32.

    Args:
        loss_scale (str | float | dict): Arguments of the gradient scaler, see MMEngine's class.
            'dynamic' scales nothing on a CPU. Defaults to 'dynamic'.
        dtype (str | torch.dtype, optional): Precision of autocast. None stands for float16 on a GPU
            and for bfloat16 on a CPU. Defaults to None.
        use_fsdp (bool): See MMEngine's class. Defaults to False.
        kwargs: Arguments of MMEngine's ``OptimWrapper``.

    Raises:
        ValueError: On a CPU: ``dtype`` is not bfloat16, ``use_fsdp`` is True, or ``loss_scale`` is
            to scale, and PyTorch is too old for that.
        TypeError: ``loss_scale`` is none of these.
    """

    def __init__(
        self,
        loss_scale: Union[str, float, dict] = 'dynamic',
        dtype: Union[str, torch.dtype, None] = None,
        use_fsdp: bool = False,
        **kwargs,
    ) -> None:
        if get_device() != 'cpu':
            super().__init__(loss_scale=loss_scale, dtype=dtype, use_fsdp=use_fsdp, **kwargs)
            return
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise ValueError(f"dtype is {dtype}: on a CPU it must be 'bfloat16'")
        if use_fsdp:
            raise ValueError('use_fsdp=True needs a GPU: leave it out')
        slow = describe_slow_bfloat16()
        if slow:
            print_log(f'Mixed precision may cost time: {slow}.', 'current', logging.WARNING)
        OptimWrapper.__init__(self, **kwargs)  # MMEngine's class refuses a machine without GPU
        self.cast_dtype = torch.bfloat16
        self.loss_scaler = _build_cpu_scaler(loss_scale)
        self._scale_update_param = loss_scale if isinstance(loss_scale, float) else None


def _build_cpu_scaler(loss_scale: Union[str, float, dict]) -> torch.cuda.amp.GradScaler:
    """Build the gradient scaler for the losses of a CPU."""
    if loss_scale == 'dynamic':
        arguments = dict(enabled=False)
    elif isinstance(loss_scale, float):
        arguments = dict(init_scale=loss_scale)
    elif isinstance(loss_scale, dict):
        arguments = dict(loss_scale)
    else:
        raise TypeError(f"loss_scale must be a float, a dict or 'dynamic', but is {loss_scale!r}")
    if not arguments.get('enabled', True):
        return GradScaler(enabled=False)
    if not hasattr(torch.amp, 'GradScaler'):
        raise ValueError(
            f'loss_scale needs PyTorch 2.3 on a CPU, this is {torch.__version__}: leave it out, '
            'bfloat16 needs none'
        )
    return torch.amp.GradScaler('cpu', **arguments)
