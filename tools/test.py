# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Evaluate a checkpoint on the test set of a config that has one:
python tools/test.py CONFIG CHECKPOINT …"""

import argparse

import mmengine
from mmengine.config import Config
from mmengine.evaluator import DumpResults

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings()  # before the imports below

from mmdense.engine.launch import add_common_arguments, build_runner, merge_common_arguments
from mmdense.utils.errors import (
    CONFIG_ERRORS,
    CheckpointError,
    one_line_errors,
)
from mmdense.utils.mmengine_patches import end_workers


def parse_args():
    parser = argparse.ArgumentParser(description='Evaluate a model')
    parser.add_argument('config', help='config file path')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='file to write results to (.pkl, or .json for metrics)')
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what --out gets; predictions unless told otherwise',
    )
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.out is None and args.out_item is not None:
        parser.error('--out-item needs --out')
    return args


def load(runner, args):
    """Load strictly: MMEngine's test() only warns, and scores random weights."""
    try:
        runner.load_checkpoint(args.checkpoint, strict=True)
    except RuntimeError as error:
        # the names are listed one below the other, behind a heading
        what = ' '.join(str(error).split())
        raise CheckpointError(
            f'{args.checkpoint} does not fit {args.config}: {what[:300]}{"…" * (len(what) > 300)}'
        ) from None


def main():
    args = parse_args()
    with one_line_errors(*CONFIG_ERRORS):
        cfg = Config.fromfile(args.config)
        merge_common_arguments(cfg, args)
        cfg.load_from = args.checkpoint
        if cfg.get('test_dataloader') is None:
            raise ValueError(
                f'{args.config} has no test_dataloader: pretraining has no labels to test on. '
                'Transfer the backbone to a task (configs/transfer) and test that'
            )
        if args.amp:
            cfg.test_cfg.fp16 = True
        runner = build_runner(cfg)
        if args.out and args.out_item != 'metrics':
            runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
        load(runner, args)
    with one_line_errors():
        metrics = runner.test()
    end_workers(runner.test_loop.dataloader)
    if args.out and args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
