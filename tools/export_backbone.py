# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Takes the backbone out of a checkpoint: python tools/export_backbone.py CHECKPOINT OUT"""

import argparse

from mmdense.checkpoints import export_backbone
from mmdense.utils.launch import one_line_errors


def main():
    parser = argparse.ArgumentParser(description='Take the backbone out of a checkpoint')
    parser.add_argument('checkpoint', help='a checkpoint of a pretraining run')
    parser.add_argument('out', help='the file to write')
    args = parser.parse_args()
    with one_line_errors(OSError):
        print(export_backbone(args.checkpoint, args.out))


if __name__ == '__main__':
    main()
