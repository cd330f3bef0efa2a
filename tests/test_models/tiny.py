# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Every algorithm at a tiny size, for tests and the processes that they start."""

import os
import sys

import torch
from mmengine.registry import DefaultScope
from torch import distributed

ALGORITHMS = ('DenseCL', 'PixPro', 'SlotCon', 'DetCo')
MLP = dict(type='ProjectionMLP', hid_channels=16, out_channels=8)
# There is no synchronised BatchNorm on the CPU: a norm that does not look at other images.
NORM = dict(type='GN', num_groups=4)


def tiny_model(algorithm, norm=NORM, **changes):
    """A tiny model, without BatchNorm unless asked for, the same in every process."""
    from mmdense.registry import MODELS

    mlp = dict(MLP, norm_cfg=norm)
    backbone = dict(
        type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8, norm_cfg=norm
    )
    backbone.update(changes.pop('backbone', {}))
    neck = dict(mlp, in_channels=64)
    queues = dict(queue_len=13, feat_dim=8, head=dict(type='InfoNCEHead'))
    if algorithm == 'DenseCL':
        neck = dict(type='DenseCLNeck', in_channels=64, hid_channels=16, out_channels=8)
        parts = queues
    elif algorithm == 'DetCo':
        backbone['out_indices'] = (0, 1, 2, 3)
        neck = dict(type='DetCoNeck', out_channels=8)
        parts = queues
    elif algorithm == 'PixPro':
        parts = dict(
            total_steps=10,
            head=dict(type='PixProHead', in_channels=8),
            instance_neck=dict(mlp, in_channels=64),
            instance_head=dict(type='InstanceConsistencyHead', predictor=dict(mlp, in_channels=8)),
        )
    elif algorithm == 'PixContrast':
        algorithm, parts = 'PixPro', dict(total_steps=10, head=dict(type='PixContrastHead'))
    else:
        predictor = dict(mlp, in_channels=8, dense=False, num_layers=3)
        parts = dict(
            total_steps=10,
            num_prototypes=12,
            head=dict(type='SlotContrastHead', predictor=predictor),
        )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(dict(type=algorithm, backbone=backbone, neck=neck, **parts, **changes))
    return model


def joined_batch(algorithm, number=6):
    """Two views of images, with boxes, and for DetCo their patches. The first
    views hardly overlap and the others do, so that processes have differently
    many positives."""
    from mmpretrain.structures import DataSample

    rng = torch.Generator().manual_seed(1)
    views = list(torch.randn(2, number, 3, 96, 96, generator=rng))
    boxes = torch.tensor([[0.1, 0.1, 0.7, 0.8], [0.9, 0.2, 0.3, 0.9]]).repeat(number, 1, 1)
    boxes[:2, 0] = torch.tensor([0.0, 0.0, 0.2, 0.3])
    boxes += 0.02 * torch.rand(number, 2, 4, generator=rng)
    if algorithm == 'DetCo':
        views += list(torch.randn(2, number, 3, 32, 288, generator=rng))
    return views, [DataSample(metainfo=dict(view_boxes=box)) for box in boxes]


def main(functions):
    """Of one of the processes that the fixture ``in_processes`` starts."""
    name, folder = sys.argv[1:]
    distributed.init_process_group('gloo')
    torch.set_num_threads(1)
    torch.manual_seed(distributed.get_rank())
    result = functions[name](distributed.get_rank())
    torch.save(result, f'{folder}/{distributed.get_rank()}.pth')
    os._exit(0)  # PyTorch 2.1 can hang while it takes gloo down
