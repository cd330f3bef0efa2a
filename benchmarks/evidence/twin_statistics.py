# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A probe: what the statistics of the twin's BatchNorm are worth (configs/probes.py)."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@HOOKS.register_module()
class RunningTwinHook(Hook):
    """The twin normalises by the online network's running statistics, not by those of its batch."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        borrow_statistics(model.encoder_k.module, model.online_network())


def borrow_statistics(twin: nn.Module, online: nn.Module) -> None:
    """The twin's BatchNorm takes those of a network that is structured alike, until next time."""
    for ours, theirs in zip(twin.modules(), online.modules()):
        if isinstance(ours, _BatchNorm):
            ours.load_state_dict({**ours.state_dict(), **dict(theirs.named_buffers())})
            ours.eval()
