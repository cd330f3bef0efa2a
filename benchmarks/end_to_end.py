# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Images per second of real runs: data loader with workers, optimiser, hooks, under MMEngine.

    python benchmarks/end_to_end.py --depth 18 --size 112 --batch-size 16 --workers 1     # a CPU
    python benchmarks/end_to_end.py --device cuda --amp float16 --batch-size 64 --workers 14

A method's recipe on the images of --data-root beside mmpretrain's as shipped, and with --amp
beside that with AMP, too; and beside our own step on a batch that is in device memory already,
whose rate is the most that any input could give; and with --device-augment beside a run that
leaves colours and blur to the device. --cfg-options changes our config alone.

Every run is a process of its own; they take turns. The rate is that of the iterations after the
first ones, in which workers start and cuDNN chooses. On a GPU also peak memory. With --clock cpu
the seconds are those of all cores, of the workers too: more than one core can give to either.

--start-up  Instead, the seconds from the command to the first step: tools/train.py with our config,
            mmpretrain's tools/train.py with its own, and what nothing in PyTorch can leave out: its
            import, and one step of SGD, which imports more of it.
"""

import copy
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import common
import methods
import models
import torch
from input import add_image_options, images
from mmengine.config import Config
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

import mmdense.checkpoints  # noqa: F401 - the restricted loader
from mmdense.engine.launch import build_runner
from mmdense.engine.training import prepare_process


class Clock(Hook):
    """Seconds of the iterations after the first ``warmup``, by the clock of --clock."""

    priority = 'LOWEST'

    def __init__(self, warmup, iterations, device, clock):
        self.warmup, self.last, self.device = warmup, warmup + iterations, device
        self.now = cpu_seconds if clock == 'cpu' else time.perf_counter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        done = runner.iter + 1
        if done not in (self.warmup, self.last):
            return
        if self.device == 'cuda':
            torch.cuda.synchronize()
        if done == self.warmup:
            self.start = self.now()
        else:
            self.seconds = self.now() - self.start


def cpu_seconds():
    """Of this process and its data loader's workers until now (Linux)."""
    seconds = time.process_time()
    for worker in multiprocessing.active_children():
        with open(f'/proc/{worker.pid}/stat') as f:
            ticks = f.read().rpartition(')')[2].split()[11:13]  # of user and system
        seconds += sum(map(int, ticks)) / os.sysconf('SC_CLK_TCK')
    return seconds


def link_images(paths, number, folder):
    """A data set of ``number`` images, from fewer."""
    folder = Path(folder) / 'train' / 'images'
    folder.mkdir(parents=True)
    for i in range(number):
        source = Path(paths[i % len(paths)]).resolve()
        os.symlink(source, folder / f'{i:06}{source.suffix}')


def put_in_memory(runner, iterations, args):
    """Has the runner train on one batch of its data, which stays on the device."""
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    batch['inputs'] = [view.to(args.device) for view in batch['inputs']]

    def again(_):  # the preprocessor takes the operations out of the samples
        return dict(batch, data_samples=copy.deepcopy(batch['data_samples']))

    # of which it makes its loop
    indices = range(iterations * args.batch_size)
    runner._train_dataloader = DataLoader(indices, args.batch_size, collate_fn=again)


def our_config(args, folder):
    cfg = Config.fromfile(str(common.CONFIGS / f'{args.algorithm}_r50_coco.py'))
    cfg.train_dataloader.dataset.update(data_root=folder, data_prefix='train')
    if args.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=args.amp)
    return cfg


def their_config(args, folder, amp):
    cfg = models.shipped_config(methods.load(args.algorithm).SHIPPED)
    # any folder, where ImageNet's must have a thousand
    dataset = dict(type='CustomDataset', data_root=folder, data_prefix='train', with_label=False)
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.pop('dataset')
    cfg.train_dataloader.dataset = dict(dataset, pipeline=pipeline)
    if amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=args.amp)
    return cfg


def config(name, args, folder):
    """Return the config of a run of one epoch."""
    if name.startswith('mmpretrain'):
        cfg = their_config(args, folder, amp=name.endswith('AMP'))
    else:
        cfg = our_config(args, folder)
    models.shrink(cfg.model, args)
    for pipeline in cfg.train_dataloader.dataset.pipeline[1]['transforms']:
        pipeline[0]['scale'] = args.size
    cfg.train_dataloader.update(batch_size=args.batch_size, num_workers=args.workers)
    cfg.train_dataloader.persistent_workers = args.workers > 0
    if args.device == 'cpu':
        cfg.train_dataloader.pin_memory = False
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir, cfg.log_level, cfg.launcher = os.path.join(folder, 'run'), 'ERROR', 'none'
    if not name.startswith('mmpretrain'):
        cfg.merge_from_dict(args.cfg_options or {})
    if name == AUGMENTED:
        cfg.train_dataloader.dataset.pipeline[1]['device_augment'] = True
    return cfg


def rate(name, paths, args):
    """Images per second of a run, and its peak of device memory in bytes or None."""
    common.prepare(args)
    warnings.filterwarnings('ignore', message='Multi-processing start method')
    # at the last step that is timed, workers are as far ahead as at the first
    iterations = args.warmup + args.iterations + 2 * args.workers
    with tempfile.TemporaryDirectory() as folder:
        link_images(paths, iterations * args.batch_size, folder)
        if not name.startswith('mmpretrain'):
            prepare_process()  # as tools/train.py does
        runner = build_runner(config(name, args, folder))
        if name == IN_MEMORY:
            put_in_memory(runner, iterations, args)
        clock = Clock(args.warmup, args.iterations, args.device, args.clock)
        runner.register_hook(clock)
        runner.train()
        peak = torch.cuda.max_memory_allocated() if args.device == 'cuda' else None
        return args.iterations * args.batch_size / clock.seconds, peak


def start_up(command, args):
    """Seconds of a command until it ends."""

    def clock():
        if args.clock == 'wall':
            return time.perf_counter()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    start = clock()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return clock() - start


PYTORCH = """
import torch
parameter = torch.zeros(1, requires_grad=True)
parameter.sum().backward()
torch.optim.SGD([parameter], lr=1.0).step()
"""


def compare_start_ups(args):
    ours = common.CONFIGS.parent / 'tools' / 'train.py'
    tools = dict(mmdense=ours, mmpretrain=models.shipped_file('tools/train.py'))
    seconds = {name: [] for name in (*tools, 'PyTorch alone')}
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        link_images(images(args), 4 * args.batch_size, folder)
        for _ in range(args.rounds):
            for name, tool in tools.items():
                path = os.path.join(folder, f'{name}.py')
                config(name, args, folder).dump(path)
                command = [str(here / 'first_step.py'), str(tool), path]
                seconds[name].append(start_up(command, args))
            seconds['PyTorch alone'].append(start_up(['-c', PYTORCH], args))
    words = [f'R{args.depth}', f'batch {args.batch_size}', f'{args.size} px']
    setting = common.setting(args, *words, f'{args.workers} workers')
    what = f'{models.title(args.algorithm)}, command to first step'
    return common.rows(what, setting, 's', seconds.pop('mmdense'), seconds)


IN_MEMORY = 'the same from device memory'
AUGMENTED = 'the same with device_augment'


def compare_runs(args):
    names = ['mmdense', IN_MEMORY, 'mmpretrain']
    # MMEngine has no AMP on a CPU: there mmpretrain's run is in float32
    names += ['mmpretrain, AMP'] if args.amp and args.device == 'cuda' else []
    names += [AUGMENTED] if args.device_augment else []
    paths = images(args)
    rates = {name: [] for name in names}
    peaks = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            images_per_second, peak = common.in_own_process(rate, name, paths, args)
            rates[name].append(images_per_second)
            peaks[name].append(peak)
    words = [f'R{args.depth}', f'batch {args.batch_size}', f'{args.size} px']
    setting = common.setting(args, *words, f'K = {args.queue_len}', f'{args.workers} workers')
    title = models.title(args.algorithm)
    print(f'A run of {title}: {setting}')
    rows = common.rows(f'{title}, a run', setting, 'images/s', rates.pop('mmdense'), rates)
    if args.device == 'cuda':
        peaks.pop(IN_MEMORY)
        ours = peaks.pop('mmdense')
        rows += common.rows(f'{title}, peak memory', setting, 'MiB', ours, peaks)
    return rows


def main():
    parser = common.parser(__doc__, rounds=3)
    common.add_model_options(parser, batch_size=32)
    add_image_options(parser, 128)
    parser.add_argument('--algorithm', choices=methods.shipped(), default=methods.example())
    parser.add_argument('--workers', type=int, default=max(len(os.sched_getaffinity(0)) - 1, 1))
    parser.add_argument('--warmup', type=int, default=8, help='iterations before the clock starts')
    parser.add_argument('--iterations', type=int, default=24, help='that are timed')
    parser.add_argument('--device-augment', action='store_true', help='also a run with it')
    parser.add_argument('--start-up', action='store_true', help='seconds to the first step instead')
    args = parser.parse_args()
    common.finish(args, compare_start_ups(args) if args.start_up else compare_runs(args))


if __name__ == '__main__':
    main()
