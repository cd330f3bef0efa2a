# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Images, backbones and steps as they are."""

import json
import os
import shutil
import tempfile
import zipfile

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tiny_algorithms import algorithms_of, each_method, tiny_form

from mmdense.apis import planning
from mmdense.apis.planning import Images, Machine, Options, Times
from mmdense.utils.errors import CheckpointError, DataError, InputError

EXAMPLE = tiny_form()


@pytest.fixture
def coco(images, tmp_path):
    """As COCO is laid out."""
    shutil.copytree(images, str(tmp_path / 'train2017'))
    names = [dict(file_name=name) for name in sorted(os.listdir(images))[:12]]
    path = tmp_path / 'annotations' / 'instances_train2017.json'
    path.parent.mkdir()
    path.write_text(json.dumps(dict(images=names)))
    return path


def test_images(images, coco, tmp_path):
    found = planning.survey_images(images)
    assert found == Images(dict(data_root=images, data_prefix=''), 16, 72, 0, 16)
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w') as file:
        for name in sorted(os.listdir(images))[:9]:
            file.write(os.path.join(images, name), f'a/{name}')
    found = planning.survey_images(str(tmp_path / 'images.zip'))
    assert (found.count, found.side) == (9, 72)
    found = planning.survey_images(str(tmp_path / 'images.zip' / 'a'))
    assert (found.count, found.side) == (9, 72)

    found = planning.survey_images(str(coco))
    assert (found.count, found.side) == (12, 72)
    assert found.dataset['data_prefix'] == str(tmp_path / 'train2017')
    shutil.move(str(tmp_path / 'train2017'), str(tmp_path / 'elsewhere'))
    missing = 'none of the images that .*json names exists, of which the first is {}; .*--prefix'
    with pytest.raises(DataError, match=missing.format('00.jpg')):
        planning.survey_images(str(coco))
    (tmp_path / 'list.txt').write_text('/nowhere/1.jpg\n/nowhere/2.jpg\n')
    with pytest.raises(DataError, match=missing.replace('json', 'txt').format('/nowhere/1.jpg')):
        planning.survey_images(str(tmp_path / 'list.txt'))
    found = planning.survey_images(str(coco), str(tmp_path / 'elsewhere'))
    assert found.count == 12 and found.dataset['data_prefix'] == str(tmp_path / 'elsewhere')


def test_broken_images(images, tmp_path):
    folder = tmp_path / 'images'
    shutil.copytree(images, str(folder))
    for i in (0, 3, 9):
        (folder / f'{i:02}.jpg').write_bytes(b'none')
    with pytest.raises(DataError, match='3 of 16 images of .* cannot be read, more than 1%; the'):
        planning.survey_images(str(folder))
    for i in range(16):
        (folder / f'{i:02}.jpg').write_bytes(b'')
    with pytest.raises(DataError, match='none of 16 images tried of .* can be read: cannot read'):
        planning.survey_images(str(folder))


@pytest.mark.parametrize(
    'name, channels, config',
    [
        ('resnet50', 2048, {}),
        ('ResNet-34', 512, dict(depth=34)),
        (
            'convnext-atto',
            320,
            dict(
                _delete_=True, type='mmpretrain.ConvNeXt', arch='atto', gap_before_final_norm=False
            ),
        ),
    ],
)
def test_backbones(name, channels, config):
    network = planning.survey_network(planning.read_recipe(EXAMPLE.method), name, 64)
    assert (network.in_channels, network.backbone, network.all_used) == (channels, config, True)
    if name == 'resnet50':
        # docs/scaling.md: 86 MB for a view of 224 px
        assert network.bytes_per_image * (224 / 64) ** 2 == pytest.approx(86e6, rel=0.1)


@pytest.mark.parametrize(
    'method, name, message',
    [
        (EXAMPLE.method, 'nonsense', 'no backbone .*Take resnet18, 34, 50'),
        (EXAMPLE.method, 'reznet50', "there is no backbone 'reznet50'; the nearest: .*resnet50"),
        (
            EXAMPLE.method,
            'resnet77',
            f'{EXAMPLE.algorithm} cannot take the backbone resnet77: .*invalid depth 77',
        ),
        (
            EXAMPLE.method,
            'mobilenetv2-large',
            "MobileNetV2 has no variants, got 'mobilenetv2-large'",
        ),
        ('detco', 'mobilenetv2', 'DetCo cannot take .* of its parameters do not take part'),
    ],
)
def test_refused_backbones(method, name, message):
    with pytest.raises(InputError, match=message) as info:
        planning.survey_network(planning.read_recipe(method), name, 64)
    assert '\n' not in str(info.value)


@each_method(planning.METHODS)
def test_times_real_steps(method, images, tmp_path, monkeypatch):
    """Also: every method's settings train; nothing stays on the disk."""
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    recipe = planning.read_recipe(method)
    backbone = 'resnet18' if 'depth' in recipe.model.backbone else 'vit-tiny'
    plan = planning.make_plan(images, Options(method=method, backbone=backbone, epochs=3))
    text = planning.config_text(plan.base, plan.settings, str(tmp_path / 'none'), 'x')
    times = planning.time_steps(text, steps=2)
    assert os.listdir(tmp_path) == []
    assert times.batch == 4 and times.memory > 10**8
    assert 0 < times.data < times.step < 60
    # three forwards' worth and the twin's: each at least an R18 at 64 px, 0.3 GFLOP
    assert times.flops > 4 * 4 * 0.29e9


def test_init(images, tmp_path, pretrained, exported):
    """A checkpoint of the method fills all, another one the backbone; neither, one line."""
    told = Options(backbone='resnet18', epochs=1, init=str(pretrained))
    plan = planning.make_plan(images, told)
    changes = {k: v for row in plan.settings for k, v in row.config.items()}
    assert changes['load_from'] == str(pretrained) and 'model.pretrained' not in changes
    plan = planning.make_plan(
        images, told._replace(method=tiny_form(algorithms_of('momentum')[0]).method)
    )
    changes = {k: v for row in plan.settings for k, v in row.config.items()}
    assert changes['model.pretrained'] == str(pretrained) and 'load_from' not in changes
    backbone, tensors = exported(18)
    plan = planning.make_plan(images, told._replace(init=backbone))
    text = planning.config_text(plan.base, plan.settings, str(tmp_path), 'x')
    assert Config.fromstring(text, '.py').model.pretrained == backbone
    with pytest.raises(CheckpointError, match='missing.pth'):
        planning.make_plan(images, told._replace(init=str(tmp_path / 'missing.pth')))
    with pytest.raises(InputError, match="there is no recipe 'denscl_r50_coco'; the nearest"):
        planning.make_plan(images, told._replace(init='denscl_r50_coco'))


CPU = Machine('cpu', '', 0, 16 << 30, 8, '')
GPU = Machine('cuda', 'A100', 4, 80 << 30, 16, 'bfloat16')
CFG = Config(
    dict(
        train_cfg=dict(max_epochs=100),
        train_dataloader=dict(
            num_workers=4,
            batch_size=64,
            dataset=dict(pipeline=[dict(type='LoadImage'), dict(type='MultiView')]),
        ),
        model=dict(type=EXAMPLE.algorithm),
        load_from=None,
    )
)
MANY = Images(dict(data_root='x', data_prefix=''), 64_000, 480)


def estimate(times, images, machine, gpus=1, there=CFG, gpus_there=8):
    return planning.estimate(times, CFG, images, machine, gpus, there, gpus_there)


def test_estimate():
    times = Times(64, data=0.1, step=0.2, flops=64e12, memory=1)
    guess = estimate(times, MANY, GPU)
    assert guess.here == pytest.approx(100 * 1000 * 0.2)
    assert guess.there == pytest.approx(100 * 1000 * 0.2 / 8 / 0.9)
    assert guess.assumption.startswith('each as fast as this A100')
    # data-bound
    assert estimate(times._replace(data=0.3), MANY, GPU).here == pytest.approx(3e4)
    assert estimate(times, MANY, GPU, gpus=4).here == pytest.approx(5000 / 0.9)
    guess = estimate(times._replace(step=20.0), MANY, CPU)
    assert guess.here == pytest.approx(2e6)
    assert guess.there == pytest.approx(100 * 1000 * 64 / 60 / 8 / 0.9)
    assert guess.assumption.startswith('a guess')
    # another plan: as many epochs, and as large a batch, as GPUs can
    there = Config(dict(train_cfg=dict(max_epochs=800), train_dataloader=dict(batch_size=128)))
    guess = estimate(times, MANY, CPU, there=there)
    assert guess.here == pytest.approx(100 * 1000 * 0.2)
    assert guess.there == pytest.approx(800 * 62 * 2 * 64 / 60 / 0.9)
    guess = estimate(times, MANY, CPU, there=there, gpus_there=1)
    assert guess.there == pytest.approx(800 * 500 * 2 * 64 / 60) and '90%' not in guess.assumption


def test_plan_for_gpus(images, tmp_path):
    """The settings that they would have; one where eight would have too little to do."""

    def there(plan):
        found = planning.plan_for_gpus(plan)
        text = planning.config_text(found.base, found.settings, str(tmp_path), 'x')
        return found.options.gpus, Config.fromstring(text, '.py')

    plan = planning.make_plan(images, Options(backbone='resnet18'))  # 16 images
    gpus, cfg = there(plan)
    assert (gpus, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (1, 4, 2000)
    plan = plan._replace(images=plan.images._replace(count=3068), machine=CPU)
    gpus, cfg = there(plan)
    assert (gpus, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (8, 32, 800)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    plan = plan._replace(options=plan.options._replace(epochs=7, batch_size=400))
    gpus, cfg = there(plan)
    assert (gpus, cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (1, 400, 7)
    plan = plan._replace(machine=GPU._replace(half=''), options=Options(backbone='resnet18'))
    assert there(plan)[1].optim_wrapper.type != 'AmpOptimWrapper'  # as this machine's


@pytest.mark.parametrize('count, bad, refused', [(120, 1, False), (120, 2, True), (30, 1, True)])
def test_too_many_unreadable(tmp_path, count, bad, refused):
    """Found before training, wherever in the folder they are, if some are in the sample."""
    for i in range(count):
        path = tmp_path / f'{i:03}.png'
        if i in (5, count - 1)[:bad]:
            path.write_bytes(b'')
        else:
            Image.new('RGB', (8, 8)).save(path)
    if not refused:
        found = planning.survey_images(str(tmp_path))
        assert (found.unreadable, found.sampled) == (bad, count)
        return
    with pytest.raises(
        DataError, match=f'{bad} of {count} images .* the first: .*005.png.*--check'
    ):
        planning.survey_images(str(tmp_path))


def test_processes_on_a_cpu_share_its_cores():
    def here(gpus, threads):
        times = Times(64, data=0.1, step=2.0, flops=64e12, memory=1, threads=threads)
        return estimate(times, MANY, CPU, gpus).here  # CPU has 8 cores

    assert here(8, threads=8) == pytest.approx(here(1, threads=8))
    assert here(4, threads=8) == pytest.approx(here(1, threads=8))
    assert here(3, threads=8) == pytest.approx(4 / 3 * here(1, threads=8), rel=0.01)  # 2 idle
    assert here(16, threads=8) == pytest.approx(here(1, threads=8), rel=0.01)
    assert here(8, threads=1) == pytest.approx(here(1, threads=1) / 8)


def test_advice():
    times = Times(64, data=0.1, step=0.2, flops=64e12, memory=1)
    assert planning.advise(times, MANY, GPU, CFG, gpus=4) == []
    (line,) = planning.advise(times, MANY, GPU, CFG)
    assert line == 'time: --gpus 4 uses all GPUs'
    (line,) = planning.advise(times._replace(data=0.3), MANY, GPU._replace(gpus=1), CFG)
    assert line == 'time: the GPU waits for images; --workers 16 uses all cores'
    (line,) = planning.advise(times._replace(data=0.3), MANY, GPU._replace(gpus=1, cores=4), CFG)
    assert line.endswith('train_dataloader.dataset.pipeline.1.device_augment=True')
    (line,) = planning.advise(times._replace(step=64.0), MANY, CPU, CFG)
    assert line == 'time: one GPU computes a step about 60 times as fast, as a guess'
    few = MANY._replace(count=300)
    lines = planning.advise(times, few, GPU, CFG, weights=EXAMPLE.recipe)
    assert f'--init {EXAMPLE.recipe} starts' in lines[0] and 'more images' in lines[1]
    lines = planning.advise(times, few, GPU, Config(dict(CFG, load_from='a.pth')))
    assert len(lines) == 1 and 'more images' in lines[0]


def test_duration():
    assert [planning.duration(s) for s in (5, 90, 4000, 10**6)] == [
        'under a minute', '2 min', '1 h 06 min', '11.6 days',
    ]  # fmt: skip


def test_machine():
    machine = planning.survey_machine()
    assert machine.device == ('cuda' if torch.cuda.is_available() else 'cpu')
    assert 1 <= machine.cores <= os.cpu_count() and machine.memory > 10**8
