# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Images per second of real runs: data loader with workers, optimiser, hooks, under MMEngine.

    python benchmarks/end_to_end.py --depth 18 --size 112 --batch-size 16 --workers 1     # a CPU
    python benchmarks/end_to_end.py --device cuda --amp float16 --batch-size 64 --workers 14

A method's recipe on the images of --data-root beside mmpretrain's as shipped, and with --amp
beside that with AMP, too; and beside our own step on a batch that is in device memory already,
whose rate is the most that any input could give; and with --device-augment beside a run that
leaves colours and blur to the device. --cfg-options changes our config alone.

Every run is a process of its own; they take turns. The rate is that of the iterations after the
first ones, in which workers start and cuDNN chooses. On a GPU also peak memory.
"""

import copy
import os
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


class Clock(Hook):
    """Seconds and memory of the iterations after the first ``warmup``."""

    priority = 'LOWEST'

    def __init__(self, warmup, device):
        self.warmup, self.device = warmup, device

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        done = runner.iter + 1
        if done not in (self.warmup, runner.max_iters):
            return
        if self.device == 'cuda':
            torch.cuda.synchronize()
        if done == self.warmup:
            self.start = time.perf_counter()
        else:
            self.seconds = time.perf_counter() - self.start


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


def run_config(name, paths, folder, number, args):
    """Return the config of a run on ``number`` images, which are linked in ``folder``."""
    link_images(paths, number, folder)
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
    iterations = args.warmup + args.iterations
    with tempfile.TemporaryDirectory() as folder:
        cfg = run_config(name, paths, folder, iterations * args.batch_size, args)
        runner = build_runner(cfg)
        if name == IN_MEMORY:
            put_in_memory(runner, iterations, args)
        clock = Clock(args.warmup, args.device)
        runner.register_hook(clock)
        runner.train()
        peak = torch.cuda.max_memory_allocated() if args.device == 'cuda' else None
        return args.iterations * args.batch_size / clock.seconds, peak


IN_MEMORY = 'the same from device memory'
AUGMENTED = 'the same with device_augment'


def compare_runs(args):
    names = ['mmdense', IN_MEMORY, 'mmpretrain']
    names += ['mmpretrain, AMP'] if args.amp else []
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
    parser.add_argument('--algorithm', choices=methods.shipped(), default=methods.shipped()[0])
    parser.add_argument('--workers', type=int, default=max(len(os.sched_getaffinity(0)) - 1, 1))
    parser.add_argument('--warmup', type=int, default=8, help='iterations before the clock starts')
    parser.add_argument('--iterations', type=int, default=24, help='that are timed')
    parser.add_argument('--device-augment', action='store_true', help='also a run with it')
    args = parser.parse_args()
    if args.device == 'cpu' and args.amp:
        raise SystemExit('--amp needs --device cuda here: MMEngine has no AMP on the CPU')
    common.finish(args, compare_runs(args))


if __name__ == '__main__':
    main()
