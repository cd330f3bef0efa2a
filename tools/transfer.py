# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Transfer backbones to tasks of configs/transfer, under mmdet's and mmseg's own tools, and
prints one table: python tools/transfer.py CHECKPOINT … --to TASK … [--baseline random]"""

import argparse
import os.path as osp
import signal
import sys

from mmengine.config import DictAction

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings(every=True)  # before the imports below

from mmdense.apis import transfer
from mmdense.utils.errors import (
    CONFIG_ERRORS,
    MMDenseError,
    one_line_errors,
)


def parse_args():
    parser = argparse.ArgumentParser(
        description='Transfer pretrained backbones to tasks, and compare them',
        epilog='tasks: ' + ', '.join(transfer.find_tasks()),
    )
    parser.add_argument(
        'checkpoints', nargs='*', metavar='CHECKPOINT', help='any that mmdense reads, or NAME=it'
    )
    parser.add_argument('--to', nargs='+', required=True, metavar='TASK', help='see below')
    parser.add_argument('--baseline', choices=['random'], help='the same from random weights')
    parser.add_argument('--gpus', type=int, default=1, help='of this machine, for each run')
    parser.add_argument('--work-dir', default='work_dirs/transfer', help='of all runs')
    parser.add_argument('--data-root', help='the folder that has what is below data/ in configs')
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
        transfer.check_gpus(args.gpus)
        methods = transfer.read_methods(args.checkpoints, args.baseline)
        runs = transfer.plan(methods, args.to, args.work_dir, args.cfg_options, args.data_root)
    failed = []
    for number, run in enumerate(runs, 1):
        head = f'[{number}/{len(runs)}] {run}: '
        if run.done:
            print(f'{head}finished before', flush=True)
            continue
        images, base = transfer.images_per_step(run, args.gpus)
        if base and images != base:
            print(
                f'{head}{images} images a step where the protocol has {base}: the learning rate is '
                'scaled, the number of steps is not',
                flush=True,
            )
        what = 'goes on' if osp.isfile(run.path('last_checkpoint')) else 'starts'
        print(f'{head}{what}; log in {run.path("train.log")}', flush=True)
        try:
            transfer.execute(run, args.gpus)
        except (MMDenseError, OSError) as error:
            failed.append(str(run))
            print(f'{head}failed: {error}', file=sys.stderr, flush=True)
    table = transfer.make_table(args.work_dir)
    if table:
        print(f'\n{table}', end='')
        with open(osp.join(args.work_dir, 'table.md'), 'w', encoding='utf-8') as file:
            file.write(table)
    if failed:
        raise SystemExit(f'mmdense: error: failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
