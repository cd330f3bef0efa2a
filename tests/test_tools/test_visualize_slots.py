# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import runpy
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from PIL import Image

from mmdense.checkpoints import describe_product
from mmdense.registry import MODELS


@pytest.fixture
def checkpoint(repo, tmp_path):
    """As tools/train.py writes one, of random weights: the recipe with an R18."""
    config = Config.fromfile(str(repo / 'configs' / 'slotcon_r50_coco.py'))
    options = {
        'model.backbone.depth': 18,
        'model.neck.in_channels': 512,
        'model.neck.hid_channels': 16,
        'model.head.predictor.hid_channels': 16,
        'model.num_prototypes': 40,
    }
    config.merge_from_dict(options)
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(config.model)
    meta = dict(cfg=config.pretty_text, mmdense=describe_product(model))
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def test_from_a_checkpoint_to_pictures(run, repo, images, checkpoint, tmp_path):
    out = tmp_path / 'new' / 'out'
    broken = tmp_path / 'images' / '02_broken.jpg'
    broken.parent.mkdir()
    broken.write_bytes(b'no image')
    (tmp_path / 'images' / 'more').symlink_to(images)
    done = run(
        *(sys.executable, 'tools/visualize_slots.py', checkpoint, tmp_path / 'images'),
        *('--out', out, '--num-images', 3, '--num-prototypes-shown', 4, '--nearest', 2),
        *('--size', 64, '--workers', 1, '--batch-size', 5),
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count('cannot read image') == 1
    assert f'cannot read image {broken}: not an image' in done.stdout
    assert 'of 40 prototypes are used on 16 images; the largest has' in done.stdout
    assert 'of at most 5.3 bits' in done.stdout
    for name in ('groups.png', 'nearest.png'):
        assert str(out / name) in done.stdout and Image.open(out / name).width > 500


@pytest.fixture
def visualize(repo, monkeypatch, capfd):
    """Runs the tool in this process; its exit code and last line."""
    logger = MMLogger.get_current_instance()
    level = logger.level

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['visualize_slots.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(repo / 'tools' / 'visualize_slots.py'), run_name='__main__')
        return ended.value.code, capfd.readouterr().err.splitlines()[-1]

    yield call
    logger.setLevel(level)


def html(path):
    path.write_text('<html>')


def densecl(path):
    meta = dict(mmdense=dict(algorithm='DenseCL', product='backbone'))
    torch.save(dict(meta=meta, state_dict={'backbone.conv1.weight': torch.ones(1)}), path)


@pytest.mark.parametrize(
    'write, arguments, words',
    [
        (None, [], 'a.pth does not exist'),
        (html, [], 'is a web page or XML, not weights'),
        (densecl, [], 'a.pth is of DenseCL, which has no prototypes'),
        (None, ['--nearest', 0], '--nearest must be a whole number of at least 1, got 0'),
        (None, ['--num-images', -3], '--num-images must be a whole number of at least 1, got -3'),
        (None, ['--size', 8], '--size must be at least 32, got 8'),
    ],
)
def test_bad_input_is_one_line(visualize, images, tmp_path, write, arguments, words):
    path, out = tmp_path / 'a.pth', tmp_path / 'out'
    if write is not None:
        write(path)
    code, line = visualize(path, images, '--out', out, *arguments)
    assert code == 1 and line.startswith('mmdense: error: ') and words in line
    assert not out.exists()


def test_bad_folders_are_one_line(visualize, checkpoint, tmp_path):
    (tmp_path / 'empty').mkdir()
    for folder, words in (('empty', 'no image found in'), ('none', 'does not exist')):
        code, line = visualize(checkpoint, tmp_path / folder, '--out', tmp_path / 'out')
        assert code == 1 and line.startswith('mmdense: error: ') and words in line
