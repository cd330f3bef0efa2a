# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The algorithms that are measured, ours and the peers', and batches for them."""

import copy
import os.path

import common
import mmpretrain
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.structures import DataSample
from torch import nn

import mmdense.models  # noqa: F401 - registers them

# Ours, with their names in the tables.
ALGORITHMS = dict(densecl='DenseCL', pixpro='PixPro', slotcon='SlotCon', detco='DetCo')

# Of mmpretrain, as shipped.
SHIPPED = {
    'DenseCL': 'densecl/densecl_resnet50_8xb32-coslr-200e_in1k.py',
    'MoCo v2': 'mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py',
    'BYOL': 'byol/byol_resnet50_16xb256-coslr-200e_in1k.py',
}


def shipped_config(name):
    """A config of the installed mmpretrain: a key of SHIPPED."""
    folder = os.path.dirname(mmpretrain.__file__)
    for configs in (os.path.join(folder, '.mim', 'configs'), os.path.join(folder, '../configs')):
        path = os.path.join(configs, SHIPPED[name])
        if os.path.exists(path):
            return Config.fromfile(path)
    raise FileNotFoundError(f"mmpretrain's {SHIPPED[name]} is not beside {mmpretrain.__file__}")


def shrink(model, args):
    """The depth and the queues of the command line in a model's config."""
    model.backbone.depth = args.depth
    if 'in_channels' in model.neck and args.depth < 50:
        model.neck.in_channels = 512
    for key in ('queue_len', 'num_prototypes'):
        if key in model:
            model[key] = getattr(args, key)
    return model


def build(config, scope, args):
    with DefaultScope.overwrite_default_scope(scope), MODELS.switch_scope_and_registry(scope) as r:
        model = r.build(config)
    MessageHub.get_current_instance().update_info('max_iters', 1000)  # the twins' schedules
    model = revert_sync_batchnorm(model).to(args.device)
    model.train()
    return model


def ours(algorithm, args):
    """An algorithm of mmdense, from configs/_base_/models."""
    path = common.CONFIGS / '_base_' / 'models' / f'{algorithm}_r50.py'
    cfg = Config.fromfile(str(path))
    shrink(cfg.model, args)
    cfg.merge_from_dict(args.cfg_options or {})
    return build(cfg.model, 'mmdense', args)


def theirs(name, args):
    """An algorithm of mmpretrain's: a key of SHIPPED."""
    return build(shrink(shipped_config(name).model, args), 'mmpretrain', args)


class LightlyDenseCL(nn.Module):
    """lightly's parts for DenseCL, put together as the paper says; same backbone.

    What it has no part for is left out: the shuffled BatchNorm, which does nothing in one process.
    Its local queue takes every key, ours (as the published code's) the mean of an image's.
    """

    def __init__(self, args):
        super().__init__()
        heads = common.peer('lightly.models.modules')
        width = 2048 if args.depth >= 50 else 512
        self.utils = common.peer('lightly.models.utils')
        self.online = nn.ModuleList(
            [
                theirs('DenseCL', args).backbone,
                heads.DenseCLProjectionHead(width, 2048, 128),
                heads.DenseCLProjectionHead(width, 2048, 128),
            ]
        )
        self.twin = copy.deepcopy(self.online)
        self.utils.deactivate_requires_grad(self.twin)
        loss = common.peer('lightly.loss').NTXentLoss
        self.losses = nn.ModuleList(
            [loss(temperature=0.2, memory_bank_size=(args.queue_len, 128)) for _ in range(2)]
        )
        self.to(args.device).train()

    def forward(self, inputs, data_samples=None, mode='loss'):
        def encode(encoder, view):
            backbone, whole, dense = encoder
            maps = backbone(view)[-1].flatten(2)  # NxCxS
            return maps.transpose(1, 2), whole(maps.mean(2)), dense(maps.transpose(1, 2))

        maps_q, q, cells_q = encode(self.online, inputs[0])
        with torch.no_grad():
            self.utils.update_momentum(self.online, self.twin, m=0.999)
            maps_k, k, cells_k = encode(self.twin, inputs[1])
            cells_k = self.utils.select_most_similar(maps_q, maps_k, cells_k)
        single, dense = self.losses
        return dict(
            loss_single=0.5 * single(q, k),
            loss_dense=0.5 * dense(cells_q.flatten(0, 1), cells_k.flatten(0, 1)),
        )


def algorithm(name, args):
    """Any of them by its name in the tables: 'mmdense densecl', 'mmpretrain MoCo v2', …"""
    package, _, name = name.partition(' ')
    if package == 'mmdense':
        return ours(name, args)
    return theirs(name, args) if package == 'mmpretrain' else LightlyDenseCL(args)


# ---------------------------------------------------------------------------------------- batches


def random_boxes(n, device):
    """Two crops of each of n images, mirrored at random: N×4 and N×4."""
    boxes = []
    for _ in range(2):
        start = torch.rand(n, 2) * 0.4
        box = torch.cat([start, start + 0.3 + torch.rand(n, 2) * 0.3], dim=1)
        boxes.append(torch.where(torch.rand(n, 1) < 0.5, box[:, [2, 1, 0, 3]], box).to(device))
    return boxes


def random_batch(name, args):
    """Views as the algorithm takes them, and their data samples."""
    n, size, patch = args.batch_size, args.size, args.patch_size
    shapes = [(n, 3, size, size)] * 2
    if name == 'mmdense detco':
        shapes += [(n, 3, patch, 9 * patch)] * 2
    views = [torch.randn(shape, device=args.device) for shape in shapes]
    boxes = torch.stack(random_boxes(n, 'cpu'), dim=1)
    return views, [DataSample(metainfo=dict(view_boxes=box)) for box in boxes]


def training_step(model, batch, args):
    """The losses of a batch and their gradients."""

    def run():
        model.zero_grad()
        with common.autocast(args):
            loss = sum(model(*batch, mode='loss').values())
        loss.backward()

    return run


def step(name, args):
    """A training step of an algorithm, see :func:`algorithm`, on a random batch."""
    return training_step(algorithm(name, args), random_batch(name, args), args)
