# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import sys

import pytest
import torch
from mmpretrain.models import MobileNetV2, ResNet
from PIL import Image


@pytest.fixture
def visualize(run_here):
    def call(*arguments):
        code, printed = run_here('visualize_levels.py', *arguments)
        return code, ''.join(printed)

    return call


def test_from_a_run_to_a_picture(run, repo, images, prototypes_checkpoint, tmp_path):
    out = tmp_path / 'new' / 'levels.png'
    done = run(
        *(sys.executable, 'tools/visualize_levels.py', prototypes_checkpoint),
        *(f'{images}/00.jpg', f'{images}/01.jpg', '--size', 96, '--out', out),
    )
    assert done.returncode == 0, done.stdout
    assert "ResNet-18 by the run's config" in done.stdout and str(out) in done.stdout
    assert Image.open(out).width > 1000


def test_exported_and_parts_of_a_file(visualize, images, tmp_path):
    path, out = tmp_path / 'a.pth', tmp_path / 'levels.png'
    torch.save({f'mine.{k}': v for k, v in ResNet(18).state_dict().items()}, path)
    arguments = (path, f'{images}/00.jpg', '--size', 64, '--out', out)
    code, output = visualize(*arguments, '--prefix', 'mine', '--normalize')
    assert code == 0 and 'ResNet-18 by its tensors' in output and out.is_file()
    code, output = visualize(*arguments, '--prefix', 'yours')
    assert code == 1 and "has nothing below 'yours'" in output


def html(path):
    path.write_text('<html>')


def unknown(path):
    torch.save({'a.weight': torch.ones(1)}, path)


def mobilenet(path):
    torch.save(MobileNetV2().state_dict(), path)


def mobilenet_run(path):
    state = {f'backbone.{k}': v for k, v in MobileNetV2().state_dict().items()}
    meta = dict(cfg="model = dict(backbone=dict(type='MobileNetV2'))")
    torch.save(dict(meta=meta, state_dict=state), path)


def other_depth(path):
    state = {f'backbone.{k}': v for k, v in ResNet(18).state_dict().items()}
    meta = dict(cfg="model = dict(backbone=dict(type='ResNet', depth=34))")
    torch.save(dict(meta=meta, state_dict=state), path)


def hostile(path):
    text = "model = dict(backbone=dict(type='subprocess.check_call', args=['true']))"
    torch.save(dict(meta=dict(cfg=text), state_dict={'backbone.a': torch.ones(1)}), path)


def resnet(path):
    torch.save(ResNet(18).state_dict(), path)


@pytest.mark.parametrize(
    'write, arguments, words',
    [
        (None, [], 'a.pth does not exist'),
        (html, [], 'is a web page or XML, not weights'),
        (unknown, [], 'holds a backbone of unknown kind'),
        (mobilenet, [], 'MobileNetV2 is a backbone of unknown kind'),
        (mobilenet_run, [], 'MobileNetV2 is a backbone of unknown kind'),
        (other_depth, [], 'The file holds a ResNet-18, the model is a ResNet-34'),
        (hostile, [], "asks in its config for type='subprocess.check_call'"),
        (None, ['none.jpg'], 'cannot read image none.jpg: '),
        (None, ['--size', 8], '--size must be at least 64, got 8'),
        (resnet, ['--out', 'a.xyz'], "Format 'xyz' is not supported"),
    ],
)
def test_bad_input_is_one_line(visualize, images, tmp_path, write, arguments, words):
    path, out = tmp_path / 'a.pth', tmp_path / 'levels.png'
    if write is not None:
        write(path)
    code, output = visualize('--out', out, path, f'{images}/00.jpg', *arguments)
    line = output.splitlines()[-1]
    assert code == 1 and line.startswith('mmdense: error: ') and words in line
    assert not out.exists()
