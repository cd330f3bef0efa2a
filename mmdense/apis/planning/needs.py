# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Estimate what a run needs, before it begins and without a step of it."""

from typing import NamedTuple

from mmengine.config import Config

from mmdense.models.selfsup import MomentumSelfSupervisor

from .plan import Plan
from .settings import bytes_of_batch
from .timing import EFFICIENCY, GPU_FLOPS, GPU_STEP

# A step next to the gradients of the trained views: the momentum encoder, the loss, the optimizer.
_WHOLE_STEP = 1.5


class Needs(NamedTuple):
    """Hold what a run needs.

    Attributes:
        seconds (float): Time of the training, from one forward and backward pass of the backbone on
            a CPU, or from its operations on a GPU.
        memory (int): Bytes at most, of a GPU or else of the main memory for all processes.
        disk (int): Bytes of all files at most.
    """

    seconds: float
    memory: int
    disk: int


def estimate_needs(plan: Plan, cfg: Config) -> Needs:
    """Estimate the time, the memory and the disk of a run; a pure function.

    Args:
        plan (Plan): Plan of the run.
        cfg (Config): Config of the run.
    """
    machine, network, processes = plan.machine, plan.network, plan.options.gpus
    batch, epochs = cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs
    steps = epochs * (plan.images.count // (batch * processes))
    if machine.device == 'cpu':  # several processes share the cores
        step = _WHOLE_STEP * network.seconds_per_image * batch * processes
    else:
        step = max(_WHOLE_STEP * network.flops_per_image * batch / GPU_FLOPS, GPU_STEP)
        step /= EFFICIENCY if processes > 1 else 1
    memory = bytes_of_batch(batch, network, bool(machine.half))
    if machine.device == 'cpu':
        memory = processes * (memory + 10**9)  # Python with PyTorch and the data loader
    momentum = issubclass(plan.method.kind, MomentumSelfSupervisor)
    states = 2 if 'Adam' in str(cfg.optim_wrapper.optimizer.type) else 1
    copies = 1 + momentum + states
    kept = cfg.default_hooks.checkpoint.get('max_keep_ckpts', -1)
    # without a limit all stay; one more is there while it is written
    saved = epochs // max(1, cfg.default_hooks.checkpoint.get('interval', 1)) + 1
    number = saved if kept < 1 else min(kept, saved) + 1
    # besides, the backbone and its snapshots in half precision
    disk = 4 * network.parameters * (number * copies + 3)
    return Needs(steps * step, int(memory), disk)
