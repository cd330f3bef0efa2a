# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Time some real steps, and estimate from them how long a run takes."""

import io
import logging
import os
import resource
import sys
import tempfile
import time
from contextlib import redirect_stdout
from itertools import islice
from statistics import median
from typing import Callable, Iterator, List, NamedTuple, Optional

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.flop_counter import FlopCounterMode

from mmdense.engine.training import prepare_training, train_parser
from mmdense.utils.mmengine_patches import end_workers, initialize_weights

from .settings import choose_threads
from .survey import Images, Machine
from .view_settings import find_step

# operations a second of one GPU in mixed precision, as in docs/scaling.md
GPU_FLOPS = 60e12
# seconds at least: a step starts thousands of small operations
GPU_STEP = 0.03
EIGHT = 8  # GPUs that a plan is also made for
# share of several times one GPU's speed: gradients travel, and all wait for the slowest
EFFICIENCY = 0.9


class Times(NamedTuple):
    """Hold the times of one process.

    Attributes:
        batch (int): Images in a step.
        data (float): Seconds in which the data loader makes a batch.
        step (float): Seconds of a step, its data being there.
        flops (float): Operations of a step, multiplications and additions apart.
        memory (int): Bytes at most, of the GPU or else of the process.
        threads (int): Threads that a step was computed with on a CPU.
    """

    batch: int
    data: float
    step: float
    flops: float
    memory: int
    threads: int = 1


def time_steps(
    text: str,
    steps: int = 5,
    seconds: float = 60,
    report: Callable[[str], None] = lambda what: None,
) -> Times:
    """Time real steps of a config, and leave nothing behind.

    Args:
        text (str): Text of the config.
        steps (int): Number of steps to take the median of.
        seconds (float): No step begins after so many seconds.
        report (Callable): Called with a few words whenever something begins.
    """
    logger = MMLogger.get_current_instance()
    level = logger.level
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'config.py')
        with open(path, 'w') as f:
            f.write(text)
        words = [path, '--work-dir', os.path.join(folder, 'run')]
        if isinstance(Config.fromfile(path).model.get('teacher'), dict):
            # random weights take the same time, and are not downloaded
            words += ['--cfg-options', 'model.teacher.checkpoint=None']
        args = train_parser().parse_args(words)
        with redirect_stdout(io.StringIO()):  # the log's lines
            runner = prepare_training(args)
            try:
                return _time(runner, steps, seconds, report)
            finally:
                runner.visualizer.close()
                _close_log_files(runner.logger)
                logger.setLevel(level)


def _close_log_files(logger: logging.Logger) -> None:
    """Close and remove the files of a logger, whose folder goes."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            handler.close()
            logger.removeHandler(handler)


def _time(runner: Runner, steps: int, seconds: float, report: Callable[[str], None]) -> Times:
    # for the momentum encoder's schedule
    runner.message_hub.update_info('max_iters', runner.max_iters)
    initialize_weights(runner)
    model, cuda = runner.model, torch.cuda.is_available()
    loader = runner.train_dataloader
    model.train()
    report('loading batches')
    batches = _endless(loader)
    batch = next(batches)
    data = _time_loader(batches, max(loader.num_workers, 1), seconds)
    del batches
    end_workers(loader)  # they take no cores from the steps
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    report('the first step, which is slower than others')
    with FlopCounterMode(display=False) as counter:  # the first, which is slower for other reasons
        model.train_step(batch, optim_wrapper=runner.optim_wrapper)
    taken: List[float] = []
    start = time.perf_counter()
    while len(taken) < steps and (not taken or time.perf_counter() - start < seconds):
        report(f'step {len(taken) + 1} of {steps}')
        before = time.perf_counter()
        model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - before)
    return Times(
        loader.batch_size,
        data,
        median(taken),
        counter.get_total_flops(),
        _peak_memory(cuda),
        torch.get_num_threads(),
    )


def _endless(loader) -> Iterator:
    while True:
        yield from loader


def _time_loader(batches: Iterator, workers: int, seconds: float) -> float:
    """Return the seconds a batch, without a consumer.

    Workers finish at the same time, so rounds of one batch from each are timed.
    """
    rounds: List[float] = []
    start = time.perf_counter()
    list(islice(batches, 2 * workers))  # what was fetched ahead
    while len(rounds) < 3 and (not rounds or time.perf_counter() - start < seconds):
        before = time.perf_counter()
        list(islice(batches, workers))
        rounds.append(time.perf_counter() - before)
    return median(rounds) / workers


def _peak_memory(cuda: bool) -> int:
    if cuda:
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def _guess_step(times: Times, batch: int) -> float:
    """Return the seconds of a step of ``batch`` images on a GPU."""
    return max(times.flops * batch / times.batch / GPU_FLOPS, GPU_STEP)


class Estimate(NamedTuple):
    """Hold how long a run takes.

    Attributes:
        here (float): Seconds, as timed. Several processes on a CPU share the cores, as
            ``mmdense pretrain --gpus`` starts them: as many threads for each.
        there (float): Seconds on several GPUs, by calculation.
        assumption (str): Assumption of that calculation.
    """

    here: float
    there: float
    assumption: str


def estimate(
    times: Times,
    cfg: Config,
    images: Images,
    machine: Machine,
    gpus: int,
    there: Config,
    gpus_there: int,
) -> Estimate:
    """Estimate the time of a run from that of a step; a pure function.

    Args:
        times (Times): Times of :func:`time_steps`, one process of the run.
        cfg (Config): Config that was timed.
        images (Images): Images of the run.
        machine (Machine): Machine that was timed.
        gpus (int): Processes of the run here.
        there (Config): Config for several GPUs.
        gpus_there (int): Number of these GPUs.
    """
    epochs = cfg.train_cfg.max_epochs
    step = max(times.data, times.step)
    if gpus > 1 and machine.device == 'cpu':
        threads = choose_threads(machine.cores, gpus)
        alone = max(times.data, times.step * max(1.0, times.threads / threads))
        step = alone * max(1.0, gpus / machine.cores)
    elif gpus > 1:
        step /= EFFICIENCY
    here = epochs * (images.count // (times.batch * gpus)) * step
    epochs, batch = there.train_cfg.max_epochs, there.train_dataloader.batch_size
    step, assumption = times.step * batch / times.batch, f'each as fast as this {machine.name}'
    if machine.device == 'cpu':
        step = _guess_step(times, batch)
        assumption = (
            f'a guess, no GPU is here: {GPU_FLOPS / 1e12:.0f} TFLOP/s each, '
            f'{GPU_STEP * 1000:.0f} ms a step at least'
        )
    if gpus_there > 1:
        step /= EFFICIENCY
        assumption += f', {EFFICIENCY:.0%} of {gpus_there} times one'
    steps = epochs * (images.count // (batch * gpus_there))
    return Estimate(here, steps * step, f'{assumption}, images loaded as fast as needed')


def advise(
    times: Times,
    images: Images,
    machine: Machine,
    cfg: Config,
    gpus: int = 1,
    weights: Optional[str] = None,
) -> List[str]:
    """Return what would change the result or the time most, the most important first.

    A pure function.

    Args:
        times (Times): Times of :func:`time_steps`.
        images (Images): Images of the run.
        machine (Machine): Machine of the run.
        cfg (Config): Config of the run.
        gpus (int): Processes of the run.
        weights (str, optional): Published weights that the run could start from.
    """
    advice = []
    continued = cfg.get('load_from') or cfg.model.get('pretrained')
    if images.count < 20_000 and not continued:
        how = (
            '--init CHECKPOINT starts from weights of your own; none were published for this '
            'method and backbone'
        )
        if weights:
            how = f'--init {weights} starts from published weights'
        advice.append(f'result: {images.count:,} images are few to begin from nothing; {how}')
    if machine.device == 'cpu':
        factor = _round(times.step / _guess_step(times, times.batch))
        advice.append(f'time: one GPU computes a step about {factor} times as fast, as a guess')
    workers = cfg.train_dataloader.num_workers
    if times.data > 1.1 * times.step:
        wait = f'time: the {"GPU" if machine.device == "cuda" else "CPU"} waits for images'
        spare = machine.cores // gpus
        multi = find_step(cfg.train_dataloader.dataset.pipeline, 'MultiView')
        if workers < spare:
            advice.append(f'{wait}; --workers {spare} uses all cores')
        elif machine.device == 'cuda' and multi is not None:
            place = f'train_dataloader.dataset.{multi.place}.device_augment=True'
            advice.append(f'{wait}; leave colours and blur to it: {place}')
        elif machine.device == 'cpu':
            advice.append(f'{wait}: more cores, or smaller files')
    if machine.device == 'cuda' and machine.gpus > gpus and images.count >= 5000:
        advice.append(f'time: --gpus {machine.gpus} uses all GPUs')
    if images.count < 500:
        advice.append('result: more images, of any quality and without labels, help most of all')
    return advice


def _round(value: float) -> str:
    return f'{float(f"{value:.1g}"):,.0f}' if value >= 1 else '1'


def duration(seconds: float) -> str:
    """Return seconds in words, by two units at most."""
    if seconds < 60:
        return 'under a minute'
    if seconds < 3600:
        return f'{seconds / 60:.0f} min'
    if seconds < 48 * 3600:
        return f'{int(seconds // 3600)} h {int(seconds % 3600 // 60):02} min'
    return f'{seconds / 86400:.1f} days'
