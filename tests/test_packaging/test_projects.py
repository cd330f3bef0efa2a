# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Projects outside the checkout, with mmdense installed from its wheel, under the tools of
mmdense, mmdet, mmseg and mmpretrain as these ship them."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_algorithms import tiny_form

EXAMPLE = tiny_form()
METHOD = EXAMPLE.method

SPIED = """
custom_imports = dict(imports=['spy'])
custom_hooks = [dict(type='mmengine.SpyHook')]
"""
SPIED_LAZY = 'from spy import SpyHook\ncustom_hooks = [dict(type=SpyHook)]\n'  # pure Python

# What makes runs tiny, on the command line: the configs are as a user has them.
_LOADER = ['num_workers=0', 'persistent_workers=False', 'batch_size=2']
_LOADER = [f'train_dataloader.{option}' for option in _LOADER]
_NO_VALIDATION = [f'val_{part}=None' for part in ('cfg', 'dataloader', 'evaluator')]
OPTIONS = dict(
    mmdet=[
        *_LOADER,
        *_NO_VALIDATION,
        'model.backbone.depth=18',
        'model.neck.in_channels=[64,128,256,512]',
        'model.neck.out_channels=16',
        'model.bbox_head.in_channels=16',
        'model.bbox_head.feat_channels=16',
        'train_dataloader.dataset.data_root=data',
        'train_dataloader.dataset.ann_file=coco.json',
        'train_dataloader.dataset.data_prefix.img=img_dir/train',
        'train_cfg.max_epochs=1',
    ],
    mmseg=[
        *_LOADER,
        *_NO_VALIDATION,
        'model.backbone.depth=18',
        'model.data_preprocessor.size=(64,64)',
        'model.decode_head.in_channels=512',
        'model.decode_head.channels=16',
        'train_dataloader.dataset.data_root=data',
        'train_dataloader.dataset.data_prefix.img_path=img_dir/train',
        'train_dataloader.dataset.data_prefix.seg_map_path=ann_dir/train',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'train_cfg.max_iters=2',
    ],
    mmpretrain=[
        *_LOADER,
        *_NO_VALIDATION,
        'model.backbone.depth=18',
        'model.head.in_channels=512',
        'train_cfg.max_epochs=1',
    ],
)
# A detector's resizing, as mmdet has it and as configs/transfer do.
_RESIZE = 'train_dataloader.dataset.pipeline.2.scale=(96,96)'
_RESIZES = 'train_dataloader.dataset.pipeline.2.scales=[(96,96),(64,64)]'

# Projects that knew nothing of mmdense…
DETECTOR = "_base_ = '{mmdet}/configs/retinanet/retinanet_r50_fpn_1x_coco.py'\n"
SEGMENTER = """
_base_ = '{mmseg}/configs/fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'
model = dict(backbone=dict(type='ResNet'), auxiliary_head=dict(in_channels=256, channels=16))
train_dataloader = dict(dataset=dict(img_suffix='.jpg', seg_map_suffix='.png'))
"""
LINEAR = """
_base_ = '{mmpretrain}/configs/mocov2/benchmarks/resnet50_8xb32-linear-steplr-100e_in1k.py'
train_dataloader = dict(dataset=dict(
    _delete_=True, type='CustomDataset', data_root='data', pipeline=[
        dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=64),
        dict(type='PackInputs')]))
"""
# …and what they add.
INIT_CFG = "init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint='backbone.pth')"
PRETRAINED = (
    "init_cfg=dict(_delete_=True, type='Pretrained', _scope_='mmdense', checkpoint='backbone.pth')"
)
ADD = f"_base_ = 'project.py'\nmodel = dict(backbone=dict({INIT_CFG}))\n" + SPIED
ADD_MMSEG = ADD.replace('dict(backbone', 'dict(pretrained=None, backbone')
ADD_MMPRETRAIN = ADD.replace(INIT_CFG, PRETRAINED)


def inherits(path, first=''):
    return (
        f"_base_ = {first}'mmdense::transfer/{path}.py'\n"
        "model = dict(backbone=dict(init_cfg=dict(checkpoint='backbone.pth')))\n" + SPIED
    )


def reads(module):
    return f'from mmengine.config import read_base\nwith read_base():\n    from {module} import *\n'


def reads_transfer(module):
    return (
        reads(f'mmdense.configs.transfer.{module}')
        + "model.backbone.init_cfg.checkpoint = 'backbone.pth'\n"
        + SPIED_LAZY
    )


IMPORT = "__import__('mmdense') and "
RETINANET, FCN = 'mmdet/retinanet_r50_fpn_1x_coco', 'mmseg/fcn_r50_camvid'
# (package of the tool, what the models are of, the project, what it adds, more options)
PROJECTS = dict(
    mmdet_one_line=('mmdet', 'mmdet', DETECTOR, ADD, _RESIZE),
    mmseg_two_lines=('mmseg', 'mmseg', SEGMENTER, ADD_MMSEG),
    mmpretrain_linear_probe=('mmpretrain', 'mmpretrain', LINEAR, ADD_MMPRETRAIN),
    mmdet_inherits=('mmdet', 'mmdet', '', inherits(RETINANET, IMPORT), _RESIZES),
    mmseg_inherits=('mmseg', 'mmseg', '', inherits(FCN, IMPORT)),
    mmdense_inherits_mmdet=('mmdense', 'mmdet', '', inherits(RETINANET), _RESIZES),
    mmdense_inherits_mmseg=('mmdense', 'mmseg', '', inherits(FCN)),
    mmdet_reads=('mmdet', 'mmdet', '', reads_transfer(RETINANET.replace('/', '.')), _RESIZES),
    mmseg_reads=('mmseg', 'mmseg', '', reads_transfer(FCN.replace('/', '.'))),
    mmdense_reads=('mmdense', 'mmdet', '', reads_transfer(RETINANET.replace('/', '.')), _RESIZES),
)
FAST = ('mmdet_one_line', 'mmseg_reads', 'mmpretrain_linear_probe', 'mmdense_inherits_mmdet')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The folder of four images of different sizes, with objects, masks and a class."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for kind in ('img_dir/train', 'ann_dir/train'):
        (root / kind).mkdir(parents=True)
    for i in range(4):
        height = 80 - 4 * i
        pixels = rng.integers(0, 255, (height, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f'img_dir/train/{i}.jpg')
        mask = rng.integers(0, 10, (height, 96), dtype=np.uint8)
        Image.fromarray(mask).save(root / f'ann_dir/train/{i}.png')
        images.append(dict(id=i, file_name=f'{i}.jpg', width=96, height=height))
        box = [10, 12, 60, 50]
        corners = [10, 12, 70, 12, 70, 62, 10, 62]
        annotations.append(dict(id=i + 1, image_id=i, category_id=1, bbox=box, area=3000,
                                iscrowd=0, segmentation=[corners]))  # fmt: skip
    coco = dict(images=images, annotations=annotations, categories=[dict(id=1, name='person')])
    (root / 'coco.json').write_text(json.dumps(coco))
    return root


def mim_folder(package):
    return Path(importlib.util.find_spec(package).origin).parent / '.mim'


@pytest.fixture
def train(run_in, installed, files, exported, spied, require, tmp_path):
    """Trains by the config of a project under a package's own tool."""

    def call(package, models, project, config, *options):
        mims = {'mmdense': installed[1] / 'mmdense' / '.mim'}
        for name in {package, models} - {'mmdense'}:
            require(name)
            mims[name] = mim_folder(name)
            project = project.replace('{' + name + '}', str(mims[name]))
        (tmp_path / 'data').symlink_to(files)
        (tmp_path / 'backbone.pth').symlink_to(exported(18)[0])
        for name, text in (('project', project), ('own', config)):
            (tmp_path / f'{name}.py').write_text(text)
        tool = mims[package] / 'tools' / 'train.py'
        options = ['--cfg-options', *OPTIONS.get(models, []), *options]
        done = run_in(tool, 'own.py', *options, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stdout[-5000:]

    return call


@pytest.mark.parametrize(
    'name', [p if p in FAST else pytest.param(p, marks=pytest.mark.slow) for p in PROJECTS]
)
def test_starts_from_exactly_the_checkpoint(train, exported, spied, name):
    train(*PROJECTS[name])
    start, (_, expected) = torch.load(spied, weights_only=True), exported(18)
    assert start.keys() == expected.keys() and len(start) == 120
    for key, value in expected.items():
        assert torch.equal(start[key], value), key


READS = reads(f'mmdense.configs.{METHOD}.{EXAMPLE.recipe}')


@pytest.mark.parametrize(
    'config',
    [
        f"_base_ = 'mmdense::{METHOD}/{EXAMPLE.recipe}.py'",
        pytest.param(READS, marks=pytest.mark.slow),
    ],
    ids=['inherits', 'reads'],
)
def test_pretrains_by_our_recipe(train, tiny_options, images, tmp_path, config):
    data = [f'train_dataloader.dataset.data_root={images}', 'train_dataloader.dataset.data_prefix=']
    options = [*tiny_options()[1:], *data, 'train_cfg.max_epochs=1']
    train('mmdense', 'mmdense', '', config, *options)
    assert (tmp_path / 'work_dirs/own/backbone.pth').is_file()


# In the zoo of the wheel, and small.
TINY_RECIPE = (
    f"_base_ = './{EXAMPLE.full_recipe}.py'"
    + """
model = dict(
    queue_len=32, backbone=dict(depth=18), neck=dict(in_channels=512, hid_channels=16))
"""
)
HUB = """
import mmdense, torch
from mmengine.hub import get_config, get_model
assert get_config('mmdense::{method}/tiny.py', pretrained=True).model_path == {url!r}
wanted = torch.load('tiny.pth', weights_only=True)['state_dict']
for model in (
    get_model('mmdense::{method}/tiny.py', pretrained=True),
    mmdense.get_model('tiny', pretrained=True),
):
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
assert torch.equal(get_model('mmdense::{method}/tiny.py').queue.ptr, torch.zeros(1).long())
try:
    get_config('mmdense::{method}/{recipe}.py', pretrained=True)
except AssertionError as error:
    print(error)  # the authors' file is not for it
"""


def test_hubs(installed, run_in, server, tmp_path, mmdense_scope):
    """MMEngine's, which takes what is under Weights, and ours."""
    from mmengine.config import Config

    from mmdense.registry import MODELS

    folder = installed[1] / f'mmdense/.mim/configs/{METHOD}'
    metafile, before = folder / 'metafile.yml', (folder / 'metafile.yml').read_text()
    (folder / 'tiny.py').write_text(TINY_RECIPE)
    try:
        model = MODELS.build(Config.fromfile(str(folder / 'tiny.py')).model)
        # As mmpretrain's published files are.
        torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'tiny.pth')
        content = (tmp_path / 'tiny.pth').read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        url = server.put(f'tiny_20220825-{sha256[:8]}.pth', content)
        entry = dict(Name='tiny', Config=f'configs/{METHOD}/tiny.py', Weights=url)
        metafile.write_text(before + f'  - {json.dumps(entry)}\n')
        done = run_in('-c', HUB.format(url=url, method=METHOD, recipe=EXAMPLE.full_recipe))
    finally:
        metafile.write_text(before)
        (folder / 'tiny.py').unlink()
    assert done.returncode == 0, done.stdout
    assert 'Cannot find `Weights`' in done.stdout.splitlines()[-1]
    assert len(server.asked) == 1  # the second finds it in the cache
