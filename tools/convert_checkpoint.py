# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Take the backbone out of any checkpoint that mmdense knows (docs/checkpoints.md), for mmdet,
mmseg, mmpretrain, torchvision and timm: python tools/convert_checkpoint.py SRC DST"""

import argparse

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings()  # before the imports below

from mmdense.checkpoints import convert_checkpoint, convert_detector
from mmdense.utils.errors import one_line_errors


def main():
    parser = argparse.ArgumentParser(description='Take the backbone out of a checkpoint')
    parser.add_argument('source', metavar='SRC', help='a checkpoint: path or URL')
    parser.add_argument('path', metavar='DST', help='the file to write')
    parser.add_argument('--prefix', help='take the tensors below this prefix')
    parser.add_argument(
        '--whole',
        action='store_true',
        help='write the complete algorithm in the names of mmdense, to continue training with',
    )
    parser.add_argument(
        '--detector',
        metavar='NAMES',
        choices=('mmdet', 'detr'),
        help="write the complete detector, in the names of mmdet or of DETR's authors",
    )
    args = parser.parse_args()
    if args.detector and (args.whole or args.prefix is not None):
        parser.error('--detector goes without --whole and --prefix')
    with one_line_errors(OSError):
        if args.detector:
            print(convert_detector(args.source, args.path, args.detector))
            return
        print(convert_checkpoint(args.source, args.path, args.prefix, args.whole))


if __name__ == '__main__':
    main()
