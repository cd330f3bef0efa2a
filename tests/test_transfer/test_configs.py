# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Every detector of configs/transfer/mmdet, as another project inherits it: its backbone is
exactly the checkpoint's, nothing is frozen, and it trains."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

FOLDER = Path(__file__).resolve().parents[2] / 'configs' / 'transfer' / 'mmdet'
# schedule, learning rate, and where SyncBN is beside the backbone
BOTH_HEADS = ['neck', 'roi_head.bbox_head', 'roi_head.mask_head']
C4 = ['roi_head.shared_head']
CONFIGS = {
    'mask-rcnn_r50_fpn_1x_coco': (12, [8, 11], 0.02, BOTH_HEADS),
    'mask-rcnn_r50_fpn_2x_coco': (24, [16, 22], 0.02, BOTH_HEADS),
    'mask-rcnn_r50_fpn_detco-1x_coco': (12, [8, 11], 0.02, ['neck']),
    'mask-rcnn_r50_c4_1x_coco': (12, [8, 11], 0.02, C4),
    'mask-rcnn_r50_c4_2x_coco': (24, [16, 22], 0.02, C4),
    'retinanet_r50_fpn_1x_coco': (12, [8, 11], 0.01, ['neck']),
    'sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco': (36, [27, 33], 2.5e-5, ['neck']),
}


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    """An exported ResNet-50: its file and tensors, none of them as a model has them by itself."""
    from mmpretrain.models import ResNet

    from mmdense.checkpoints.export import save_backbone

    model = ResNet(50)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data += torch.rand_like(tensor) * 0.1
    path = tmp_path_factory.mktemp('backbone') / 'backbone.pth'
    save_backbone(model.state_dict(), str(path))
    return str(path), model.state_dict()


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    """Two images with two objects each, in COCO's format."""
    from PIL import Image

    root = tmp_path_factory.mktemp('coco')
    rng = np.random.default_rng(0)
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


@pytest.fixture
def inherit(tmp_path, require):
    """The config of a project that inherits one of ours, as MMEngine dumps and reloads it."""
    require('mmdet')

    def load(name):
        (tmp_path / 'project.py').write_text(
            f"_base_ = __import__('mmdense') and 'mmdense::transfer/mmdet/{name}.py'\n"
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
    pipeline = config.train_dataloader.dataset.pipeline
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


def test_all_are_here():
    assert {path.stem for path in FOLDER.glob('*.py')} == CONFIGS.keys()


@pytest.mark.parametrize('name', CONFIGS)
def test_recipe(name, inherit):
    config = inherit(name)
    epochs, milestones, lr, _ = CONFIGS[name]
    schedule = config.param_scheduler[1]
    assert config.train_cfg.max_epochs == schedule.end == epochs
    assert schedule.milestones == milestones
    assert config.optim_wrapper.optimizer.lr == lr
    assert config.model.backbone.depth == 50
    if '2x' in name:
        assert config.model == inherit(name.replace('2x', '1x')).model
    if 'sparse' in name:
        assert config.model.rpn_head.num_proposals == 300
        assert list(find(config.train_dataloader.dataset.pipeline, 'crop_size'))
    else:
        resize = config.train_dataloader.dataset.pipeline[2]
        assert resize.scales == [(1333, side) for side in range(640, 801, 32)]


@pytest.mark.parametrize('name', [name for name in CONFIGS if '2x' not in name])
def test_trains_from_exactly_the_checkpoint(name, inherit, require, backbone, coco):
    require('mmcv._ext')
    path, expected = backbone
    config = inherit(name)
    shrink(config)
    for part in find(config.model, 'init_cfg'):
        if part.init_cfg and part.init_cfg.get('type') == 'mmdense.SelfSupPretrained':
            part.init_cfg.checkpoint = path
    config.train_dataloader.dataset.update(
        data_root=coco, ann_file='coco.json', data_prefix=dict(img='')
    )
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
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
    synchronised = ['backbone', *CONFIGS[name][-1]]
    parts = [norms(model.get_submodule(part)) for part in synchronised]
    assert all(parts) and sum(map(len, parts)) == len(norms(model))
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms(model))
    last = model.roi_head.shared_head.res_layer if 'c4' in name else model.backbone
    for block in (model.backbone.layer2[0], last.layer4[0]):  # PyTorch's style
        assert (block.conv1_stride, block.conv2_stride) == (1, 2)
    preprocessor = model.data_preprocessor
    assert preprocessor._channel_conversion  # RGB
    assert preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])

    # a step
    model = revert_sync_batchnorm(model)
    model.train()
    assert all(m.training for m in norms(model))
    assert all(p.requires_grad for p in model.parameters())
    loss, terms = model.parse_losses(model(**preprocessor(batch, training=True), mode='loss'))
    assert all(torch.isfinite(term).all() for term in terms.values()), terms
    loss.backward()
    for part in synchronised:
        for key, parameter in model.get_submodule(part).named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (part, key)
    assert model.backbone.conv1.weight.grad.abs().sum() > 0
    assert not torch.equal(model.backbone.bn1.running_mean, expected['bn1.running_mean'])
