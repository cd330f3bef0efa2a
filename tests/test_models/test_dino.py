# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names, main
from torch import nn

from mmdense.apis import planning
from mmdense.checkpoints import read_checkpoint, recognise
from mmdense.engine import ClipEachGradientHook, FreezeLayersHook
from mmdense.models import DINO, DINONeck, DINOViT, RunFacts, multi_crop_distillation
from mmdense.models.layers import MomentumEncoder
from mmdense.models.utils import count_nearest
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')

PROTOTYPES = 12


def tiny():
    """Return what the generic tests need."""

    def parts(norm):
        return dict(neck=neck(64), total_steps=50)

    return Tiny(
        algorithm='DINO',
        family='momentum',
        parts=parts,
        recipe='dino_r50_coco',
        options=[
            'train_dataloader.dataset.pipeline.1.transforms.1.0.scale=64',
            'train_dataloader.dataset.pipeline.1.transforms.2.0.scale=32',
            'model.neck.in_channels=512',
            'model.neck.hid_channels=64',
            'model.neck.num_prototypes=16',
        ],
        health=health_names(global_=PAIRS, prototypes=('used', 'dead')),
        losses=['loss'],
        product='encoder_k.module.backbone',
        passes=2,  # crops of one size are one batch
        # the mean of the teacher's scores
        calls=lambda image, patches, seen: [('all_reduce', PROTOTYPES * 4)],
    )


def neck(in_channels, prototypes=PROTOTYPES, **changes):
    """Return the config of a small projection head."""
    sizes = dict(in_channels=in_channels, hid_channels=16, out_channels=8)
    return dict(type='DINONeck', num_prototypes=prototypes, **sizes, **changes)


if __name__ == '__main__':
    main(globals())
