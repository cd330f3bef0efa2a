# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import sys
from functools import partial

import pytest
import torch
from PIL import Image
from tiny_algorithms import tiny_form

EXAMPLE = tiny_form()


def test_from_a_checkpoint_to_pictures(run, repo, images, prototypes_checkpoint, tmp_path):
    out = tmp_path / 'new' / 'out'
    broken = tmp_path / 'images' / '02_broken.jpg'
    broken.parent.mkdir()
    broken.write_bytes(b'no image')
    (tmp_path / 'images' / 'more').symlink_to(images)
    done = run(
        *(sys.executable, 'tools/visualize_slots.py', prototypes_checkpoint, tmp_path / 'images'),
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
def visualize(run_here):
    return partial(run_here, 'visualize_slots.py')


def html(path):
    path.write_text('<html>')


def without_prototypes(path):
    meta = dict(mmdense=dict(algorithm=EXAMPLE.algorithm, product='backbone'))
    torch.save(dict(meta=meta, state_dict={'backbone.conv1.weight': torch.ones(1)}), path)


@pytest.mark.parametrize(
    'write, arguments, words',
    [
        (None, [], 'a.pth does not exist'),
        (html, [], 'is a web page or XML, not weights'),
        (without_prototypes, [], f'a.pth is of {EXAMPLE.algorithm}, which has no prototypes'),
        (None, ['--nearest', 0], '--nearest must be a whole number of at least 1, got 0'),
        (None, ['--num-images', -3], '--num-images must be a whole number of at least 1, got -3'),
        (None, ['--size', 8], '--size must be at least 32, got 8'),
    ],
)
def test_bad_input_is_one_line(visualize, images, tmp_path, write, arguments, words):
    path, out = tmp_path / 'a.pth', tmp_path / 'out'
    if write is not None:
        write(path)
    code, printed = visualize(path, images, '--out', out, *arguments)
    line = printed.err.splitlines()[-1]
    assert code == 1 and line.startswith('mmdense: error: ') and words in line
    assert not out.exists()


def test_bad_folders_are_one_line(visualize, prototypes_checkpoint, tmp_path):
    (tmp_path / 'empty').mkdir()
    for folder, words in (('empty', 'no image found in'), ('none', 'does not exist')):
        code, printed = visualize(
            prototypes_checkpoint, tmp_path / folder, '--out', tmp_path / 'out'
        )
        line = printed.err.splitlines()[-1]
        assert code == 1 and line.startswith('mmdense: error: ') and words in line
