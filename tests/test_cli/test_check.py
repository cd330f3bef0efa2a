# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Did my weights load at all?"""

import re
import sys
from importlib.util import find_spec

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import ResNet
from tiny_algorithms import tiny_form

from mmdense.apis.inspection.fit import check_fit, read_config
from mmdense.checkpoints import save_backbone
from mmdense.cli import main
from mmdense.utils.log_level import log_level

EXAMPLE = tiny_form()

FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
C4 = 'mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py'
FCN = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'


@pytest.fixture(autouse=True)
def no_list_of_tensors():
    """MMEngine logs each that it initialises."""
    with log_level('ERROR'):
        yield


def trained(depth, steps=1000):
    """A state dict as after a training."""
    torch.manual_seed(0)
    tensors = ResNet(depth).state_dict()
    for value in tensors.values():
        if value.dim() == 0:
            value.fill_(steps)
        elif value.dim() == 1:
            value.uniform_(0.5, 1.5)
    return tensors


def save(path, tensors, prefix='backbone.', **meta):
    """As mmpretrain writes one, of a run with a neck."""
    state = {f'{prefix}{key}': value for key, value in tensors.items()}
    if prefix:
        state['neck.weight'] = torch.ones(2)
    torch.save(dict(meta=meta, state_dict=state), path)
    return str(path)


@pytest.fixture
def checkpoint(tmp_path):
    return save(tmp_path / 'epoch_8.pth', trained(50), epoch=8, iter=800)


@pytest.fixture
def check(capsys):
    """The report, and where the command fails its error."""

    def call(*arguments, code=0):
        try:
            main(['check', *map(str, arguments)])
            ended = 0
        except SystemExit as end:
            ended = end.code
        printed = capsys.readouterr()
        assert ended == code, printed
        assert printed.err.count('\n') == (code != 0), printed.err
        return printed.out + printed.err

    return call


def facts(report):
    rows = (
        re.split(r'\s{2,}', line.strip(), maxsplit=1)
        for line in report.splitlines()
        if line.startswith('  ')
    )
    return {row[0]: row[1] for row in rows if len(row) == 2}


# ---------------------------------------------------------------- what it is


def test_of_a_run(check, pretrained, tmp_path):
    """Of our own training: everything that it says about itself."""
    found = facts(check(pretrained))
    assert found['what'] == 'a ResNet-18 written by mmdense ' + EXAMPLE.algorithm
    assert found['method'] == EXAMPLE.algorithm and found['product'] == 'backbone'
    assert found['backbone'] == '120 tensors, 11.2 M parameters'
    # 16 images of 64 keys
    assert found['queue'] == 'queue 16 of 64 keys (25%), queue2 16 of 64 keys (25%)'
    assert found['trained'] == 'epoch 1, iteration 4'
    assert found['config'] == EXAMPLE.recipe
    assert re.fullmatch(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d', found['written'])
    # which `mmdense pretrain` writes beside the user's own
    content = torch.load(pretrained, weights_only=False)
    content['meta']['experiment_name'] = 'config_whole_20261122_150957'
    torch.save(content, tmp_path / 'a.pth')
    assert facts(check(tmp_path / 'a.pth'))['config'] == 'config.py'
    assert 'encoder_k' in found['next to it'] and 'mmengine' in found['written by']


def test_of_others(check, checkpoint, tmp_path):
    found = facts(check(checkpoint))
    assert found['what'] == 'a ResNet-50 written by mmpretrain'
    assert found['trained'] == 'epoch 8, iteration 800'
    tensors = {f'encoder_q.{k}': v for k, v in trained(18).items()}
    tensors.update({'queue': torch.ones(8, 32), 'queue_ptr': torch.zeros(1)})
    torch.save(dict(state_dict=tensors, arch='resnet18'), tmp_path / 'moco.pth')
    assert facts(check(tmp_path / 'moco.pth'))['what'] == (
        'a ResNet-18 written by MoCo v1 (query encoder)'
    )


def test_what_is_none(check, tmp_path):
    torch.save([1], tmp_path / 'list.pth')
    assert 'holds no tensors by name' in check(tmp_path / 'list.pth', code=1)
    assert 'does not exist' in check(tmp_path / 'nowhere.pth', code=1)
    assert f'{tmp_path} is a directory\n' in check(tmp_path, code=1)
    (tmp_path / 'backbone.pth').touch()
    assert f'{tmp_path} is a directory: take {tmp_path}/backbone.pth' in check(tmp_path, code=1)
    tensors = {f'backbone.{key}': value for key, value in trained(18).items()}
    path = save(tmp_path / 'fcn.pth', {**tensors, 'decode_head.weight': torch.ones(1)}, '')
    assert "prefix='backbone' takes its backbone" in check(path, code=1)
    assert '120 tensors' in check(path, '--prefix', 'backbone')


# ---------------------------------------------------------------- health


def test_a_trained_one(check, checkpoint):
    report = check(checkpoint)
    assert 'ok          all 318 tensors are finite' in report
    assert 'ok          trained: all 53 BatchNorms differ' in report
    assert 'ok          none of 26560 channels is constant' in report
    assert 'warning' not in report
    assert 'ok  ' not in check('-q', checkpoint)


def test_an_untrained_one(check, tmp_path):
    torch.manual_seed(0)
    network = ResNet(18, zero_init_residual=True)
    network.init_weights()
    path = save(tmp_path / 'new.pth', network.state_dict())
    assert 'NOT TRAINED: the statistics of all 20 BatchNorms' in check(path)
    with torch.no_grad():
        for _ in range(3):
            network.train()
            network(torch.rand(2, 3, 32, 32))
    report = check(save(path, network.state_dict()))
    assert 'NOT TRAINED: the scales and shifts of all 20 BatchNorms' in report
    assert 'BatchNorm has seen 3 steps only' in report


def test_constant_channels(check, tmp_path):
    tensors = trained(18)
    tensors['layer2.0.bn1.running_var'][:64] = 1e-12
    report = check(save(tmp_path / 'dead.pth', tensors))
    assert 'warning     64 of 4800 channels are constant' in report
    assert 'most in layer2.0.bn1: 50%' in report
    tensors['layer2.0.bn1.running_var'][1:64] = 1
    report = check(save(tmp_path / 'dead.pth', tensors))
    assert 'note        1 of 4800 channels' in report


def test_broken_ones(check, tmp_path):
    tensors = trained(18)
    tensors['layer3.0.conv1.weight'][0, 0, 0, 0] = float('inf')
    report = check(save(tmp_path / 'inf.pth', tensors), code=1)
    assert '1 of 120 tensors hold NaN or infinity: layer3.0.conv1.weight' in report
    tensors = {k: v for k, v in trained(18).items() if not k.startswith('layer4.')}
    report = check(save(tmp_path / 'cut.pth', tensors), code=1)
    assert 'not a whole ResNet-18: 25 missed: layer4.0.bn1.bias' in report
    tensors = dict(trained(18))
    tensors['layer3.0.conv1.weight'] = torch.zeros_like(tensors['layer3.0.conv1.weight'])
    report = check(save(tmp_path / 'zero.pth', tensors))
    assert 'weights that are 0 throughout: layer3.0.conv1.weight' in report


def test_features(check, tmp_path, images):
    """A network that gives the same everywhere is told from one that does not."""
    torch.manual_seed(0)
    network = ResNet(18)
    network.init_weights()
    tensors = network.state_dict()
    report = check(save(tmp_path / 'a.pth', tensors), '--images', images)
    rows = facts(report)
    assert rows['dense_std'].split() == ['dense_rank', 'global_std', 'global_rank']
    values = {name: [float(x) for x in rows[name].split()] for name in ('pretrained', 'random')}
    assert all(value > 0.01 for row in values.values() for value in row)
    assert 'no collapse: the features of 16 images differ' in report
    assert 'std: spread of the features, 0 all alike' in report and 'They do not rank' in report
    assert 'random weights can have more' in report
    # the last shortcut is all that is left, and it is one direction
    last = 'layer4.1.bn2'
    tensors[f'{last}.weight'].zero_()
    tensors[f'{last}.bias'].fill_(1e4)
    report = check(save(tmp_path / 'a.pth', tensors), '--images', images)
    assert 'warning     dense_std is' in report and 'collapse' in report
    assert 'no image found' in check(tmp_path / 'a.pth', '--images', tmp_path, code=1)


# ---------------------------------------------------------------- a detector or segmenter


@pytest.fixture
def detector(tmp_path, require):
    """A file that inherits Faster R-CNN, with its own initialiser."""
    require('mmdet')

    def write(backbone, name='detector.py', **more):
        path = tmp_path / name
        extra = ''.join(f'{key} = {value!r}\n' for key, value in more.items())
        path.write_text(
            f"_base_ = __import__('mmdense') and '{FASTER_RCNN}'\n"
            f'model = dict(backbone=dict({backbone}))\n{extra}'
        )
        return str(path)

    return write


def added(config, report, tmp_path):
    """The config with the lines that the report says to add."""
    lines = [line.strip() for line in report.splitlines() if line.startswith('    model = ')]
    text = '\n'.join(lines)
    path = tmp_path / 'added.py'
    path.write_text(f'_base_ = {str(config)!r}\n{text}\n')
    return Config.fromfile(str(path))


def assert_filled(cfg, tensors):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        segmenter = dict(cfg.model.backbone)
        if cfg.model.get('pretrained'):
            segmenter['pretrained'] = cfg.model.pretrained
        backbone = MODELS.build(segmenter)
        backbone.init_weights()
    state = backbone.state_dict()
    assert state and all(torch.equal(state[key], tensors[key]) for key in state)


def test_a_detector(check, checkpoint, tmp_path, require):
    """By the name of its config; with the lines that are printed it loads."""
    require('mmdet')
    for name in (FASTER_RCNN, 'mmdet::faster-rcnn_r50_fpn_1x_coco'):
        report = check(checkpoint, '--for', name)
        assert f'model.backbone of {name}' in report
        assert '318 of 318 tensors, by SelfSupPretrained' in report
        assert 'layer1 60 of 60, layer2 78 of 78' in report
        assert '1: neck.weight' in report
        assert 'the config loads another file' in report and 'torchvision://resnet50' in report
        assert 'frozen_stages=1: the stem and stage 1 stay as loaded' in report
        assert "norm_eval=True: BatchNorm keeps the file's statistics" in report
    cfg = added(read_config(FASTER_RCNN).filename, report, tmp_path)
    assert cfg.model.backbone.frozen_stages == -1 and not cfg.model.backbone.norm_eval
    assert_filled(cfg, trained(50))


def test_a_segmenter(check, checkpoint, tmp_path, require):
    """Of another stem: the lines change that too."""
    require('mmseg')
    report = check(checkpoint, '--for', FCN, code=1)
    assert '0 of 330 tensors, by SelfSupPretrained' in report and 'stem 3 of 18' in report
    assert '15: stem.0.weight' in report and "use type='ResNet'" in report
    assert "pretrained='open-mmlab://resnet50_v1c'" in report
    cfg = added(read_config(FCN).filename, report, tmp_path)
    assert cfg.model.pretrained is None
    assert_filled(cfg, trained(50))
    report = check(checkpoint, '--for', cfg_file(cfg, tmp_path))
    assert '318 of 318 tensors' in report and 'loads this file itself, strictly' in report


def cfg_file(cfg, tmp_path):
    cfg.dump(str(tmp_path / 'whole.py'))
    return str(tmp_path / 'whole.py')


def test_a_c4_detector(check, checkpoint, require):
    """Two parts, of other strides and other pixels."""
    require('mmdet')
    report = check(checkpoint, '--for', C4)
    assert '258 of 258 tensors' in report and '60 of 60 tensors' in report
    assert "style='caffe', and the file is of style='pytorch'" in report
    assert report.count('data_preprocessor differs') == 1
    assert "style='pytorch', init_cfg=" in report
    assert 'model = dict(roi_head=dict(shared_head=dict(' in report


def test_mmengine_pretrained_fills_nothing_and_only_warns(check, checkpoint, detector):
    """What most people write."""
    init_cfg = f"init_cfg=dict(type='Pretrained', checkpoint={checkpoint!r})"
    report = check(checkpoint, '--for', detector(init_cfg), code=1)
    assert "MMEngine's Pretrained fills 0 of 318 tensors" in report
    assert 'only warns of it in the log' in report
    # with a prefix it does
    init_cfg = f"init_cfg=dict(type='Pretrained', checkpoint={checkpoint!r}, prefix='backbone.')"
    report = check(checkpoint, '--for', detector(init_cfg, 'prefix.py'))
    assert "MMEngine's Pretrained fills 318 of 318 tensors" in report
    # lines that are merged into that leave nothing of it
    assert '_delete_=True' in report


def test_load_from_overwrites(check, checkpoint, detector):
    init_cfg = f"init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint={checkpoint!r})"
    report = check(checkpoint, '--for', detector(init_cfg, load_from='faster_rcnn.pth'))
    assert "load_from='faster_rcnn.pth' replaces all weights" in report
    assert 'the config loads this file itself, strictly' in report


def test_another_depth(check, tmp_path, require):
    require('mmdet')
    path = save(tmp_path / 'r18.pth', trained(18))
    report = check(path, '--for', FASTER_RCNN, code=1)
    assert '0 of 318 tensors' in report and 'The file holds a ResNet-18' in report
    assert 'frozen_stages=1: the stem and stage 1 stay RANDOM' in report
    assert 'model = dict(backbone=dict(depth=18, ' in report
    assert 'in_channels of neck' not in report
    cfg = added(read_config(FASTER_RCNN).filename, report, tmp_path)
    assert_filled(cfg, trained(18))
    assert cfg.model.neck.in_channels == [64, 128, 256, 512]
    # what the lines do not reach is said
    path = tmp_path / 'necks.py'
    cfg.merge_from_dict(dict(model=dict(backbone=dict(depth=50), neck=[dict(type='FPN')])))
    cfg.dump(str(path))
    report = check(tmp_path / 'r18.pth', '--for', path, code=1)
    assert 'heads are yours to set: the maps have [64, 128, 256, 512] channels' in report


def test_another_depth_of_a_segmenter(check, tmp_path, monkeypatch, require):
    """The lines are those of the whole; a relative path is made one that is good elsewhere."""
    require('mmseg')
    save(tmp_path / 'r18.pth', trained(18))
    monkeypatch.chdir(tmp_path)
    report = check('r18.pth', '--for', FCN, code=1)
    assert f"checkpoint='{tmp_path}/r18.pth'" in report
    cfg = added(read_config(FCN).filename, report, tmp_path)
    assert_filled(cfg, trained(18))
    assert (cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels) == (512, 256)


CONVNEXT = dict(type='mmpretrain.ConvNeXt', arch='atto', gap_before_final_norm=False)


@pytest.fixture
def convnext(tmp_path):
    """As a run of it leaves one: its file, its tensors, and the file as it was without a config."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        tensors = MODELS.build(CONVNEXT).state_dict()
    paths = [str(tmp_path / f'{name}.pth') for name in ('backbone', 'old')]
    for path, about in zip(paths, (dict(backbone=CONVNEXT), {})):
        save_backbone(tensors, path, algorithm=EXAMPLE.algorithm, **about)
    return paths[0], tensors, paths[1]


def test_another_architecture(check, convnext, tmp_path, require):
    """The lines bring it along, where the file says which it is."""
    require('mmdet')
    path, tensors, old = convnext
    report = check(path, '--for', FASTER_RCNN, code=1)
    assert 'The file holds a ConvNeXt, the model is a ResNet-50' in report
    cfg = added(read_config(FASTER_RCNN).filename, report, tmp_path)
    assert cfg.model.neck.in_channels == [40, 80, 160, 320]
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(cfg.model.backbone)
    assert [m.size(1) for m in backbone(torch.zeros(1, 3, 64, 64))] == [40, 80, 160, 320]
    report = check(path, '--for', cfg_file(cfg, tmp_path))
    assert facts(report)['new layers'] == '3: norm0, norm1, norm2'
    assert '126 of 126 tensors' in report and 'loads this file itself, strictly' in report
    assert 'add to the config' not in report  # it has it
    # nothing that is known makes it fit
    report = check(old, '--for', FASTER_RCNN, code=1)
    assert 'add to the config' not in report and 'model = ' not in report
    # a DETR takes the last three; what nothing is known of is the reader's
    cfg.merge_from_dict(dict(model=dict(neck=dict(type='ChannelMapper', in_channels=[8, 8, 8]))))
    cfg.model.backbone = dict(type='ResNet', depth=50, out_indices=(1, 2, 3))
    report = check(path, '--for', cfg_file(cfg, tmp_path), code=1)
    assert 'out_indices=(1, 2, 3)' in report and 'neck=dict(in_channels=[80, 160, 320])' in report
    assert 'model = ' not in check(path, '--for', C4, code=1)  # its shared_head is a ResNet's
    cfg.model.neck = None
    report = check(path, '--for', cfg_file(cfg, tmp_path), code=1)
    assert '# in_channels of neck and heads are yours to set' in report


def test_damaged_files_get_no_lines(check, tmp_path, require):
    """None makes them fit."""
    require('mmdet')
    tensors = trained(50)
    tensors['layer1.0.conv1.weight'] = torch.ones(8, 64, 1, 1)
    report = check(save(tmp_path / 'a.pth', tensors), '--for', FASTER_RCNN, code=1)
    assert '1 of another shape' in report and 'add to the config' not in report


def test_features_of_another_architecture(check, convnext, images):
    path, _, old = convnext
    assert 'does not show whether it was trained; try --images' not in check(old)
    assert 'dense_rank' in check(old, '--images', images)  # its tensors show what it is
    assert 'do not show whether it was trained; try --images' in check(path)
    rows = facts(check(path, '--images', images))
    assert rows['dense_std'].split() == ['dense_rank', 'global_std', 'global_rank']


@pytest.mark.parametrize('kind', ['subprocess.check_call', 'mmpretrain.TIMMBackbone', ['ResNet']])
def test_a_file_builds_plain_backbones_only(check, convnext, images, kind, tmp_path):
    save_backbone(convnext[1], str(tmp_path / 'bad.pth'), backbone=dict(type=kind, args=['touch']))
    assert 'no plain module' in check(tmp_path / 'bad.pth', '--images', images, code=1)


def test_our_own_configs(check, checkpoint, require):
    require('mmseg')
    report = check(checkpoint, '--for', 'mmdense::fcn_r50_camvid')
    assert '318 of 318 tensors' in report and 'frozen' not in report and 'warning' not in report


def test_what_is_counted_is_what_is_in_the_model(checkpoint, require, monkeypatch):
    """The count is taken of a model that was initialised, not of names."""
    require('mmdet')
    (fit,) = check_fit(checkpoint, read_config(FASTER_RCNN))
    assert fit.filled == fit.total == 318
    from mmdet.models.backbones import ResNet as Backbone

    real = Backbone.init_weights

    def overwrites(self):
        real(self)
        self.conv1.weight.data.zero_()

    monkeypatch.setattr(Backbone, 'init_weights', overwrites)
    (fit,) = check_fit(checkpoint, read_config(FASTER_RCNN))
    assert fit.filled == 317


def test_configs_that_are_none(check, checkpoint, tmp_path):
    def wrong(config):
        return check(checkpoint, '--for', config, code=1).splitlines()[-1]

    assert 'there is no config nowhere.py' in wrong('nowhere.py')
    assert 'the package mmnothing is not installed' in wrong('mmnothing::a')
    if find_spec('mmdet'):
        assert 'mmdet has no configs nothing.py' in wrong('mmdet::nothing')
    path = tmp_path / 'config.py'
    for text, reason in (
        ('model = dict(', 'cannot be read: SyntaxError'),
        ('model = dict(head=dict(type="A"))', 'has no model.backbone'),
        ('model = dict(backbone=dict(type="Nothing"))', 'cannot be built'),
    ):
        path.write_text(text)
        assert reason in wrong(path)


def test_as_a_user_runs_it(run, checkpoint, require):
    require('mmdet')
    ran = run(sys.executable, '-m', 'mmdense', '-q', 'check', checkpoint, '--for', FASTER_RCNN)
    assert ran.returncode == 0 and '318 of 318 tensors' in ran.stdout
    assert 'Warning' not in ran.stdout and 'mmengine - ' not in ran.stdout
