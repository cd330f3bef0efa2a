# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Pretrain DenseCL for minutes on photographs of the installed packages, and draw its matches:
python tools/demo.py [--work-dir DIR] [--epochs N]"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections import deque
from importlib.util import find_spec
from pathlib import Path

# Before torch is imported, here and in training. Threads that wait by spinning make a step three
# times slower as soon as something else runs on the machine.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image, ImageEnhance
from torchvision import transforms

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings(every=True)  # before the imports below

from mmdense.checkpoints import convert_checkpoint
from mmdense.models.utils import calibrate
from mmdense.registry import MODELS
from mmdense.utils.errors import (
    DataError,
    InputError,
    one_line_errors,
)
from mmdense.visualization import (
    Panel,
    draw_correspondence,
    draw_view_pair,
    match_errors,
    match_views,
)

REPO = Path(__file__).resolve().parents[1]
CONFIG = REPO / 'configs' / 'densecl' / 'densecl_resnet18_demo.py'

# Photographs in the wheels of other packages: (package, path in it).
TRAIN = (
    ('skimage', 'data/astronaut.png'),
    ('skimage', 'data/chelsea.png'),
    ('skimage', 'data/rocket.jpg'),
    ('skimage', 'data/motorcycle_left.png'),
    ('skimage', 'data/motorcycle_right.png'),
    ('skimage', 'data/retina.jpg'),
    ('skimage', 'data/hubble_deep_field.jpg'),
    ('skimage', 'data/ihc.png'),
    ('skimage', 'data/camera.png'),
    ('skimage', 'data/brick.png'),
    ('skimage', 'data/grass.png'),
    ('skimage', 'data/gravel.png'),
    ('skimage', 'data/coins.png'),
)
HELD_OUT = (
    ('imgaug', 'quokka.jpg'),
    ('matplotlib', 'mpl-data/sample_data/grace_hopper.jpg'),
    ('skimage', 'data/coffee.png'),
)

LONG_SIDE = 640  # larger photographs are scaled down to it
TILE = 192
STEP = 64
VIEW = 256  # pixels of the views that are compared


def parse_args():
    parser = argparse.ArgumentParser(description='From photographs to a picture, in minutes')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where everything is written')
    parser.add_argument('--epochs', help='passes over the photographs')
    parser.add_argument('--batch-size', help='photographs in a training step')
    parser.add_argument('--workers', help='processes that load photographs')
    parser.add_argument('--max-tiles', help='train on so many tiles only, for a quick try')
    parser.add_argument(
        '--pairs', default='40', help='pairs of views tried on each held-out photograph'
    )
    return parser.parse_args()


def check_args(args):
    """Turn arguments that have to be integers into integers."""
    for name, least in (
        ('epochs', 1),
        ('batch_size', 1),
        ('workers', 0),
        ('max_tiles', 1),
        ('pairs', 1),
    ):
        text = getattr(args, name)
        if text is None:
            continue
        if not re.fullmatch(r'\d+', text) or int(text) < least:
            flag = name.replace('_', '-')
            raise InputError(f'--{flag} must be a whole number from {least}, got {text}')
        setattr(args, name, int(text))


def main():
    args = parse_args()
    work_dir = Path(args.work_dir)
    with one_line_errors(OSError):
        check_args(args)
        began = time.time()
        held_out = prepare_photographs(args, work_dir)

        print('2/5  Pretraining: DenseCL, ResNet-18, no labels. In a run as short as this the')
        print('     loss is no measure of success; step 4 is.')
        checkpoint = pretrain(args, work_dir)

        backbone_file = work_dir / 'backbone.pth'
        print('3/5  Export: the backbone alone, without what only pretraining needs.')
        print('     ' + convert_checkpoint(str(checkpoint), str(backbone_file)))
        picture = compare_backbones(args, work_dir, backbone_file, held_out)

    print(f"""
Done in {(time.time() - began) / 60:.1f} minutes.
  picture     {picture}
  backbone    {backbone_file}
  log         {work_dir / 'pretrain'}

Pretrain on your own images; it ends with the lines for a config of mmdet or mmseg:
  {os.path.relpath(sys.executable)} -m mmdense pretrain /path/to/images""")


def prepare_photographs(args, work_dir):
    """Cut the photographs to train on into tiles, and return the paths of the others."""
    print('1/5  Photographs. Nothing is downloaded: they come with the installed packages.')
    train, held_out = installed(TRAIN), installed(HELD_OUT)
    if len(train) < 4 or not held_out:
        raise DataError(
            f'the demo found {len(train)} photographs to train on and {len(held_out)} to try; '
            'most of them come with scikit-image: pip install scikit-image'
        )
    tiles = cut_tiles(train, work_dir / 'photographs', args.max_tiles)
    print(
        f'     {len(train)} photographs to train on, cut into {tiles} overlapping tiles of '
        f'{TILE} pixels: {work_dir / "photographs"}'
    )
    names = ', '.join(path.stem for path in held_out)
    print(f'     {len(held_out)} photographs that training never sees: {names}')
    return held_out


def compare_backbones(args, work_dir, backbone_file, held_out):
    """Compare the pretrained backbone with a random one, and return the path of a picture."""
    print('4/5  Comparison. Two views of a held-out photograph: other crop, mirrored or not,')
    print('     other brightness, contrast and colour. For each location of one view: which')
    print('     location of the other has the most similar feature, and is it the true place?')
    cfg = Config.fromfile(str(CONFIG))
    init_default_scope(cfg.default_scope)
    scale = [np.divide(cfg.model.data_preprocessor[key], 255).tolist() for key in ('mean', 'std')]
    preprocess = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*scale)])
    backbones = {
        'random weights': random_backbone(cfg, preprocess, work_dir / 'photographs'),
        'pretrained weights': pretrained_backbone(cfg, backbone_file),
    }
    random = np.random.RandomState(0)
    photos = [open_photo(path) for path in held_out]
    pairs = [view_pair(photo, random) for photo in photos for _ in range(args.pairs)]
    hits = compare(backbones, preprocess, pairs)
    print_hits(hits, pairs)

    print('5/5  Picture: of the pair for which pretraining helped as much as for the median pair.')
    picture = work_dir / 'correspondence.png'
    gains = [
        float(after.mean() - before.mean())
        for before, after in zip(hits['random weights'], hits['pretrained weights'])
    ]
    typical = int(np.argsort(gains)[len(gains) // 2])
    titles = {
        name: f'{name}: {share(hits[name])} of matches\nright over {len(pairs)} pairs of views'
        for name in backbones
    }
    draw(backbones, preprocess, pairs[typical], titles, str(picture))
    return picture


def print_hits(hits, pairs):
    """Print the share of right matches of each backbone."""
    locations = sum(map(len, hits['random weights']))
    print(f'     {len(pairs)} pairs, {locations} locations. Matches within one grid cell of the')
    print('     true place:')
    mirrored = [one_is_mirrored(*boxes) for boxes, _ in pairs]
    plain = [not each for each in mirrored]
    print(f'     {"":24s}all pairs   one mirrored   neither or both')
    for name in hits:
        row = [share(hits[name], chosen) for chosen in (None, mirrored, plain)]
        print('     {:24s}{:>9s}{:>15s}{:>18s}'.format(name, *row))


def installed(photographs):
    """Return the paths of the photographs that exist."""
    paths = []
    for package, name in photographs:
        spec = find_spec(package)  # does not import it
        for folder in (spec and spec.submodule_search_locations) or ():
            if (Path(folder) / name).is_file():
                paths.append(Path(folder) / name)
                break
    return paths


def open_photo(path):
    """Open a photograph as RGB, the long side no longer than LONG_SIDE."""
    photo = Image.open(path).convert('RGB')
    photo.thumbnail((LONG_SIDE, LONG_SIDE), Image.BICUBIC)
    return photo


def cut_tiles(photographs, folder, limit):
    """Write the tiles, and return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob('*_tile_*.jpg'):
        old.unlink()
    count = 0
    for path in photographs:
        photo = open_photo(path)
        for y in range(0, photo.height - TILE + 1, STEP):
            for x in range(0, photo.width - TILE + 1, STEP):
                if limit is None or count < limit:
                    tile = photo.crop((x, y, x + TILE, y + TILE))
                    tile.save(folder / f'{path.stem}_tile_{y}_{x}.jpg', quality=95)
                    count += 1
    return count


def pretrain(args, work_dir):
    """Run tools/train.py, show one line an epoch, and return the checkpoint."""
    options = [f'train_dataloader.dataset.data_root={work_dir / "photographs"}']
    if args.epochs is not None:
        options += [f'train_cfg.max_epochs={args.epochs}']
    if args.batch_size is not None:
        options += [f'train_dataloader.batch_size={args.batch_size}']
    if args.workers is not None:
        options += [f'train_dataloader.num_workers={args.workers}']
    folder = work_dir / 'pretrain'
    command = [sys.executable, str(REPO / 'tools' / 'train.py'), str(CONFIG)]
    command += ['--work-dir', str(folder), '--cfg-options', *options]
    search_path = [str(REPO), os.environ.get('PYTHONPATH')]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, search_path)))
    last = deque(maxlen=1)
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            if line.strip():
                last.append(line.strip())
            shown = re.search(r'Epoch\(train\)\s+\[(\d+)\].*eta: (\S+).* loss: (\S+)', line)
            if shown:
                epoch, eta, loss = shown.groups()
                print(f'     epoch {epoch:>3s}   loss {loss}   {eta} left', flush=True)
    if process.returncode:
        raise InputError(f'pretraining ended early: {last[0] if last else "no output"}')
    return Path((folder / 'last_checkpoint').read_text().strip())


def random_backbone(cfg, preprocess, folder):
    """Build the backbone that pretraining starts from, with BatchNorm statistics of the
    photographs: without these it would be worse than it has to be."""
    torch.manual_seed(0)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    paths = sorted(folder.glob('*.jpg'))
    tiles = [paths[i :: max(4, len(paths) // 32)] for i in range(4)]
    calibrate(backbone, [to_tensor(preprocess, map(Image.open, part)) for part in tiles])
    return backbone


def pretrained_backbone(cfg, checkpoint):
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=str(checkpoint))
    backbone = MODELS.build(dict(cfg.model.backbone, init_cfg=init_cfg))
    backbone.init_weights()
    backbone.eval()
    return backbone


def to_tensor(preprocess, views):
    """Stack images of one size to N×3×H×W."""
    return torch.stack([preprocess(view) for view in views])


def view_pair(photo, random):
    """Draw two views that also differ in brightness, contrast and colour: boxes and images."""
    boxes, views = draw_view_pair(photo, VIEW, random)
    return boxes, [jitter(view, random) for view in views]


def jitter(view, random):
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = kind(view).enhance(random.uniform(0.6, 1.4))
    return view


def compare(backbones, preprocess, pairs, batch=16):
    """Compare each backbone and two ways to guess: of each pair of views, whether
    the matches of the locations that both show are right, 1 or 0 (guessing: the
    probability of it)."""
    place, blind = 'same place in the view', 'blind guessing'
    hits = {name: [] for name in (*backbones, place, blind)}
    for i in range(0, len(pairs), batch):
        boxes, views = zip(*pairs[i : i + batch])
        view_a, view_b = (to_tensor(preprocess, side) for side in zip(*views))
        for name, backbone in backbones.items():
            found = match_views(backbone, view_a, view_b)
            grids = found.grid_a, found.grid_b
            hits[name] += [right(m, *b, *grids) for m, b in zip(found.match, boxes)]
        locations = torch.arange(found.match.shape[1])  # views of one size: as many in both
        for box in boxes:
            hits[place].append(right(locations, *box, *grids))
            guesses = [
                right(torch.full_like(locations, location), *box, *grids) for location in locations
            ]
            hits[blind].append(torch.stack(guesses).mean(dim=0))
    return hits


def right(match, *boxes_and_grids):
    """Return 1.0 for each visible location whose match is within one grid cell of the truth."""
    errors = match_errors(match, *boxes_and_grids)
    return (errors[~errors.isnan()] <= 1).float()


def share(hits, chosen=None):
    """Return the share of the chosen pairs, in per cent."""
    hits = [hit for i, hit in enumerate(hits) if chosen is None or chosen[i]]
    return f'{torch.cat(hits).mean():.1%}' if hits else '-'


def one_is_mirrored(box_a, box_b):
    return (box_a[0] > box_a[2]) != (box_b[0] > box_b[2])


def draw(backbones, preprocess, pair, titles, path):
    boxes, views = pair
    view_a, view_b = (to_tensor(preprocess, [view]) for view in views)
    panels = []
    for name, backbone in backbones.items():
        found = match_views(backbone, view_a, view_b)
        grids = found.grid_a, found.grid_b
        errors = match_errors(found.match[0], *boxes, *grids)
        panels.append(Panel(titles[name], found.match[0], found.similarity[0], errors))
    draw_correspondence(
        *map(np.asarray, views),
        panels,
        *grids,
        title='Cells that a backbone finds most similar, in a photograph not trained on',
        path=path,
    )


if __name__ == '__main__':
    main()
