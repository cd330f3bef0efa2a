# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Estimate what the published recipes take: counted and calculated from their configs."""

import copy
import json
import re
from argparse import Namespace
from pathlib import Path
from typing import List, Optional

import models  # benchmarks/models.py
import torch
from mmengine import load
from mmengine.config import Config
from pieces import REPO, digest
from torch.utils.flop_counter import FlopCounterMode

from mmdense.apis.planning import METHODS, Images, Machine, Times, estimate, survey_network
from mmdense.apis.planning.timing import EIGHT, GPU_FLOPS
from mmdense.utils.files import atomic_write

IMAGES = {
    'COCO train2017': 118_287,
    'COCO train2017 and unlabeled2017': 118_287 + 123_403,
    'ImageNet-1k': 1_281_167,
}
_BATCH = 2  # of which operations are counted: they are proportional, but for SlotCon's few of slots


def table() -> List[dict]:
    """A row for each recipe of the metafiles that has an epoch count.

    Returns:
        List[dict]: ``name``, ``data``, ``images_seen``, ``batch`` (of all
        GPUs), ``steps``, ``flops`` of a step, ``days`` on eight GPUs,
        ``memory`` of one in bytes.
    """
    rows, counted = [], {}
    for method in METHODS:
        folder = REPO / 'configs' / method
        for model in load(str(folder / 'metafile.yml'))['Models']:
            cfg = Config.fromfile(str(REPO / model['Config']))
            count = IMAGES[model['Metadata']['Training Data']]
            parts = digest(cfg.model.to_dict())
            if parts not in counted:
                counted[parts] = count_operations(cfg)
            rows.append(_row(model['Name'], model['Metadata']['Training Data'], count, cfg))
            rows[-1].update(_cost(cfg, count, *counted[parts]))
    return rows


def _row(name: str, data: str, count: int, cfg: Config) -> dict:
    total = cfg.auto_scale_lr.base_batch_size
    steps = cfg.train_cfg.max_epochs * (count // total)
    return dict(
        name=name,
        data=data,
        images_seen=steps * total,
        batch=total,
        steps=steps,
    )


def count_operations(cfg: Config) -> tuple:
    """Count the model of a recipe.

    Returns:
        Tuple[float, int, int]: Operations of a training step for each image,
        multiplications and additions apart; trained parameters; bytes that
        backward keeps of an image in float32.
    """
    make_views = cfg.train_dataloader.dataset.pipeline[1]
    view, *patches = make_views.transforms
    patches = patches[0][-1].get('patch_size', 0) if patches else 0
    args = Namespace(batch_size=_BATCH, size=view[0].scale, patch_size=patches, device='cpu')
    algorithm = f'mmdense {cfg.model.type.lower()}'
    torch.manual_seed(0)
    model = models.build(copy.deepcopy(cfg.model), 'mmdense', args)
    views, samples = models.random_batch(algorithm, args)
    number = make_views.num_views  # an ablation of DetCo has no patches
    views = views[: number if isinstance(number, int) else sum(number)]
    with FlopCounterMode(display=False) as counter:
        sum(model(views, samples, mode='loss').values()).backward()
    network = survey_network(cfg, f'resnet{cfg.model.backbone.depth}', args.size)
    return counter.get_total_flops() / _BATCH, network.parameters, network.bytes_per_image


def _cost(cfg: Config, count: int, flops: float, parameters: int, kept: int) -> dict:
    batch = cfg.auto_scale_lr.base_batch_size // EIGHT
    machine = Machine('cpu', '', 0, 0, 1, '')  # has the time on GPUs guessed by operations
    times = Times(batch, 0, 0, flops * batch, 0)
    there = Config(dict(train_cfg=cfg.train_cfg, train_dataloader=dict(batch_size=batch)))
    images = Images({}, count, 0)
    days = estimate(times, cfg, images, machine, EIGHT, there, EIGHT).there / 86400
    # as mmdense.apis.planning.settings.images_that_fit: half precision, and 40 % on the way
    memory = 16 * parameters + batch * kept * 0.5 * 1.4
    return dict(flops=flops * batch * EIGHT, days=days, memory=memory)


def write(path: Path) -> None:
    """Counts, and keeps the rows."""
    rows = [
        {k: float(f'{v:.4g}') if isinstance(v, float) else v for k, v in row.items()}
        for row in table()
    ]
    with atomic_write(str(path)) as part, open(part, 'w', encoding='utf-8') as file:
        json.dump(dict(gpu_flops=GPU_FLOPS, rows=rows), file, indent=1)
    print(f'wrote {path}')


def measured(name: str, device: str = '') -> Optional[float]:
    """Images a second of a plain recipe's step that docs/benchmarks.md has, R50 at 224 px."""
    method, network = name.split('_')[:2]
    path = REPO / 'benchmarks' / 'results' / f'step-{method}{device}.json'
    if not path.is_file() or network != 'resnet50':
        return None
    for row in json.loads(path.read_text(encoding='utf-8'))['rows']:
        batch = re.search(r'R50, batch (\d+), 224 px', row['setting'])
        if batch:
            seconds = row['ours'][0] * (0.001 if row['unit'] == 'ms' else 1)
            threads = re.search(r'(\d+) threads, CPU seconds', row['setting'])
            seconds /= int(threads[1]) if threads else 1
            return round(int(batch[1]) / seconds, 2)
    return None


def markdown(found: dict) -> str:
    """The table of the page.

    Args:
        found (dict): As :func:`write` keeps it.
    """
    heads = ['recipe', 'images seen, millions', 'steps', 'batch', 'TFLOP a step', 'EFLOP in all']
    heads += ['days on 8 GPUs, at best', 'images/s there', 'GB a GPU']
    heads += ['measured images/s, two cores', 'one GPU']
    lines = [f'| {" | ".join(heads)} |', '|' + ' --- |' * len(heads)]
    for row in found['rows']:
        rates = measured(row['name']), measured(row['name'], '-cuda')
        cells = [
            f'`{row["name"]}`',
            f'{row["images_seen"] / 1e6:.0f}',
            f'{row["steps"]:,}',
            row['batch'],
            f'{row["flops"] / 1e12:.3g}',
            f'{row["flops"] * row["steps"] / 1e18:.2g}',
            f'{row["days"]:.2g}',
            f'{row["images_seen"] / row["days"] / 86400:,.0f}',
            f'{row["memory"] / 1e9:.2g}',
            *(f'{rate:.3g}' if rate else '–' for rate in rates),
        ]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)
