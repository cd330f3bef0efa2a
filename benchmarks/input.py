# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""From image file to views: milliseconds an image on one core, file reading and decoding included.

    python benchmarks/input.py --data-root /path/to/images
    python benchmarks/input.py mocov2 --device-augment [--device cuda]

Ours are the pipelines of configs/_base_/views as they are; mmpretrain's those of its shipped
configs; lightly's its transforms, with PIL's loading. The floors are the decoders alone. All use
one thread and take turns, the same images each.

--device-augment  Workers decode, crop and resize; colours and blur run batched in the data
                  preprocessor: the workers' part, and the device's part (of a batch, per image)
                  beside kornia and torchvision's v2 with the same operations.
"""

import argparse
import copy
import os
from pathlib import Path

import common
import cv2
import models
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import DefaultScope
from PIL import Image

import mmdense.datasets  # noqa: F401 - registers them

TEST_DATA = Path(os.environ.get('MMDENSE_DATA') or common.CONFIGS / '../../shared/data')
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp')

# Pipeline of ours: name in the tables, mmpretrain's config, lightly's transform.
PIPELINES = dict(
    mocov2=(
        'MoCo v2 views',
        'mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py',
        'DenseCLTransform',
    ),
    byol=('BYOL views', 'byol/byol_resnet50_16xb256-coslr-200e_in1k.py', 'BYOLTransform'),
    slotcon=('SlotCon views', None, None),
    detco=('DetCo views and patches', None, None),
)


def our_config(name):
    """Return the training pipeline of a file in configs/_base_/views, a list of dicts."""
    path = common.CONFIGS / '_base_' / 'views' / f'{name}.py'
    return Config.fromfile(str(path)).train_pipeline


def build(pipeline, scope):
    """From a path to views."""
    with DefaultScope.overwrite_default_scope(scope):
        pipeline = Compose(pipeline)
    return lambda path: pipeline(dict(img_path=path))


def from_lightly(name):
    transform = getattr(common.peer('lightly.transforms'), name)()

    def run(path):
        with Image.open(path) as image:
            return transform(image.convert('RGB'))

    return run


def decoders():
    """The floors: what reads and decodes a file and does nothing else."""

    def opencv(path):
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)

    floors = {'decoding, OpenCV': opencv}
    simplejpeg = common.peer('simplejpeg')
    if simplejpeg:

        def turbojpeg(path):
            with open(path, 'rb') as f:
                return simplejpeg.decode_jpeg(f.read(), colorspace='BGR')

        floors['decoding, simplejpeg'] = turbojpeg
    return floors


def images(args):
    """The first ``--images`` files under ``--data-root``."""
    paths = sorted(p for p in args.data_root.rglob('*') if p.suffix.lower() in EXTENSIONS)
    if not paths:
        raise SystemExit(f'no images under {args.data_root}: say --data-root /path/to/images')
    return [str(p) for p in paths[: args.images]]


# ------------------------------------------------------------------------- augmenting on the device


def deferred(pipeline):
    """The same pipeline with colours and blur left to the device."""
    return [dict(t, device_augment=True) if t['type'] == 'MultiView' else t for t in pipeline]


def device_parts(config, load, paths, args):
    """Return functions that finish a batch of these images on the device, ours and the others'."""
    path = common.CONFIGS / '_base_' / 'models' / 'r50.py'
    preprocessor = dict(Config.fromfile(str(path)).model.data_preprocessor)
    preprocessor = models.build(dict(preprocessor, type='SelfSupDataPreprocessor'), 'mmdense', args)
    batch = default_collate([load(path) for path in paths])
    views = batch['inputs']
    # the preprocessor takes the operations out of the samples
    samples = iter([copy.deepcopy(batch['data_samples']) for _ in range(args.rounds + 1)])
    functions = {
        'mmdense': lambda: preprocessor(dict(inputs=views, data_samples=next(samples)), True)
    }
    views_of = next(t for t in config if t['type'] == 'MultiView')
    pipelines = [[t for t in p if t['type'] in AS_OTHERS] for p in views_of['transforms']]
    each = views_of['num_views']
    each = [each] if isinstance(each, int) else each
    pipelines = [p for p, number in zip(pipelines, each) for _ in range(number)]
    mean, std = ([v / 255 for v in getattr(preprocessor, k).flatten()] for k in ('mean', 'std'))
    if common.peer('kornia.augmentation'):
        kornia = common.peer('kornia.augmentation')
        augment = [
            torch.nn.Sequential(
                *(AS_OTHERS[t['type']][0](kornia, t) for t in pipeline),
                kornia.Normalize(torch.tensor(mean), torch.tensor(std)),
            ).to(args.device)
            for pipeline in pipelines
        ]
        functions['kornia'] = lambda: [a(unit(v, args)) for a, v in zip(augment, views)]
    from torchvision.transforms import v2

    # one image after the other: of a batch all would get the same parameters
    one_by_one = [
        v2.Compose([*(AS_OTHERS[t['type']][1](v2, t) for t in pipeline), v2.Normalize(mean, std)])
        for pipeline in pipelines
    ]
    functions['torchvision v2'] = lambda: [
        torch.stack([a(image) for image in unit(v, args)]) for a, v in zip(one_by_one, views)
    ]
    return functions


def unit(view, args):
    """Uint8 BGR on the host to RGB in 0..1 on the device."""
    return view.to(args.device, non_blocking=True).flip(1).float().div_(255)


def _jitter(config):
    return [config.get(key, 0) for key in ('brightness', 'contrast', 'saturation', 'hue')]


# Our operations as kornia's and as torchvision's. kornia draws one order of the jitter's for all.
AS_OTHERS = dict(
    ColorJitter=(
        lambda k, t: k.ColorJitter(*_jitter(t), p=t['prob']),
        lambda v2, t: v2.RandomApply([v2.ColorJitter(*_jitter(t))], t['prob']),
    ),
    RandomGrayscale=(
        lambda k, t: k.RandomGrayscale(p=t['prob']),
        lambda v2, t: v2.RandomGrayscale(t['prob']),
    ),
    GaussianBlur=(
        lambda k, t: k.RandomGaussianBlur((13, 13), tuple(t['sigma']), p=t['prob']),
        lambda v2, t: v2.RandomApply([v2.GaussianBlur(13, tuple(t['sigma']))], t['prob']),
    ),
    Solarize=(
        lambda k, t: k.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=t['prob']),
        lambda v2, t: v2.RandomSolarize(0.5, t['prob']),
    ),
)


# ------------------------------------------------------------------------------------------- tables


def over(load, paths):
    """Loads every image once."""

    def run():
        for path in paths:
            load(path)

    return run


def compare_pipeline(name, paths, args):
    title, shipped, transform = PIPELINES[name]
    config = our_config(name)
    loads = {'mmdense': build(config, 'mmdense')}
    if args.device_augment:
        loads["mmdense, the worker's part"] = build(deferred(config), 'mmdense')
    if shipped:
        pipeline = models.shipped_config(shipped).train_dataloader.dataset.pipeline
        loads['mmpretrain'] = build(pipeline, 'mmpretrain')
    if transform and common.peer('lightly.transforms'):
        loads['lightly'] = from_lightly(transform)
    loads.update(decoders())
    with Image.open(paths[0]) as image:
        words = f'{len(paths)} images like {"×".join(map(str, image.size))}'
    setting = common.setting(argparse.Namespace(**dict(vars(args), device='cpu')), words)
    print(f'{title}, an image: {setting}')

    def measure(functions):
        times = common.measure(functions, args)
        return {n: [t / len(paths) for t in seconds] for n, seconds in times.items()}

    times = measure({n: over(load, paths) for n, load in loads.items()})
    workers = times.pop("mmdense, the worker's part", None)
    ours = times.pop('mmdense')
    rows = common.rows(title, setting, 'ms', ours, times)
    if workers:
        others = {'mmdense, all in the worker': ours}
        others.update((n, times[n]) for n in ('mmpretrain', 'decoding, simplejpeg') if n in times)
        rows += common.rows(f"{title}, worker's part", setting, 'ms', workers, others)
        load = loads["mmdense, the worker's part"]
        times = measure(device_parts(config, load, paths, args))
        ours = times.pop('mmdense')
        setting = common.setting(args, f'batch {len(paths)}')
        rows += common.rows(f"{title}, device's part", setting, 'ms', ours, times)
    return rows


def add_image_options(parser, number):
    root = TEST_DATA / 'coco' / 'train2017'
    root = root if root.exists() else Path('data/coco/train2017')
    parser.add_argument(
        '--data-root',
        type=Path,
        default=root,
        help='a folder with images: those that matter to you, or COCO',
    )
    parser.add_argument('--images', type=int, default=number, help='how many of them')


def main():
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument('pipelines', nargs='*', choices=[*PIPELINES, []], default=[])
    add_image_options(parser, 64)
    parser.add_argument('--device-augment', action='store_true', help='see above')
    args = parser.parse_args()
    common.prepare(args)
    np.random.seed(0)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    paths, rows = images(args), []
    for name in args.pipelines or PIPELINES:
        rows += compare_pipeline(name, paths, args)
    common.finish(args, rows)


if __name__ == '__main__':
    main()
