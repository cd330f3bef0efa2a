# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""One config for each kind of head, trained and tested on small data as tools/transfer.py does;
tests/test_tools/test_transfer.py runs FCN and Faster R-CNN FPN."""

import json
from xml.etree import ElementTree

import pytest

from mmdense.apis import transfer

LOADERS = ('train', 'val', 'test')
RESIZE = dict(type='Resize', scale=(240, 200), keep_ratio=True)


def pipeline(masks=False):
    return [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
        RESIZE,
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ]


BOXES = {
    'train_dataloader.dataset.pipeline': pipeline(),
    **{f'{x}_dataloader.dataset.pipeline.1': RESIZE for x in ('val', 'test')},
}
MASKS = dict(BOXES, **{'train_dataloader.dataset.pipeline': pipeline(masks=True)})
R18 = {'model.backbone.depth': 18}
FPN = dict(R18, **{'model.neck.in_channels': [64, 128, 256, 512], 'model.neck.out_channels': 32})
FEW_REGIONS = {
    'model.train_cfg.rpn_proposal.nms_pre': 100,
    'model.train_cfg.rpn_proposal.max_per_img': 50,
    'model.train_cfg.rcnn.sampler.num': 16,
    'model.test_cfg.rpn.max_per_img': 20,
    'model.test_cfg.rcnn.score_thr': 0.0,
}
C4 = dict(
    FEW_REGIONS, **{'custom_hooks.0.interval': 3, 'custom_hooks.0.num_samples': 2}
)  # of ResNet-50: its last stage is in the heads
TASKS = {
    'classify_r50_folders': dict(
        R18,
        **{
            'model.head.in_channels': 512,
            'train_dataloader.dataset.pipeline.1.scale': 64,
            **{f'{x}_dataloader.dataset.pipeline.1.scale': 72 for x in ('val', 'test')},
            **{f'{x}_dataloader.dataset.pipeline.2.crop_size': 64 for x in ('val', 'test')},
        },
    ),
    'upernet_r50_camvid': dict(
        R18,
        **{
            'model.data_preprocessor.size': (96, 128),
            'model.decode_head.in_channels': [64, 128, 256, 512],
            'model.decode_head.channels': 32,
            'model.auxiliary_head.in_channels': 256,
            'model.auxiliary_head.channels': 32,
            'train_dataloader.dataset.pipeline.2.scale': (160, 120),
            'train_dataloader.dataset.pipeline.3.crop_size': (96, 128),
        },
    ),
    'retinanet_r50_fpn_bccd': dict(
        **BOXES,
        **FPN,
        **{f'model.bbox_head.{x}_channels': 32 for x in ('in', 'feat')},
    ),
    'sparse-rcnn_r50_fpn_bccd': dict(
        **BOXES,
        **R18,
        **{
            'model.neck.in_channels': [64, 128, 256, 512],
            'model.rpn_head.num_proposals': 20,
            'model.test_cfg.rcnn.max_per_img': 20,
        },
    ),
    'faster-rcnn_r50_c4_bccd': dict(**BOXES, **C4),
    'mask-rcnn_r50_c4_coco100': dict(**MASKS, **C4),
    'mask-rcnn_r50_fpn_coco100': dict(
        **MASKS,
        **FPN,
        **FEW_REGIONS,
        **{
            'model.rpn_head.in_channels': 32,
            'model.rpn_head.feat_channels': 32,
            'model.roi_head.bbox_roi_extractor.out_channels': 32,
            'model.roi_head.bbox_head.in_channels': 32,
            'model.roi_head.bbox_head.conv_out_channels': 32,
            'model.roi_head.bbox_head.fc_out_channels': 64,
            'model.roi_head.mask_roi_extractor.out_channels': 32,
            'model.roi_head.mask_head.in_channels': 32,
            'model.roi_head.mask_head.conv_out_channels': 32,
        },
    ),
}
METRIC = dict(classify='accuracy/top1', upernet='mIoU', mask='coco/segm_mAP')
QUICK = ('classify_r50_folders',)


@pytest.fixture
def data(data_root, tmp_path):
    """The small data, and cells of BCCD in one folder for each class."""
    from PIL import Image

    root = tmp_path / 'data'
    root.mkdir()
    for name in ('bccd', 'camvid', 'coco'):
        (root / name).symlink_to(data_root / name)
    for split in ('train', 'val'):
        lines = (data_root / 'bccd' / 'ImageSets' / 'Main' / f'{split}.txt').read_text().split()
        for name in lines[:6]:
            image = Image.open(data_root / 'bccd' / 'JPEGImages' / f'{name}.jpg')
            tree = ElementTree.parse(data_root / 'bccd' / 'Annotations' / f'{name}.xml')
            for i, item in enumerate(tree.iter('object')):
                box = [int(item.find(f'bndbox/{x}').text) for x in ('xmin', 'ymin', 'xmax', 'ymax')]
                folder = root / 'folders' / split / item.find('name').text
                folder.mkdir(parents=True, exist_ok=True)
                image.crop(box).save(folder / f'{name}_{i}.png')
    return root


@pytest.mark.parametrize(
    'task',
    [task if task in QUICK else pytest.param(task, marks=pytest.mark.slow) for task in TASKS],
)
def test_trains_and_is_tested(task, data, tmp_path, require):
    require('mmcv._ext')
    options = dict(TASKS[task])
    options.update({f'{x}_dataloader.num_workers': 0 for x in LOADERS})
    options.update({f'{x}_dataloader.persistent_workers': False for x in LOADERS})
    options.update({f'{x}_dataloader.dataset.indices': 2 for x in ('val', 'test')})
    options.update({'train_dataloader.batch_size': 2, 'train_cfg.max_iters': 3})
    options.update({'default_hooks.checkpoint.interval': 3, 'default_hooks.logger.interval': 1})
    (run,) = transfer.plan(
        [transfer.Method('random')], [task], str(tmp_path / 'runs'), options, str(data), [0]
    )
    transfer.execute(run)
    with open(run.path('result.json')) as file:
        metrics = json.load(file)['metrics']
    key = METRIC.get(task.split('_')[0].split('-')[0], 'pascal_voc/mAP')
    assert 0 <= metrics[key] <= 100
    with open(run.path('train.log')) as file:
        assert 'loss: ' in file.read()
