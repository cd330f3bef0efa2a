# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Training checkpoints that an earlier mmdense wrote, and the run that each of them is part of.

``NAME.py`` is the config of a run of six steps, two an epoch, and ``NAME.pth`` the checkpoint that
the run writes after the third, in the middle of an epoch. ``NAME.json`` holds the losses of the
three steps after it, and of each tensor after the last step the mean, the norm and the first
numbers, as that version computed them. No later version writes these files again: a run that a
user began must continue. For a further algorithm, write NAME.py and run
``python tests/earlier_checkpoints/run.py NAME``.
"""

import json
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

FOLDER = Path(__file__).resolve().parent
STOPPED = 3  # iterations


def write_images(folder):
    """Write eight images, the same anywhere: PNG files of 80×64 pixels, smooth and different."""
    folder.mkdir()
    rng = np.random.RandomState(0)
    y, x = np.mgrid[:64, :80]
    for i in range(8):
        waves = [np.sin(a * x / 16 + b * y / 16 + c) for a, b, c in rng.rand(3, 3) * 6]
        image = np.stack(waves, axis=-1) * 100 + 127
        Image.fromarray(image.astype(np.uint8)).save(folder / f'{i}.png')


def train(name, folder, resume=None):
    """Train in ``folder``, from the first step or from a checkpoint, to the sixth step.

    Return the losses of the last three steps, by name, and the final state dict. The checkpoints
    after 3 and 6 steps are ``iter_3.pth`` and ``iter_6.pth`` there. Paths in them are relative:
    the current folder must be ``folder``.
    """
    write_images(folder / 'images')
    cfg = Config.fromfile(str(FOLDER / f'{name}.py'))
    cfg.merge_from_dict(
        {
            'train_dataloader.batch_size': 4,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.pin_memory': False,
            'train_dataloader.dataset.data_root': 'images',
            'train_dataloader.dataset.data_prefix': '',
            'train_cfg.max_epochs': 3,
            'default_hooks.checkpoint': dict(interval=3, by_epoch=False, max_keep_ckpts=-1),
            'default_hooks.backbone_export.filename': None,
            'work_dir': '.',
            'experiment_name': uuid.uuid4().hex,  # MMEngine keeps one logger a name
            'load_from': resume and str(resume),
            'resume': resume is not None,
        }
    )
    runner = Runner.from_cfg(cfg)
    # Without oneDNN: these networks have fewer than 8 channels (tests/conftest.py).
    with torch.backends.mkldnn.flags(enabled=False):
        runner.train()
    losses = {
        name: buffer.data[0][STOPPED:].tolist()
        for name, buffer in runner.message_hub.log_scalars.items()
        if name.startswith('train/loss')
    }
    return losses, runner.model.state_dict()


def describe(tensors):
    """Return mean, norm and the first four numbers of each tensor of a state dict, by name."""
    described = {}
    for name, tensor in tensors.items():
        values = tensor.double().flatten()
        described[name] = [values.mean().item(), values.norm().item(), *values[:4].tolist()]
    return described


def format_numbers(numbers):
    """Return JSON with a line for each loss and tensor."""
    parts = []
    for part, entries in numbers.items():
        lines = [f'  {json.dumps(name)}: {json.dumps(entries[name])}' for name in entries]
        parts.append(f' {json.dumps(part)}: {{\n' + ',\n'.join(lines) + '\n }')
    return '{\n' + ',\n'.join(parts) + '\n}\n'


def write(name):
    """Train the run of a config; write its checkpoint and the numbers after it to this folder."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        losses, state = train(name, Path(folder))
        shutil.copy('iter_3.pth', FOLDER / f'{name}.pth')
        os.chdir(FOLDER)
    numbers = dict(losses=losses, tensors=describe(state))
    (FOLDER / f'{name}.json').write_text(format_numbers(numbers))


if __name__ == '__main__':
    for given in sys.argv[1:]:
        write(given)
