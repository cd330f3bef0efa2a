# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Transfer backbones to tasks of configs/transfer, under the packages' own tools, and print one
table: python tools/transfer.py CHECKPOINT … --to TASK … [--baseline random] [--seeds 0 1 2]"""

import argparse
import os.path as osp
import shlex
import signal
import sys

from mmengine.config import DictAction

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings(every=True)  # before the imports below

from mmdense.apis import transfer, transfer_table
from mmdense.utils.errors import (
    CONFIG_ERRORS,
    MMDenseError,
    one_line_errors,
)
from mmdense.utils.files import write_text


def parse_args():
    parser = argparse.ArgumentParser(
        description='Transfer pretrained backbones to tasks, and compare them',
        epilog='tasks: ' + ', '.join(transfer.find_tasks()),
        fromfile_prefix_chars='@',
    )
    parser.add_argument(
        'checkpoints',
        nargs='*',
        metavar='CHECKPOINT',
        help='any that mmdense reads, or NAME=it; @FILE has one a line',
    )
    parser.add_argument('--to', nargs='+', required=True, metavar='TASK', help='see below')
    parser.add_argument('--baseline', choices=['random'], help='the same from random weights')
    parser.add_argument('--seeds', nargs='+', type=int, metavar='N', help='one run each')
    parser.add_argument('--gpus', type=int, default=1, help='of this machine, for each run')
    parser.add_argument('--work-dir', default='work_dirs/transfer', help='of all runs')
    parser.add_argument('--data-root', help='the folder that has what is below data/ in configs')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print the commands, and the time and memory of each: a few steps are tried',
    )
    parser.add_argument(
        '--slurm', action='store_true', help='write a file for sbatch instead, a job for each run'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of every task\'s config, as xxx=yyy; a list as key="[a,b]"',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    # so that a run ends with this program, as on Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with one_line_errors(*CONFIG_ERRORS):
        if not args.slurm:
            transfer.check_gpus(args.gpus)
        methods = transfer.read_methods(args.checkpoints, args.baseline)
        runs = transfer.plan(
            *(methods, args.to, args.work_dir, args.cfg_options, args.data_root),
            seeds=args.seeds or (None,),
        )
        if args.slurm:
            write_slurm(runs, args)
            return
    failed, costs = [], {}
    for number, run in enumerate(runs, 1):
        head = f'[{number}/{len(runs)}] {run}: '
        if run.done:
            print(f'{head}finished before', flush=True)
            continue
        try:
            if args.dry_run:
                try_run(run, head, args, costs)
            else:
                execute_run(run, head, args)
        except (MMDenseError, OSError) as error:
            failed.append(str(run))
            print(f'{head}failed: {error}', file=sys.stderr, flush=True)
    rows = transfer_table.read_cells(args.work_dir)
    if rows and not args.dry_run:
        print(f'\n{transfer_table.make_markdown(rows)}', end='')
        for ending, make in transfer_table.FORMATS.items():
            write_text(osp.join(args.work_dir, f'table.{ending}'), make(rows))
    if costs:
        left = [costs[run.task].hours for run in runs if run.task in costs and not run.done]
        print(f'training in all: {sum(left):.1f} h, one run after the other')
    if failed:
        raise SystemExit(f'mmdense: error: failed: {", ".join(failed)}')


def execute_run(run, head, args):
    images, base = transfer.images_per_step(run, args.gpus)
    if base and images != base:
        print(
            f'{head}{images} images a step where the protocol has {base}: the learning rate is '
            'scaled, the number of steps is not',
            flush=True,
        )
    what = 'goes on' if osp.isfile(run.path('last_checkpoint')) else 'starts'
    print(f'{head}{what}; log in {run.path("train.log")}', flush=True)
    transfer.execute(run, args.gpus)


def try_run(run, head, args, costs):
    """Print the commands of a run, and its cost, which is the same for all runs of a task."""
    print(f'{head}would run', flush=True)
    for command in transfer.commands(run, args.gpus):
        print(f'  {shlex.join(command)}', flush=True)
    if run.task not in costs:
        costs[run.task] = transfer.try_steps(run, args.gpus)
    print(f'  training: {costs[run.task]}', flush=True)


def write_slurm(runs, args):
    arguments = ['--data-root', osp.abspath(args.data_root)] if args.data_root else []
    if args.cfg_options:
        arguments += ['--cfg-options', *(f'{k}={v}' for k, v in args.cfg_options.items())]
    path = transfer.write_slurm(runs, args.work_dir, args.gpus, arguments)
    print(f'sbatch {shlex.quote(path)}' if path else 'all runs are finished')


if __name__ == '__main__':
    main()
