# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Measure frozen dense features by nearest neighbours and a linear probe, and print one table:
python tools/evaluate_features.py CHECKPOINT … --data configs/_base_/evaluation_camvid.py"""

import argparse
import json
import sys

from mmengine.config import Config, DictAction

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings(every=True)  # before the imports below

from mmdense.apis.transfer import split_name
from mmdense.checkpoints.backbones import load_backbones
from mmdense.evaluation import calibrate_on, evaluate_features
from mmdense.registry import DATASETS
from mmdense.utils.errors import (
    CONFIG_ERRORS,
    InputError,
    one_line_errors,
)
from mmdense.utils.files import write_text


def parse_args():
    parser = argparse.ArgumentParser(
        description='Measure frozen dense features by nearest neighbours and a linear probe',
        epilog='Everything, on the test split: --cfg-options max_images=None '
        'data.test.img_path=img_dir/test data.test.seg_map_path=ann_dir/test',
    )
    parser.add_argument(
        'checkpoints', nargs='+', metavar='CHECKPOINT', help='any that mmdense reads, or NAME=it'
    )
    parser.add_argument(
        '--data', required=True, metavar='CONFIG', help='with default_hooks.evaluation'
    )
    parser.add_argument('--data-root', help='the folder of the labelled images')
    parser.add_argument(
        '--baseline',
        choices=['random'],
        help="the same of the first one's backbone with random weights, BatchNorm by the images",
    )
    parser.add_argument('--out', metavar='FILE.json', help='also write the numbers there')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the evaluation: size, max_images, stage, methods, data.…',
    )
    return parser.parse_args()


def read_settings(args) -> dict:
    """Read the data to evaluate on, and the settings."""
    cfg = Config.fromfile(args.data).get('default_hooks', {}).get('evaluation')
    if cfg is None:
        raise InputError(
            f'{args.data} has no default_hooks.evaluation; see configs/_base_/evaluation_camvid.py'
        )
    cfg = Config(cfg)
    cfg.merge_from_dict(args.cfg_options or {})
    if args.data_root is not None:
        cfg.data.data_root = args.data_root
    cfg = cfg.to_dict()
    data = DATASETS.build(cfg.pop('data'))
    for unused in ('type', 'interval', 'by_epoch'):
        cfg.pop(unused, None)
    return dict(cfg, data=data)


def print_table(results: dict) -> None:
    """Print a table in Markdown; a row for each checkpoint."""
    columns = list(next(iter(results.values())))
    rows = [['checkpoint', *columns]]
    rows += [[name, *(f'{found[c]:.2f}' for c in columns)] for name, found in results.items()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ['-' * width for width in widths])
    for row in rows:
        print(f'| {" | ".join(cell.ljust(width) for cell, width in zip(row, widths))} |')


def main():
    args = parse_args()
    results = {}
    # TypeError and RuntimeError: settings that there are not, a backbone that takes no images
    with one_line_errors(*CONFIG_ERRORS):
        settings = read_settings(args)
        for argument in args.checkpoints:
            name, checkpoint = split_name(argument)
            name = name or checkpoint
            print(f'{name} …', file=sys.stderr, flush=True)
            backbones = load_backbones(checkpoint)
            settings['data'].load = backbones.load
            if args.baseline and not results:
                calibrate_on(backbones.random, backbones.preprocessor, **settings)
                results['random'] = evaluate_features(
                    backbones.random, backbones.preprocessor, **settings
                )
            results[name] = evaluate_features(
                backbones.pretrained, backbones.preprocessor, **settings
            )
        print_table(results)
        if args.out:
            write_text(args.out, json.dumps(results, indent=2))


if __name__ == '__main__':
    main()
