# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw what the prototypes of SlotCon stand for:
python tools/visualize_slots.py CHECKPOINT IMAGES [--out DIR]"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings(every=True)  # before the imports below

from mmdense.datasets.image_loader import image_loader
from mmdense.evaluation.slots import load_slotcon, segment_images, survey
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import (
    CONFIG_ERRORS,
    InputError,
    one_line_errors,
)
from mmdense.visualization import draw_groups, draw_nearest, prototype_colours


def parse_args():
    parser = argparse.ArgumentParser(description="Draw what SlotCon's prototypes stand for")
    parser.add_argument('checkpoint', help='a checkpoint of a SlotCon run')
    parser.add_argument('images', help='a folder of images, searched with its sub-folders')
    parser.add_argument('--out', default='work_dirs/slots', help='the folder to write to')
    parser.add_argument('--config', help="the run's config, if the checkpoint does not hold it")
    parser.add_argument(
        '--num-images', type=int, default=8, help='images in groups.png, from all over the folder'
    )
    parser.add_argument(
        '--num-prototypes-shown', type=int, default=8, help='rows of nearest.png: the most used'
    )
    parser.add_argument('--nearest', type=int, default=6, help='segments in a row of nearest.png')
    parser.add_argument(
        '--size', type=int, default=224, help='side that images are cut to; larger: finer segments'
    )
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--workers', type=int, default=2, help='processes that load images')
    return parser.parse_args()


def check_args(args):
    check_counts(
        **{
            f'--{name.replace("_", "-")}': getattr(args, name)
            for name in ('num_images', 'num_prototypes_shown', 'nearest', 'batch_size')
        }
    )
    if args.size < 32:
        raise InputError(f'--size must be at least 32, got {args.size}')
    if args.workers < 0:
        raise InputError(f'--workers must be 0 or more, got {args.workers}')


def main():
    args = parse_args()
    with one_line_errors(*CONFIG_ERRORS):
        check_args(args)
        loader = image_loader(args.images, args.size, args.batch_size, args.workers)
        model = load_slotcon(args.checkpoint, args.config)
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
    with one_line_errors(OSError):
        model.to('cuda' if torch.cuda.is_available() else 'cpu')
        found = survey(model, loader, args.nearest)
        for path, reason in found.unreadable:
            print(f'cannot read image {path}: {reason}; left out')

        order = found.pixels.argsort(descending=True, stable=True)
        used = int((found.pixels > 0).sum())
        shown = order[: min(used, args.num_prototypes_shown)].tolist()
        count = len(found.readable)
        spread = np.linspace(0, count - 1, min(count, args.num_images)).round().astype(int)
        chosen = [found.readable[i] for i in spread]
        segments = found.images[shown][found.scores[shown] > -torch.inf].tolist()
        pictures = segment_images(model, loader, [*chosen, *segments])

        colours = prototype_colours(found.pixels)
        share = float(found.pixels.max() / found.pixels.sum())
        of = f'{used} of {len(found.pixels)} prototypes'
        draw_groups(
            [pictures[i] for i in chosen],
            colours,
            f'Pixels by their best prototype, numbered\n{of} are in use',
            str(out / 'groups.png'),
        )
        draw_nearest(
            found,
            shown,
            pictures,
            colours,
            f'The segments nearest to each of the {len(shown)} most used prototypes',
            str(out / 'nearest.png'),
        )
    bits, most = found.entropy(), math.log2(len(found.pixels))
    equal = round(2**bits)
    print(
        f'{of} are used on {count} images; the largest has {share:.1%} of the pixels.\n'
        f'Entropy {bits:.1f} of at most {most:.1f} bits, that of {equal} prototype'
        f'{"" if equal == 1 else "s"} in equal use{": near collapse" if share > 0.95 else ""}.\n'
        f'pictures  {out / "groups.png"}\n          {out / "nearest.png"}'
    )


if __name__ == '__main__':
    main()
