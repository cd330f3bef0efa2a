# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Every config of configs/transfer, as another project inherits it: it differs from mmdet's or
mmseg's own by the protocol alone, its backbone is exactly the checkpoint's, nothing is frozen,
and it trains."""

import copy
import inspect
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn

from mmdense.utils.errors import DataError

FOLDER = Path(__file__).resolve().parents[2] / 'configs' / 'transfer'
# length, steps, learning rate, and where SyncBN is beside the backbone
BOTH_HEADS = ['neck', 'roi_head.bbox_head', 'roi_head.mask_head']
C4 = ['roi_head.shared_head']
DETECTORS = {
    'mask-rcnn_r50_fpn_1x_coco': (12, [8, 11], 0.02, BOTH_HEADS),
    'mask-rcnn_r50_fpn_2x_coco': (24, [16, 22], 0.02, BOTH_HEADS),
    'mask-rcnn_r50_fpn_detco-1x_coco': (12, [8, 11], 0.02, ['neck']),
    'mask-rcnn_r50_fpn_ccop-1x_coco': (12, [8, 11], 0.02, BOTH_HEADS),
    'mask-rcnn_r50_c4_1x_coco': (12, [8, 11], 0.02, C4),
    'mask-rcnn_r50_c4_2x_coco': (24, [16, 22], 0.02, C4),
    'retinanet_r50_fpn_1x_coco': (12, [8, 11], 0.01, ['neck']),
    'sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco': (36, [27, 33], 2.5e-5, ['neck']),
    'faster-rcnn_r50_c4_24k_voc0712': (24000, [18000, 22000], 0.02, C4),
    'faster-rcnn_r50_dc5_24k_voc0712': (24000, [18000, 22000], 0.02, []),
    'mask-rcnn_r50_fpn_2x_lvis-v05': (24, [16, 22], 0.02, BOTH_HEADS),
    'mask-rcnn_r50_fpn_1x_lvis-v1': (12, [8, 11], 0.02, BOTH_HEADS),
    'mask-rcnn_r50_fpn_64e_cityscapes': (8, [7], 0.01, BOTH_HEADS),  # each 8 times the images
    'mask-rcnn_r50_fpn_detco-2x_coco': (24, [16, 22], 0.02, ['neck']),
    'retinanet_r50_fpn_2x_coco': (24, [16, 22], 0.01, ['neck']),
    'faster-rcnn_r50_fpn_bccd': (3000, [2250, 2750], 0.005, ['neck', 'roi_head.bbox_head']),
    'faster-rcnn_r50_c4_bccd': (3000, [2250, 2750], 0.005, C4),
    'retinanet_r50_fpn_bccd': (3000, [2250, 2750], 0.0025, ['neck']),
    'sparse-rcnn_r50_fpn_bccd': (3000, [2250, 2750], 2.5e-5, ['neck']),
    'mask-rcnn_r50_fpn_coco100': (600, [450, 550], 0.005, BOTH_HEADS),
    'mask-rcnn_r50_c4_coco100': (600, [450, 550], 0.005, C4),
}
# From a checkpoint of a complete detector: length, steps, learning rate, the backbone's share of
# it, queries
DETRS = {
    'detr_r50_pre-norm_300e_coco': (300, [200], 1e-4, 0.5, 100),
    'detr_r50_pre-norm_bccd': (6000, [4000], 1e-4, 0.5, 100),
    'deformable-detr_r50_50e_coco': (50, [40], 2e-4, 0.1, 300),
    'deformable-detr_r50_bccd': (6000, [4800], 2.5e-5, 0.1, 300),
    'deformable-detr_r50_100e_voc0712': (100, [70], 2e-4, 0.1, 300),
    'deformable-detr_r50_50e_coco-base-classes': (50, [40], 2e-4, 0.1, 300),
}
# On a part of COCO: epochs, per cent of the images
FEW_LABELS = {
    'deformable-detr_r50_2000e_coco-1-percent': (2000, 1),
    'deformable-detr_r50_1000e_coco-2-percent': (1000, 2),
    'deformable-detr_r50_500e_coco-5-percent': (500, 5),
    'deformable-detr_r50_400e_coco-10-percent': (400, 10),
}
# A Conditional DETR from a backbone, and Pair DETR on it
PAIR = ['conditional-detr_r50_2-layers_bccd', 'pairdetr_r50_2-layers_bccd']
# length, steps (None: polynomial), learning rate, weight decay, side of the crops
SEGMENTERS = {
    'fcn_r50_30k_voc12aug-513x513': (30000, [21000, 27000], 0.003, 1e-4, (513, 513)),
    'fcn_r50_90k_cityscapes-769x769': (90000, [63000, 81000], 0.01, 1e-4, (769, 769)),
    'fcn_r50-d8_80k_ade20k-512x512': (80000, None, 0.01, 5e-4, (512, 512)),
    'fcn_r50_camvid': (20000, None, 0.01, 5e-4, (360, 480)),
    'upernet_r50_camvid': (20000, None, 0.01, 5e-4, (360, 480)),
}

# length, learning rate, images a step, whether the backbone is frozen
CLASSIFIERS = {
    'linear_r50_sgd-100e_in1k': (100, 30, 256, True),
    'linear_r50_lars-90e_in1k': (90, 1.6, 4096, True),
    'linear_vit-b_lars-90e_in1k': (90, 6.4, 16384, True),
    'semi_r50_1-percent-20e_in1k': (20, 0.01, 256, False),
    'semi_r50_10-percent-20e_in1k': (20, 0.01, 256, False),
    'classify_r50_folders': (1000, 0.01, 32, False),
}

# The config that each starts from, and all that it changes there.
RESNET = [f'model.backbone.{k}' for k in ('frozen_stages', 'init_cfg', 'norm_cfg', 'norm_eval')]
RESIZE = ['train_dataloader.dataset.pipeline.2']
CAFFE = [
    *('model.data_preprocessor.mean', 'model.data_preprocessor.std'),
    *('model.data_preprocessor.bgr_to_rgb', 'model.backbone.style'),
    *(f'model.roi_head.shared_head.{k}' for k in ('type', 'style', 'norm_cfg', 'norm_eval')),
    'model.roi_head.shared_head.init_cfg',
    *('custom_hooks', 'train_dataloader.batch_sampler', 'train_dataloader.persistent_workers'),
]
NECK = ['model.neck.norm_cfg']
BOX = [f'model.roi_head.bbox_head.{k}' for k in ('type', 'conv_out_channels', 'norm_cfg')]
HEADS = [*NECK, *BOX, 'model.roi_head.mask_head.norm_cfg']
DETR = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
DEFORMABLE = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
DETREG = ['model.type', 'model.init_cfg', 'model.neck.bias']
PRE_NORM = ['model.type', 'model.init_cfg', 'optim_wrapper.paramwise_cfg.custom_keys.backbone']
STEPS = ['param_scheduler.0.end', 'param_scheduler.0.milestones']
VOC_AP = ['val_evaluator.iou_thrs', 'test_evaluator.iou_thrs']
PLAIN = ['model.pretrained', 'model.backbone.type', 'model.backbone.init_cfg', 'auto_scale_lr']
MOCO = [
    *(*PLAIN, 'model.backbone.contract_dilation', 'model.auxiliary_head'),
    *(f'model.decode_head.{k}' for k in ('channels', 'concat_input', 'dropout_ratio')),
    *('optim_wrapper.optimizer.weight_decay', 'param_scheduler', 'train_cfg.max_iters'),
]
# Data and a schedule of their own.
BCCD = [
    *(f'train_dataloader.{k}' for k in ('dataset', 'batch_size', 'batch_sampler')),
    *('train_dataloader.sampler.type', 'val_dataloader.dataset', 'test_dataloader.dataset'),
    *('train_cfg', 'param_scheduler', 'auto_scale_lr.base_batch_size'),
    *('default_hooks.checkpoint', 'log_processor.by_epoch'),
]
VOC_METRIC = [f'{x}_evaluator' for x in ('val', 'test')]
COCO100 = [
    *(f'train_dataloader.{k}' for k in ('batch_size', 'batch_sampler', 'sampler.type')),
    *('train_cfg', 'param_scheduler', 'auto_scale_lr.base_batch_size'),
    *('default_hooks.checkpoint', 'log_processor.by_epoch', 'optim_wrapper.optimizer.lr'),
]
OURS = 'mmdense::transfer'
FILLED = ['model.backbone.init_cfg', 'auto_scale_lr']
PARENTS = {
    'mask-rcnn_r50_fpn_1x_coco': (
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        [*RESNET, *HEADS, *RESIZE],
    ),
    'mask-rcnn_r50_fpn_2x_coco': (
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py',
        [*RESNET, *HEADS, *RESIZE],
    ),
    'mask-rcnn_r50_fpn_detco-1x_coco': (
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        [*RESNET, *NECK, *RESIZE],
    ),
    'mask-rcnn_r50_fpn_ccop-1x_coco': (
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        [*RESNET, *HEADS, *RESIZE, 'model.neck.init_cfg'],
    ),
    'mask-rcnn_r50_c4_1x_coco': (
        'mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py',
        [*RESNET, *CAFFE, *RESIZE],
    ),
    'mask-rcnn_r50_c4_2x_coco': (
        'mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py',
        [
            *(*RESNET, *CAFFE, *RESIZE, 'train_cfg.max_epochs'),
            *('param_scheduler.1.end', 'param_scheduler.1.milestones'),
        ],
    ),
    'retinanet_r50_fpn_1x_coco': (
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        [*RESNET, *NECK, *RESIZE],
    ),
    'sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco': (
        'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py',
        [*RESNET, *NECK],
    ),
    'faster-rcnn_r50_c4_24k_voc0712': (
        'mmdet::pascal_voc/faster-rcnn_r50-caffe-c4_ms-18k_voc0712.py',
        [
            *(*RESNET, *CAFFE, *VOC_AP, 'train_dataloader.dataset.ignore_keys'),
            *('param_scheduler.1.end', 'param_scheduler.1.milestones', 'train_cfg.max_iters'),
        ],
    ),
    'faster-rcnn_r50_fpn_bccd': (
        'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
        [  # the data and a schedule of its own
            *(*RESNET, *NECK, *BOX, *VOC_AP, 'model.roi_head.bbox_head.num_classes'),
            *(f'train_dataloader.{k}' for k in ('dataset', 'batch_size', 'batch_sampler')),
            *('train_dataloader.sampler.type', 'val_dataloader.dataset', 'test_dataloader.dataset'),
            *('val_evaluator.eval_mode', 'test_evaluator.eval_mode', 'train_cfg'),
            *('param_scheduler', 'optim_wrapper.optimizer.lr', 'auto_scale_lr.base_batch_size'),
            *('default_hooks.checkpoint', 'log_processor.by_epoch'),
        ],
    ),
    'faster-rcnn_r50_dc5_24k_voc0712': (
        f'{OURS}/mmdet/faster-rcnn_r50_c4_24k_voc0712.py',
        [
            *(f'model.backbone.{k}' for k in ('num_stages', 'strides', 'dilations', 'out_indices')),
            *('model.rpn_head.in_channels', 'model.rpn_head.feat_channels'),
            *('model.roi_head.shared_head', 'model.roi_head.bbox_roi_extractor'),
            'model.roi_head.bbox_head',
        ],
    ),
    'mask-rcnn_r50_fpn_2x_lvis-v05': (
        'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-2x_lvis-v0.5.py',
        [*RESNET, *HEADS],
    ),
    'mask-rcnn_r50_fpn_1x_lvis-v1': (
        'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
        [*RESNET, *HEADS],
    ),
    'mask-rcnn_r50_fpn_64e_cityscapes': (
        'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py',
        [*RESNET, *HEADS, 'load_from', 'auto_scale_lr'],
    ),
    'mask-rcnn_r50_fpn_detco-2x_coco': (
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py',
        [*RESNET, *NECK, *RESIZE],
    ),
    'retinanet_r50_fpn_2x_coco': (
        'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
        [*RESNET, *NECK, *RESIZE],
    ),
    'faster-rcnn_r50_c4_bccd': (
        f'{OURS}/mmdet/faster-rcnn_r50_c4_24k_voc0712.py',
        [
            *('train_dataloader.batch_size', 'train_dataloader.dataset', 'val_dataloader.dataset'),
            *('test_dataloader.dataset', 'train_cfg', 'param_scheduler'),
            *('auto_scale_lr.base_batch_size', 'default_hooks.checkpoint.interval'),
            *('model.roi_head.bbox_head.num_classes', 'optim_wrapper.optimizer.lr'),
            *('val_evaluator.eval_mode', 'test_evaluator.eval_mode'),
            *('custom_hooks.0.interval', 'custom_hooks.0.num_samples'),
        ],
    ),
    'retinanet_r50_fpn_bccd': (
        f'{OURS}/mmdet/retinanet_r50_fpn_1x_coco.py',
        [*BCCD, *VOC_METRIC, 'model.bbox_head.num_classes', 'optim_wrapper.optimizer.lr'],
    ),
    'sparse-rcnn_r50_fpn_bccd': (
        f'{OURS}/mmdet/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py',
        [
            *(*BCCD, *VOC_METRIC),
            *(f'model.roi_head.bbox_head.{i}.num_classes' for i in range(6)),
        ],
    ),
    'mask-rcnn_r50_fpn_coco100': (f'{OURS}/mmdet/mask-rcnn_r50_fpn_1x_coco.py', COCO100),
    'mask-rcnn_r50_c4_coco100': (
        f'{OURS}/mmdet/mask-rcnn_r50_c4_1x_coco.py',
        [
            *(k for k in COCO100 if k != 'train_dataloader.batch_sampler'),
            *('custom_hooks.0.interval', 'custom_hooks.0.num_samples'),
        ],
    ),
    'upernet_r50_camvid': (
        f'{OURS}/mmseg/fcn_r50_camvid.py',
        [
            *('model.backbone.strides', 'model.backbone.dilations'),
            *('model.decode_head', 'model.auxiliary_head'),
        ],
    ),
    'linear_r50_sgd-100e_in1k': (
        'mmpretrain::mocov2/benchmarks/resnet50_8xb32-linear-steplr-100e_in1k.py',
        FILLED,
    ),
    'linear_r50_lars-90e_in1k': (
        'mmpretrain::simsiam/benchmarks/resnet50_8xb512-linear-coslr-90e_in1k.py',
        FILLED,
    ),
    'linear_vit-b_lars-90e_in1k': (
        'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py',
        [
            *FILLED,
            *(f'{x}_dataloader.dataset.pipeline.1.interpolation' for x in ('train', 'val', 'test')),
        ],
    ),
    'semi_r50_1-percent-20e_in1k': (
        'mmpretrain::mocov2/benchmarks/resnet50_8xb32-linear-steplr-100e_in1k.py',
        [
            *(*FILLED, 'model.backbone.frozen_stages', 'model.backbone.norm_cfg'),
            *('train_dataloader.dataset.type', 'train_dataloader.dataset.list_file'),
            *('optim_wrapper.optimizer.lr', 'optim_wrapper.paramwise_cfg'),
            *('param_scheduler.0.milestones', 'param_scheduler.0.gamma', 'train_cfg.max_epochs'),
        ],
    ),
    'semi_r50_10-percent-20e_in1k': (
        f'{OURS}/mmpretrain/semi_r50_1-percent-20e_in1k.py',
        ['train_dataloader.dataset.list_file'],
    ),
    'detr_r50_pre-norm_300e_coco': (DETR, [*PRE_NORM, 'train_cfg.max_epochs', *STEPS]),
    'detr_r50_pre-norm_bccd': (
        DETR,
        [  # the data and a schedule of its own
            *(*PRE_NORM, 'model.bbox_head.num_classes', 'param_scheduler', 'train_cfg'),
            *(f'train_dataloader.{k}' for k in ('dataset', 'batch_size', 'batch_sampler')),
            *('train_dataloader.sampler.type', 'val_dataloader.dataset', 'test_dataloader.dataset'),
            *('val_evaluator', 'test_evaluator', 'auto_scale_lr.base_batch_size'),
            *('default_hooks.checkpoint', 'log_processor.by_epoch'),
        ],
    ),
    'deformable-detr_r50_50e_coco': (DEFORMABLE, [*DETREG, 'train_dataloader.batch_size']),
    'deformable-detr_r50_100e_voc0712': (
        f'{OURS}/mmdet/deformable-detr_r50_50e_coco.py',
        [
            *(f'{x}_dataloader.dataset' for x in ('train', 'val', 'test')),
            *('model.bbox_head.num_classes', 'val_evaluator', 'test_evaluator'),
            *('train_cfg.max_epochs', *STEPS),
        ],
    ),
    'deformable-detr_r50_50e_coco-base-classes': (
        f'{OURS}/mmdet/deformable-detr_r50_50e_coco.py',
        [
            'model.bbox_head.num_classes',
            *(f'{x}_dataloader.dataset.metainfo' for x in ('train', 'val', 'test')),
        ],
    ),
    'deformable-detr_r50_2000e_coco-1-percent': (
        f'{OURS}/mmdet/deformable-detr_r50_50e_coco.py',
        [
            *('train_dataloader.dataset', 'train_dataloader.batch_size', 'param_scheduler'),
            *('train_cfg.max_epochs', 'train_cfg.val_interval'),
            *('default_hooks.checkpoint.interval', 'auto_scale_lr.base_batch_size'),
        ],
    ),
    **{
        name: (
            f'{OURS}/mmdet/deformable-detr_r50_2000e_coco-1-percent.py',
            [
                *('train_dataloader.dataset.share', 'default_hooks.checkpoint.interval'),
                *('train_cfg.max_epochs', 'train_cfg.val_interval'),
            ],
        )
        for name in list(FEW_LABELS)[1:]
    },
    'deformable-detr_r50_bccd': (
        DEFORMABLE,
        [  # the data and a schedule of its own
            *(*DETREG, 'model.bbox_head.num_classes', 'param_scheduler', 'train_cfg'),
            *(f'train_dataloader.{k}' for k in ('dataset', 'batch_size', 'batch_sampler')),
            *('train_dataloader.sampler.type', 'val_dataloader.dataset', 'test_dataloader.dataset'),
            *('val_evaluator', 'test_evaluator', 'auto_scale_lr.base_batch_size'),
            *('optim_wrapper.optimizer.lr', 'default_hooks.checkpoint', 'log_processor.by_epoch'),
        ],
    ),
    'conditional-detr_r50_2-layers_bccd': (
        'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        [  # a small one, the data and a schedule of its own
            *('model.type', 'model.num_queries', 'model.backbone.init_cfg'),
            *('model.encoder.num_layers', 'model.decoder.num_layers'),
            *(f'model.decoder.layer_cfg.{k}_attn_cfg.proj_drop' for k in ('self', 'cross')),
            *(f'model.bbox_head.{k}' for k in ('num_classes', 'sync_cls_avg_factor')),
            *(f'train_dataloader.{k}' for k in ('dataset', 'batch_size', 'batch_sampler')),
            *('train_dataloader.sampler.type', 'val_dataloader.dataset', 'test_dataloader.dataset'),
            *('val_evaluator', 'test_evaluator', 'auto_scale_lr.base_batch_size'),
            *('default_hooks.checkpoint', 'log_processor.by_epoch', 'param_scheduler', 'train_cfg'),
        ],
    ),
    'fcn_r50_30k_voc12aug-513x513': (
        'mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py',
        [
            *(*MOCO, 'model.backbone.dilations', 'model.backbone.strides'),
            *('model.decode_head.dilation', 'model.decode_head.align_corners'),
            *('model.data_preprocessor.size', 'train_dataloader.batch_size'),
            *(f'train_dataloader.dataset.datasets.{i}.pipeline.3.crop_size' for i in (0, 1)),
            *(f'train_dataloader.dataset.datasets.{i}.pipeline.6.size' for i in (0, 1)),
            'optim_wrapper.optimizer.lr',
        ],
    ),
    'fcn_r50_90k_cityscapes-769x769': (
        'mmseg::fcn/fcn-d6_r50-d16_4xb2-80k_cityscapes-769x769.py',
        MOCO,
    ),
    'fcn_r50-d8_80k_ade20k-512x512': (
        'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
        [*PLAIN, 'train_dataloader.batch_size'],
    ),
}


VOC_XML = """<annotation><size><width>240</width><height>200</height><depth>3</depth></size>
<object><name>{name}</name><difficult>0</difficult>
<bndbox><xmin>20</xmin><ymin>30</ymin><xmax>110</xmax><ymax>110</ymax></bndbox></object>
</annotation>"""


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    """Two images with two objects each, in COCO's format; one with one object each as VOC 2007,
    VOC 2012 and BCCD have it."""
    from PIL import Image

    root = tmp_path_factory.mktemp('coco')
    rng = np.random.default_rng(0)
    for folder, split, name in [
        ('VOC2007', 'trainval', 'cat'),
        ('VOC2012', 'trainval', 'dog'),
        ('.', 'train', 'WBC'),
    ]:
        lists = root / folder / 'ImageSets' / 'Main'
        lists.mkdir(parents=True)
        for part in ('JPEGImages', 'Annotations'):
            (root / folder / part).mkdir()
        (lists / f'{split}.txt').write_text('0\n1\n')
        for i in range(2):
            (root / folder / 'Annotations' / f'{i}.xml').write_text(VOC_XML.format(name=name))
            pixels = rng.integers(0, 255, (200, 240, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / 'JPEGImages' / f'{i}.jpg')
    images, annotations = [], []
    for i in range(2):
        pixels = rng.integers(0, 255, (200, 240, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f'{i}.jpg')
        images.append(dict(id=i, file_name=f'{i}.jpg', width=240, height=200))
        for j, (x, y, w, h) in enumerate([(20, 30, 90, 80), (120, 60, 100, 110)]):
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                dict(
                    id=2 * i + j + 1,
                    image_id=i,
                    category_id=j + 1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[corners],
                )
            )
    categories = [dict(id=1, name='person'), dict(id=2, name='bicycle')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'coco.json').write_text(json.dumps(content))
    return str(root)


@pytest.fixture(scope='module')
def masks(tmp_path_factory):
    """Two images and their masks in the folders of VOC 2012, Cityscapes, ADE20K and CamVid."""
    from PIL import Image

    root = tmp_path_factory.mktemp('masks')
    (root / 'ImageSets' / 'Segmentation').mkdir(parents=True)
    for split in ('train', 'aug'):
        (root / 'ImageSets' / 'Segmentation' / f'{split}.txt').write_text('0\n1\n')
    rng = np.random.default_rng(0)
    for images, labels, ending in [
        ('JPEGImages', 'SegmentationClass', ''),
        ('JPEGImages', 'SegmentationClassAug', ''),
        ('leftImg8bit/train/a', 'gtFine/train/a', '_gtFine_labelTrainIds'),
        ('images/training', 'annotations/training', ''),
        ('img_dir/train', 'ann_dir/train', ''),
    ]:
        for folder in (images, labels):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            pixels = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
            city = 'leftImg8bit' in images
            name = f'{i}_leftImg8bit.png' if city else f'{i}.jpg'
            Image.fromarray(pixels).save(root / images / name)
            labelled = np.repeat(
                np.repeat(rng.integers(1, 11, (6, 8), dtype=np.uint8), 20, 0), 20, 1
            )
            Image.fromarray(labelled).save(root / labels / f'{i}{ending}.png')
    return str(root)


def find_path(name):
    (path,) = FOLDER.glob(f'mm*/{name}.py')
    return path


@pytest.fixture
def inherit(tmp_path, require):
    """The config of a project that inherits one of ours, as MMEngine dumps and reloads it."""

    def load(name):
        package = find_path(name).parent.name
        require(package)
        (tmp_path / 'project.py').write_text(
            f"_base_ = __import__('mmdense') and 'mmdense::transfer/{package}/{name}.py'\n"
        )
        config = Config.fromfile(str(tmp_path / 'project.py'))
        config.dump(str(tmp_path / 'dumped.py'))
        again = Config.fromfile(str(tmp_path / 'dumped.py'))
        assert again.to_dict() == config.to_dict()
        return again

    return load


def find(config, key):
    """All dicts within ``config`` that have ``key``."""
    if isinstance(config, dict):
        if key in config:
            yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from find(value, key)


def shrink(config):
    """To what a CPU does in seconds: a fifth of the image's side, few regions."""
    pipeline = config.train_dataloader.dataset
    for transform in find(pipeline, 'scales'):
        transform.scales = [tuple(side // 5 for side in scale) for scale in transform.scales]
    for transform in find(pipeline, 'crop_size'):
        transform.crop_size = tuple(side // 5 for side in transform.crop_size)
    train_cfg = config.model.train_cfg
    if 'rpn_proposal' in train_cfg:
        train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=50)
        train_cfg.rcnn.sampler.num = 16
    for part in find(config.model, 'num_proposals'):
        part.num_proposals = 20


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def steps(config):
    """The one schedule that is not the warm-up."""
    (schedule,) = (s for s in config.param_scheduler if s.type != 'LinearLR')
    return schedule


def flatten(node, path=''):
    """What a runner takes of a config, by its path."""
    if not isinstance(node, (dict, list, tuple)) or not node:
        return {path: node}
    found = {}
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key != '_scope_' and (path or key in inspect.signature(Runner.__init__).parameters):
            found.update(flatten(value, f'{path}.{key}'.lstrip('.')))
    return found


def test_all_are_here():
    for package, names in (
        ('mmdet', {**DETECTORS, **DETRS, **FEW_LABELS, **dict.fromkeys(PAIR)}),
        ('mmseg', SEGMENTERS),
        ('mmpretrain', CLASSIFIERS),
    ):
        found = {path.stem for path in (FOLDER / package).glob('*.py')}
        found = {name for name in found if '_vit-' not in name or package == 'mmpretrain'}
        assert found == names.keys()  # the others: test_vit.py


@pytest.mark.parametrize('name', PARENTS)
def test_differs_by_the_protocol_only(name, inherit, tmp_path):
    parent, allowed = PARENTS[name]
    ours = flatten(inherit(name).to_dict())
    (tmp_path / 'parent.py').write_text(f'_base_ = {parent!r}\n')
    theirs = flatten(Config.fromfile(str(tmp_path / 'parent.py')).to_dict())
    changed = [k for k in {**ours, **theirs} if ours.get(k, 'none') != theirs.get(k, 'none')]
    beyond = [k for k in changed if not any(f'{k}.'.startswith(f'{a}.') for a in allowed)]
    assert not beyond
    for prefix in allowed:  # and every one of them does change
        assert any(f'{k}.'.startswith(f'{prefix}.') for k in changed), prefix


@pytest.mark.parametrize(
    'name', [*DETECTORS, *DETRS, *FEW_LABELS, *PAIR, *SEGMENTERS, *CLASSIFIERS]
)
def test_one_variable_is_the_checkpoint(name, inherit, monkeypatch):
    monkeypatch.setenv('CHECKPOINT', '/my models/a-1.0.pth')
    config = inherit(name)
    found = [part.init_cfg for part in find(config.model, 'init_cfg')]
    found = [part for part in found if isinstance(part, dict)]
    found = [part for part in found if part.get('type') == 'mmdense.SelfSupPretrained']
    assert len(found) == (2 if 'c4' in name or 'ccop' in name else 1)
    assert {part.checkpoint for part in found} == {'/my models/a-1.0.pth'}


@pytest.mark.parametrize('name', DETECTORS)
def test_recipe(name, inherit):
    config = inherit(name)
    length, milestones, lr, _ = DETECTORS[name]
    schedule = steps(config)
    assert (config.train_cfg.get('max_epochs') or config.train_cfg.max_iters) == length
    assert (schedule.end, schedule.milestones) == (length, milestones)
    assert schedule.by_epoch == ('max_epochs' in config.train_cfg)
    assert config.optim_wrapper.optimizer.lr == lr
    assert config.model.backbone.depth == 50
    pipeline = config.train_dataloader.dataset
    if '2x' in name and 'lvis' not in name:
        assert config.model == inherit(name.replace('2x', '1x')).model
    if 'c4' in name or 'dc5' in name:  # at the end
        assert config.custom_hooks[0].interval == length
    else:
        assert 'custom_hooks' not in config
    small = 'bccd' in name or 'coco100' in name
    images = config.train_dataloader.batch_size * (1 if small else 8)
    if 'cityscapes' in name:
        assert config.load_from is None and images == config.auto_scale_lr.base_batch_size == 8
        return
    assert images == (4 if small else 16)
    if 'lvis' not in name:
        assert images == config.auto_scale_lr.base_batch_size
    if 'sparse' in name:
        assert config.model.rpn_head.num_proposals == 300
        assert list(find(pipeline, 'crop_size'))
        return
    smallest = 480 if 'voc' in name or 'c4_bccd' in name else 640
    for resize in find(pipeline, 'scales'):
        sides = [tuple(scale) for scale in resize.scales]
        assert sides == [(1333, side) for side in range(smallest, 801, 32)]
    assert len(list(find(pipeline, 'scales'))) == (2 if 'voc' in name else 1)
    if 'voc' in name or small:
        warm_up = config.param_scheduler[0]
        assert (warm_up.type, warm_up.end, warm_up.by_epoch) == ('LinearLR', 100, False)
    if 'voc' in name or 'bccd' in name:
        assert len(config.test_evaluator.iou_thrs) == 10


@pytest.mark.parametrize('name', SEGMENTERS)
def test_segmenters_recipe(name, inherit):
    config = inherit(name)
    length, milestones, lr, weight_decay, crop = SEGMENTERS[name]
    assert config.train_cfg.max_iters == length
    schedule = steps(config)
    if milestones:
        assert (schedule.type, schedule.milestones) == ('MultiStepLR', milestones)
    else:
        assert (schedule.type, schedule.end, schedule.power) == ('PolyLR', length, 0.9)
    assert not schedule.by_epoch
    optimizer = dict(type='SGD', lr=lr, momentum=0.9, weight_decay=weight_decay)
    assert config.optim_wrapper.optimizer == optimizer
    assert tuple(config.model.data_preprocessor.size) == crop
    crops = [tuple(t.crop_size) for t in find(config.train_dataloader.dataset, 'crop_size')]
    assert set(crops) == {crop}
    if 'camvid' not in name:
        assert 8 * config.train_dataloader.batch_size == config.auto_scale_lr.base_batch_size == 16
    model = config.model
    if 'd8' in name:
        assert model.backbone.dilations == (1, 1, 2, 4) and model.auxiliary_head
        return
    if 'upernet' in name:
        assert model.backbone.strides == (1, 2, 2, 2) and model.backbone.dilations == (1, 1, 1, 1)
        heads = (model.decode_head, model.auxiliary_head)
        assert all((head.num_classes, head.ignore_index) == (11, 11) for head in heads)
        return
    assert model.backbone.strides == (1, 2, 2, 1) and model.backbone.dilations == (1, 1, 1, 2)
    head = model.decode_head
    assert (head.num_convs, head.channels, head.dilation) == (2, 256, 6)
    assert not head.concat_input and head.dropout_ratio == 0 and head.align_corners
    assert model.auxiliary_head is None
    if 'cityscapes' in name:
        assert model.test_cfg == dict(mode='slide', crop_size=(769, 769), stride=(513, 513))


def use_checkpoint(config, path):
    for part in find(config.model, 'init_cfg'):
        cfg = part.init_cfg
        if isinstance(cfg, dict) and cfg.get('type') == 'mmdense.SelfSupPretrained':
            part.init_cfg.checkpoint = path
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize('name', SEGMENTERS)
def test_segmenters_train_from_exactly_the_checkpoint(name, inherit, exported, masks):
    path, expected = exported(50)
    config = inherit(name)
    use_checkpoint(config, path)
    config.model.data_preprocessor.size = crop = (65, 65)
    for transform in find(config.train_dataloader.dataset, 'crop_size'):
        transform.crop_size = crop
    for transform in find(config.train_dataloader.dataset, 'size'):
        transform.size = crop
    for transform in find(config.train_dataloader.dataset, 'ratio_range'):
        transform.scale = (160, 120)
    for dataset in find(config.train_dataloader.dataset, 'data_root'):
        dataset.data_root = masks
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(config.model)
        model.init_weights()
        dataset = DATASETS.build(config.train_dataloader.dataset)
        batch = pseudo_collate([dataset[0], dataset[-1]])
    assert len(dataset) == (4 if 'voc' in name else 2)
    filled = model.backbone.state_dict()
    assert filled.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(filled[key], value), key

    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms(model))
    # the head's, the auxiliary's; UperNet has 12
    assert len(norms(model)) == 53 + (13 if 'upernet' in name else 4 if 'd8' in name else 2)
    check_rgb(model.data_preprocessor)
    stride, dilation = (8, 4) if 'd8' in name else (32, 1) if 'upernet' in name else (16, 2)
    assert model.backbone.layer4[2].conv2.dilation == (dilation, dilation)
    model.eval()
    assert model.backbone(torch.rand(2, 3, 64, 64))[-1].shape == (2, 2048, *[64 // stride] * 2)

    model = revert_sync_batchnorm(model)
    model.train()
    check_step(model, batch)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.backbone.bn1.running_mean, expected['bn1.running_mean'])


def check_rgb(preprocessor):
    """ImageNet's mean and deviation, on RGB."""
    rgb = getattr(preprocessor, '_channel_conversion', None)  # mmengine's and mmdet's name
    assert preprocessor.channel_conversion if rgb is None else rgb
    assert preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


def check_step(model, batch):
    """One, backward included, with all of the model in training."""
    assert all(m.training for m in norms(model))
    assert all(p.requires_grad for p in model.parameters())
    inputs = model.data_preprocessor(batch, training=True)
    loss, terms = model.parse_losses(model(**inputs, mode='loss'))
    assert all(torch.isfinite(term).all() for term in terms.values()), terms
    loss.backward()


# the neck of ccop's needs a checkpoint of the complete algorithm: tests/test_models/test_ccop.py
FROM_A_BACKBONE = [name for name in DETECTORS if '2x' not in name and 'ccop' not in name]


@pytest.mark.parametrize('name', FROM_A_BACKBONE)
def test_trains_from_exactly_the_checkpoint(name, inherit, require, exported, coco):
    require('mmcv._ext')
    path, expected = exported(50)
    config = inherit(name)
    shrink(config)
    use_checkpoint(config, path)
    for dataset in find(config.train_dataloader.dataset, 'data_root'):
        dataset.data_root = coco
    if 'lvis' in name or 'cityscapes' in name:  # packages that only they need
        config.train_dataloader.dataset = inherit(
            'mask-rcnn_r50_fpn_1x_coco'
        ).train_dataloader.dataset
        shrink(config)
        config.train_dataloader.dataset.data_root = coco
    if 'voc' not in name and 'bccd' not in name:
        config.train_dataloader.dataset.update(ann_file='coco.json', data_prefix=dict(img=''))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
        model.init_weights()
        dataset = DATASETS.build(config.train_dataloader.dataset)
        batch = pseudo_collate([dataset[0], dataset[1]])

    # the weights: every stage, wherever it is
    filled = dict(model.backbone.state_dict())
    if 'c4' in name:
        assert not any(key.startswith('layer4') for key in filled)
        filled.update(model.roi_head.shared_head.res_layer.state_dict())
    assert filled.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(filled[key], value), key

    # the protocol
    synchronised = ['backbone', *DETECTORS[name][-1]]
    parts = [norms(model.get_submodule(part)) for part in synchronised]
    assert all(parts) and sum(map(len, parts)) == len(norms(model))
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms(model))
    last = model.roi_head.shared_head.res_layer if 'c4' in name else model.backbone
    for block in (model.backbone.layer2[0], last.layer4[0]):  # PyTorch's style
        dilated = 'dc5' in name and block is last.layer4[0]
        assert (block.conv1_stride, block.conv2_stride) == (1, 1 if dilated else 2)
    check_rgb(model.data_preprocessor)

    # a step
    model = revert_sync_batchnorm(model)
    model.train()
    check_step(model, batch)
    for part in synchronised:
        for key, parameter in model.get_submodule(part).named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (part, key)
    assert model.backbone.conv1.weight.grad.abs().sum() > 0
    assert not torch.equal(model.backbone.bn1.running_mean, expected['bn1.running_mean'])


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Three classes of two images in folders, as ImageNet's and as any user's; a list of three."""
    from PIL import Image

    root = tmp_path_factory.mktemp('photographs')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for folder in ('n01', 'n02', 'n03'):
            (root / split / folder).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 255, (80, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / folder / f'{folder}_{i}.JPEG')
    (root / 'list.txt').write_text('n02_1.JPEG\nn03_0.JPEG\nn01/n01_0.JPEG\n')
    return root


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifiers_train_from_exactly_the_checkpoint(name, inherit, exported, photographs):
    """A frozen backbone keeps each number through a step; the others learn all of it."""
    config = inherit(name)
    length, lr, images, frozen = CLASSIFIERS[name]
    assert (config.train_cfg.get('max_epochs') or config.train_cfg.max_iters) == length
    assert config.optim_wrapper.optimizer.lr == lr
    loader = config.train_dataloader
    assert loader.batch_size * (1 if 'folders' in name else 8) == images
    assert config.auto_scale_lr.base_batch_size == images
    for dataset in find([loader, config.test_dataloader], 'data_root'):
        dataset.data_root = str(photographs)
        dataset.metainfo = dict(classes=['a', 'b', 'c'])
    if 'percent' in name:
        loader.dataset.list_file = str(photographs / 'list.txt')
    path, expected = vit_file(photographs) if 'vit' in name else exported(50)
    use_checkpoint(config, path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        config.model.data_preprocessor = config.data_preprocessor
        model = MODELS.build(config.model)
        model.init_weights()
        dataset = DATASETS.build(loader.dataset)
        batch = pseudo_collate([dataset[i] for i in range(len(dataset))])
    labels = [int(sample.gt_label) for sample in batch['data_samples']]
    assert labels == ([1, 2, 0] if 'percent' in name else [0, 0, 1, 1, 2, 2])
    for key, value in expected.items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    model = revert_sync_batchnorm(model)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        optimizer = build_optim_wrapper(model, dict(config.optim_wrapper, type='OptimWrapper'))
    rates = {group['lr'] for group in optimizer.optimizer.param_groups}
    assert rates == ({0.01, 0.2} if 'percent' in name else {lr})
    model.train()
    head = copy.deepcopy(model.head)
    model.train_step(batch, optimizer)
    moved = [
        key
        for key, value in model.backbone.state_dict().items()
        if key in expected and not torch.equal(value, expected[key])
    ]
    assert not moved if frozen else len(moved) > len(expected) * 0.9
    pairs = list(zip(head.parameters(), model.head.parameters()))
    assert pairs and all(not torch.equal(before, after) for before, after in pairs)


def vit_file(folder):
    """A ViT-B with weights that no model has by itself."""
    from mmpretrain.models import VisionTransformer

    from mmdense.checkpoints import save_backbone

    tensors = VisionTransformer('base', img_size=224, patch_size=16).state_dict()
    for tensor in tensors.values():
        if tensor.dim() == 1:
            tensor += torch.rand_like(tensor) * 0.1
    save_backbone(tensors, str(folder / 'vit.pth'))
    return str(folder / 'vit.pth'), tensors


def test_a_list_that_names_another_folder(photographs, tmp_path):
    from mmdense.datasets import ListedImageNet

    (tmp_path / 'list.txt').write_text('n09_1.JPEG\n')
    with pytest.raises(DataError, match='names n09_1.JPEG, but .*train has no folder n09'):
        ListedImageNet(str(tmp_path / 'list.txt'), data_root=str(photographs), split='train')
    with pytest.raises(DataError, match='cannot read the image list'):
        ListedImageNet(str(tmp_path / 'none.txt'), data_root=str(photographs), split='train')


@pytest.mark.parametrize('name', DETRS)
def test_a_detr_is_as_pretrained(name, inherit):
    """The protocols of UP-DETR and DETReg; their tests in tests/test_models fill the detectors."""
    config = inherit(name)
    length, milestones, lr, share, queries = DETRS[name]
    (schedule,) = config.param_scheduler
    assert (config.train_cfg.get('max_epochs') or config.train_cfg.max_iters) == length
    assert (schedule.end, schedule.milestones) == (length, milestones)
    wrapper = config.optim_wrapper
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (lr, 1e-4)
    assert wrapper.paramwise_cfg.custom_keys.backbone.lr_mult == share
    assert wrapper.clip_grad == dict(max_norm=0.1, norm_type=2)
    assert config.model.backbone.frozen_stages == 1 and config.model.backbone.norm_eval
    assert config.model.num_queries == queries and config.model.positional_encoding.normalize


@pytest.mark.parametrize('name', FEW_LABELS)
def test_few_labels_of_coco(name, inherit, data_root, require):
    """DETReg's choice of images, on a small COCO; a constant learning rate."""
    require('mmdet')
    config, (epochs, percent) = inherit(name), FEW_LABELS[name]
    assert (config.train_cfg.max_epochs, config.param_scheduler) == (epochs, [])
    assert epochs % config.train_cfg.val_interval == 0
    annotations = 'annotations/instances_val2017.json'
    config.train_dataloader.dataset.dataset.update(
        data_root=str(data_root / 'coco'), ann_file=annotations, data_prefix=dict(img='val2017/')
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config.train_dataloader.dataset)
    images = json.loads((data_root / 'coco' / annotations).read_text())['images']
    ids = sorted(image['id'] for image in images)
    chosen = np.random.default_rng(42).choice(ids, round(len(ids) * percent / 100), replace=False)
    found = [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]
    assert found == chosen.tolist() and len(found) == percent * len(ids) // 100
    assert dataset[0]['inputs'].dim() == 3 and dataset.metainfo['classes'][0] == 'person'


def test_base_classes_are_those_that_voc_has_not(inherit, require):
    require('mmdet')
    from mmdet.datasets import CocoDataset, VOCDataset

    known = dict(airplane='aeroplane', couch='sofa', tv='tvmonitor', motorcycle='motorbike')
    known.update({'potted plant': 'pottedplant', 'dining table': 'diningtable'})
    novel = VOCDataset.METAINFO['classes']
    every = CocoDataset.METAINFO['classes']
    base = tuple(name for name in every if known.get(name, name) not in novel)
    config = inherit('deformable-detr_r50_50e_coco-base-classes')
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert tuple(loader.dataset.metainfo.classes) == base
    assert config.model.bbox_head.num_classes == len(base) == 60


def test_pair_detr_and_what_it_is_compared_with(inherit, require):
    """The second decoder is all that differs, and each takes a step of mmdet's data."""
    require('mmdet')
    conditional, pair = (inherit(name) for name in PAIR)
    assert pair.model.type == 'mmdense.PairDETR'
    assert flatten(dict(model=pair.model.detector.to_dict())) == flatten(
        dict(model=conditional.model.to_dict())
    )
    assert pair.default_hooks.pop('backbone_export').type == 'mmdense.BackboneExportHook'
    for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'):
        assert pair[key] == conditional[key]
    assert pair.default_hooks == conditional.default_hooks
    model = conditional.model
    assert (model.encoder.num_layers, model.decoder.num_layers, model.num_queries) == (2, 2, 100)
    assert conditional.train_cfg.max_iters == conditional.param_scheduler[0].end == 6000
    assert conditional.optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult == 0.1
    images = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    from mmdet.structures import DetDataSample

    shape = dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0))
    sample = DetDataSample(metainfo=shape)
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 8, 60, 50]]), labels=torch.tensor([1])
    )
    for config, names in ((conditional, 6), (pair, 6)):
        with DefaultScope.overwrite_default_scope('mmdet'):
            detector = MODELS.build(config.model)
        data = detector.data_preprocessor(dict(inputs=[images], data_samples=[sample]), True)
        losses = detector(**data, mode='loss')
        sum(losses.values()).backward()
        assert len(losses) == names
        (found,) = detector.eval().test_step(dict(inputs=[images], data_samples=[sample]))
        assert found.pred_instances.bboxes.shape == (100, 4)


@pytest.mark.parametrize(
    'name, workers', [('faster-rcnn_r50_c4_24k_voc0712', 2), ('mask-rcnn_r50_c4_1x_coco', 0)]
)
def test_precise_bn(name, workers, inherit, require, exported, coco, tmp_path):
    """At the end of training, before the checkpoint: the mean over batches, under fixed weights."""
    require('mmcv._ext')
    config = inherit(name)
    shrink(config)
    config.model.test_cfg.rpn.update(nms_pre=50, max_per_img=10)
    use_checkpoint(config, exported(50)[0])
    for dataset in find(config.train_dataloader.dataset, 'data_root'):
        dataset.data_root = coco
    if 'coco' in name:
        config.train_dataloader.dataset.update(ann_file='coco.json', data_prefix=dict(img=''))
    config.train_dataloader.num_workers = workers
    for key in ('cfg', 'dataloader', 'evaluator'):
        config[f'val_{key}'] = config[f'test_{key}'] = None
    length = 'max_epochs' if 'coco' in name else 'max_iters'
    config.train_cfg[length] = config.custom_hooks[0].interval = 1
    config.custom_hooks[0].num_samples = 4  # a data set of 2 has one batch, one of 4 has two
    config.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), experiment_name=tmp_path.name))
    runner = Runner.from_cfg(config)
    seen = []
    norm = runner.model.backbone.bn1
    norm.register_forward_hook(lambda module, inputs, _: seen.append((module.momentum, inputs[0])))
    runner.train()
    precise = [x for momentum, x in seen if momentum == 1.0]
    assert len(precise) == (1 if 'coco' in name else 2)
    expected = torch.stack([x.mean((0, 2, 3)) for x in precise]).mean(0)
    assert torch.allclose(norm.running_mean, expected, atol=1e-5)
    assert norm.momentum == 0.1
    for module in norms(runner.model):
        assert module.running_var.isfinite().all() and module.running_var.max() > 0
    (saved,) = (tmp_path / 'work').glob('*_1.pth')
    state = torch.load(saved, weights_only=False)['state_dict']
    assert torch.equal(state['backbone.bn1.running_mean'], norm.running_mean)


@pytest.mark.parametrize(
    'name', ['faster-rcnn_r50_fpn_bccd', 'detr_r50_pre-norm_bccd', 'deformable-detr_r50_bccd']
)
def test_boxes_to_learn_from_have_an_area(name, repo, data_root):
    """One of BCCD's has none."""
    path = repo / 'configs' / 'transfer' / 'mmdet' / f'{name}.py'
    cfg = Config.fromfile(str(path)).train_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(dict(cfg, data_root=str(data_root / 'bccd'), pipeline=[]))
    boxes = [box for i in range(len(dataset)) for box in dataset.get_data_info(i)['instances']]
    assert len(boxes) > 2000 and sum(box['ignore_flag'] for box in boxes) == 1
    for box in boxes:
        x0, y0, x1, y1 = box['bbox']
        assert box['ignore_flag'] or (x1 > x0 and y1 > y0)
