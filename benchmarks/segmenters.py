# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Compare segmentation without labels: DenseSiam, SlotCon, and k-means on DenseCL's features.

All have a ResNet-18 and as many groups as CamVid has classes, see the same images in as many steps,
and are measured in the same way, on images of one and of two times the height of the views: scores
are enlarged to the size of the labels, each pixel takes its best group, and groups are matched with
classes one to one over the test split. A run that was stopped continues when the command is given
again:

    python benchmarks/segmenters.py --data data/camvid --work-dir work_dirs/segmenters
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from scipy.cluster.vq import kmeans2
from torch.nn import functional as F

from mmdense.apis.planning import Options, Setting
from mmdense.apis.planning.plan import plan_text
from mmdense.apis.pretraining import Request, plan_run
from mmdense.checkpoints.backbones import load_algorithm, load_backbones
from mmdense.datasets import UnlabeledDataset
from mmdense.models.selfsup.grouping import GroupsPixels
from mmdense.registry import DATASETS, METRICS
from mmdense.utils.files import write_text

REPO = Path(__file__).resolve().parents[1]
DENSESIAM = REPO / 'configs/densesiam/densesiam_unsup-seg_resnet18_1xb16-50e_camvid.py'
LOCATIONS = 40  # of each training image, for k-means
FEATURES = Options().method  # what `mmdense pretrain` takes by default: DenseCL
CONTINUED = f'densesiam_from_{FEATURES}'
RUNS = (FEATURES, 'slotcon', 'densesiam', CONTINUED)
ROWS = {
    'densesiam': 'DenseSiam, from random weights',
    CONTINUED: f'DenseSiam, from the backbone of {FEATURES}',
    'slotcon': 'SlotCon, from random weights',
    'kmeans': f'k-means on the features of {FEATURES}',
}


def parse_args():
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, default=Path('data/camvid'))
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/segmenters'))
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--size', type=int, default=128, help='of the views, in pixels')
    parser.add_argument('--batch-size', type=int, default=16)
    return parser.parse_args()


def write_pretraining(args, method: str, folder: Path, classes: int) -> Path:
    """Write the config of DenseCL or SlotCon, by the rules of `mmdense pretrain`."""
    options = Options(
        method=method,
        backbone='resnet18',
        epochs=args.epochs,
        size=args.size,
        batch_size=args.batch_size,
        workers=1,
    )
    plan = plan_run(Request(str(args.data / 'img_dir' / 'train'), options))
    if method == 'slotcon':
        changes = {'model.num_prototypes': classes}
        prototypes = Setting('prototypes', str(classes), 'as many as classes', changes)
        settings = [setting for setting in plan.settings if setting.name != 'prototypes']
        plan = plan._replace(settings=[*settings, prototypes])
    config = folder / 'config.py'
    write_text(config, plan_text(plan, str(folder), 'benchmarks/segmenters.py'))
    return config


def list_options(args, init: str = '') -> list:
    """Return the options of DenseSiam's config: the same images, steps and size of views."""
    views = 'train_dataloader.dataset.pipeline.3.transforms'
    options = [
        f'train_dataloader.dataset.data_root={args.data}',
        f'train_dataloader.batch_size={args.batch_size}',
        'train_dataloader.num_workers=1',
        f'train_cfg.max_epochs={args.epochs}',
        f'train_dataloader.dataset.pipeline.1.scale={2 * args.size}',
        f'train_dataloader.dataset.pipeline.2.crop_size={2 * args.size}',
        *(f'{views}.{view}.6.scale={args.size}' for view in range(2)),
        f'custom_hooks.0.epochs={args.epochs * 4 // 5}',
        'default_hooks.logger.interval=10',
    ]
    return options + [f'model.pretrained={init}'] * bool(init)


def train(args, name: str, classes: int) -> Path:
    """Train a run to its end, from where it was stopped; return its last checkpoint."""
    folder = args.work_dir.absolute() / name
    last = folder / f'epoch_{args.epochs}.pth'
    if last.exists():
        return last
    folder.mkdir(parents=True, exist_ok=True)
    if name.startswith('densesiam'):
        init = args.work_dir.absolute() / FEATURES / 'backbone.pth' if name == CONTINUED else ''
        config, options = DENSESIAM, ['--cfg-options', *list_options(args, init)]
    else:
        config, options = write_pretraining(args, name, folder, classes), []
    command = [sys.executable, 'tools/train.py', config, '--work-dir', folder, '--resume']
    subprocess.run([*map(str, command), *options], cwd=REPO, check=True)
    return last


class KMeans(GroupsPixels, BaseModel):
    """Segment by the nearest of K means of a backbone's features, which have length 1."""

    def __init__(self, backbone, preprocessor, means=None) -> None:
        super().__init__()
        self.backbone, self.data_preprocessor, self.means = backbone, preprocessor, means

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the last map N×C×h×w, normalised over channels."""
        return F.normalize(self.backbone(inputs)[-1], dim=1)

    @torch.no_grad()
    def group_scores(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return x·m − |m|²/2, which orders means as their distances do."""
        products = torch.einsum('nchw,kc->nkhw', self.features(inputs), self.means)
        return products - self.means.square().sum(1)[:, None, None] / 2


@torch.no_grad()
def fit_kmeans(checkpoint: Path, images: Path, number: int, side: int) -> KMeans:
    """Return k-means of a backbone's features at some locations of all training images."""
    found = load_backbones(str(checkpoint))
    model = KMeans(found.pretrained, found.preprocessor)
    resize = dict(type='mmpretrain.ResizeEdge', scale=side, edge='short')
    dataset = UnlabeledDataset(data_root=str(images), pipeline=[found.load, resize])
    rng = np.random.default_rng(0)
    rows = []
    for i in range(len(dataset)):
        features = model.features(normalise(model, dataset[i]['img']))[0].flatten(1).T
        rows.append(features[rng.permutation(len(features))[:LOCATIONS]])
    means, _ = kmeans2(torch.cat(rows).double().numpy(), number, iter=50, minit='++', seed=0)
    model.means = torch.from_numpy(means).float()
    return model.eval()


def normalise(model: BaseModel, image) -> torch.Tensor:
    """Return 1×3×H×W as the model takes it, of an image H×W×3 or 3×H×W in BGR."""
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return model.data_preprocessor(dict(inputs=image[None]))['inputs']


def measure(model: BaseModel, data: dict, void: int, side: int) -> dict:
    """Return mIoU and aAcc of a segmenter on labelled images of a height, in per cent."""
    resize = dict(type='Resize', scale=(2048, side), keep_ratio=True)
    data['pipeline'] = [step for step in data['pipeline'] if step['type'] != 'Resize']
    data['pipeline'].insert(1, resize)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(data)
    metric = METRICS.build(dict(type='UnsupervisedIoU', ignore_index=void))
    metric.dataset_meta = dataset.metainfo
    for item in dataset:
        (sample,) = model.predict(normalise(model, item['inputs']), [item['data_samples']])
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(len(dataset))


def main() -> None:
    """Train what is left, measure, and print a table."""
    args = parse_args()
    args.data = args.data.absolute()
    cfg = Config.fromfile(str(DENSESIAM))
    test = cfg.test_dataloader.dataset
    test.data_root = str(args.data)
    classes = len(test.metainfo.classes)
    checkpoints = {name: train(args, name, classes) for name in RUNS}
    results = args.work_dir / 'results.json'
    found = json.loads(results.read_text()) if results.exists() else {}
    sides = args.size, 2 * args.size
    for name in ROWS:
        for side in sides:
            if f'{name} {side}' in found:
                continue
            if name == 'kmeans':
                images = args.data / 'img_dir' / 'train'
                model = fit_kmeans(checkpoints[FEATURES], images, classes, side)
            else:
                model = load_algorithm(str(checkpoints[name]), kind=GroupsPixels)
            found[f'{name} {side}'] = measure(model, test.to_dict(), cfg.void, side)
            write_text(results, json.dumps(found, indent=1))
    heads = ' | '.join(f'mIoU, {side} px | pixels right, {side} px' for side in sides)
    print(f'| groups | {heads} |\n| --- | --- | --- | --- | --- |')
    for name, title in ROWS.items():
        rows = [found[f'{name} {side}'] for side in sides]
        cells = (row[f'unsupervised/{kind}'] for row in rows for kind in ('mIoU', 'aAcc'))
        print(f'| {title} | {" | ".join(f"{cell:.1f}" for cell in cells)} |')


if __name__ == '__main__':
    main()
