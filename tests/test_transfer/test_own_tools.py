# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A checkpoint of ours in a scratch project under mmdet's and mmseg's OWN
tools/train.py, as their users run them."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from tiny_algorithms import each_algorithm, tiny_form

from mmdense.checkpoints import read_checkpoint

MASK_RCNN = """
_base_ = __import__('mmdense') and 'mmdense::transfer/mmdet/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['spy'])
custom_hooks = [dict(type='mmengine.SpyHook')]
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(depth={depth}, init_cfg=dict(checkpoint='{checkpoint}')),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, conv_out_channels=32, fc_out_channels=64),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=50), rcnn=dict(sampler=dict(num=32))))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(200, 160), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{data}/coco/', indices=6, pipeline=train_pipeline))
train_cfg = dict(max_epochs=1)
val_cfg = val_dataloader = val_evaluator = None
test_cfg = test_dataloader = test_evaluator = None
default_hooks = dict(logger=dict(interval=1))
"""

FCN = """
_base_ = __import__('mmdense') and 'mmdense::transfer/mmseg/fcn_r50_camvid.py'
custom_imports = dict(imports=['spy'])
custom_hooks = [dict(type='mmengine.SpyHook')]
crop_size = (120, 160)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(depth={depth}, init_cfg=dict(checkpoint='{checkpoint}')),
    decode_head=dict(in_channels=512, channels=32))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(160, 120)),
    dict(type='RandomCrop', crop_size=crop_size, ignore_index=11),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{data}/camvid', pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{data}/camvid', indices=2))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=3, val_interval=3)
default_hooks = dict(logger=dict(interval=1))
"""

PROJECTS = dict(mmdet=MASK_RCNN, mmseg=FCN)


@pytest.fixture(params=PROJECTS)
def project(request, tmp_path, spied, run, data_root, require, repo):
    """A project outside the checkout; a function that trains in it."""
    package = request.param
    require(package)
    spec = importlib.util.find_spec(package)
    tool = Path(spec.origin).parent / '.mim' / 'tools' / 'train.py'

    def train(*flags, checkpoint, depth=18):
        text = PROJECTS[package].format(depth=depth, checkpoint=checkpoint, data=data_root)
        (tmp_path / 'config.py').write_text(text)
        return run(sys.executable, tool, 'config.py', *flags, cwd=tmp_path, path=tmp_path)

    def test(checkpoint):
        tool = repo / 'tools' / 'test.py'
        return run(sys.executable, tool, 'config.py', checkpoint, cwd=tmp_path, path=tmp_path)

    train.test = test
    train.folder, train.spied = tmp_path, spied
    train.package = package
    return train


@each_algorithm(quick=[tiny_form().algorithm], resnets=True)
def test_starts_from_exactly_the_checkpoint(project, pretrained_by, algorithm):
    pretrained = pretrained_by(algorithm)
    done = project(checkpoint=pretrained)
    assert done.returncode == 0, done.stdout
    product = f'{tiny_form(algorithm).product}.'
    expected = {
        key[len(product) :]: value
        for key, value in read_checkpoint(str(pretrained))['state_dict'].items()
        if key.startswith(product)
    }
    start = torch.load(project.spied, weights_only=True)
    assert start.keys() == expected.keys() and len(start) == 120
    for key, value in expected.items():
        assert torch.equal(start[key], value), key
    assert 'SelfSupPretrained: all 120 tensors of ResNet filled from' in done.stdout
    # it trained, and all of the backbone took part: nothing is frozen
    assert 'loss: ' in done.stdout
    (last,) = {p for p in (project.folder / 'work_dirs' / 'config').glob('*_[13].pth')}
    end = read_checkpoint(str(last))['state_dict']
    for key in ('conv1.weight', 'bn1.weight', 'bn1.running_mean', 'layer4.1.conv2.weight'):
        assert not torch.equal(end[f'backbone.{key}'], expected[key]), key

    if algorithm != tiny_form().algorithm:
        return
    if project.package == 'mmseg':  # and our own tool tests it
        done = project.test(last)
        assert done.returncode == 0 and 'mIoU' in done.stdout, done.stdout
    else:  # and it resumes, by our loader, under mmdet's tool
        flags = ('--resume', '--cfg-options', 'train_cfg.max_epochs=2')
        done = project(*flags, checkpoint=pretrained)
        assert done.returncode == 0 and 'resumed epoch: 1' in done.stdout, done.stdout


def test_another_depth_is_refused(project, pretrained):
    done = project(depth=34, checkpoint=pretrained)
    assert done.returncode != 0
    assert 'The file holds a ResNet-18, the model is a ResNet-34: set depth.' in done.stdout
    assert not project.spied.exists()
