# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw the features of each stage of a backbone, pretrained next to random:
python tools/visualize_levels.py CHECKPOINT IMAGE [IMAGE …] [--out FILE.png]"""

import argparse
import os.path as osp
from itertools import filterfalse
from pathlib import Path

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings(every=True)  # before the imports below

from mmdense.checkpoints.backbones import load_backbones
from mmdense.evaluation.feature_maps import as_colors, read_images, stage_maps, to_inputs
from mmdense.models.utils import calibrate
from mmdense.utils.errors import (
    CONFIG_ERRORS,
    InputError,
    one_line_errors,
)
from mmdense.visualization import draw_levels, pca_colours

NETWORKS = ('pretrained', 'random')


def parse_args():
    parser = argparse.ArgumentParser(description='Draw the features of each stage of a backbone')
    parser.add_argument('checkpoint', help='of a training run, exported, or published')
    parser.add_argument('images', nargs='+', metavar='image', help='an image file')
    parser.add_argument('--out', default='work_dirs/levels.png', help='the picture to write')
    parser.add_argument(
        '--size', type=int, default=512, help='longer side of the images; larger: finer maps'
    )
    parser.add_argument('--prefix', help='take the tensors below this prefix of the checkpoint')
    parser.add_argument(
        '--normalize', action='store_true', help='scale features to unit length first'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    # RuntimeError: a config whose backbone does not take colour images
    with one_line_errors(*CONFIG_ERRORS, RuntimeError):
        if args.size < 64:
            raise InputError(f'--size must be at least 64, got {args.size}')
        for path in filterfalse(osp.exists, args.images):
            raise InputError(f'cannot read image {path}: No such file or directory')
        backbones = load_backbones(args.checkpoint, args.prefix)
        images = read_images(args.images, args.size, backbones.load)
        inputs = to_inputs(images, backbones.preprocessor)
        calibrate(backbones.random, inputs)
        maps = {name: stage_maps(getattr(backbones, name), inputs) for name in NETWORKS}
    with one_line_errors(OSError, ValueError):
        networks = {
            name: [pca_colours(stage, args.normalize) for stage in stages]
            for name, stages in maps.items()
        }
        title = f'What each stage sees: {Path(args.checkpoint).name}, {backbones.about}'
        title += ', features of unit length' if args.normalize else ''
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_levels(list(map(as_colors, images)), args.images, networks, title, str(out))
    print(f'backbone  {backbones.about}\nVariance that three components hold, by stage:')
    for name, stages in networks.items():
        print(f'  {name:12s}' + ''.join(f'{stage.explained:7.1%}' for stage in stages))
    print(f'picture   {out}')


if __name__ == '__main__':
    main()
