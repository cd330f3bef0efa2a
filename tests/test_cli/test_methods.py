# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Every method by one command, on a folder of a few images."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from mmpretrain.models import ResNet
from tiny_algorithms import each_method

from mmdense.apis import planning
from mmdense.checkpoints import save_backbone
from mmdense.cli import main


@pytest.fixture
def photos(images, tmp_path):
    """Return a folder of 24 images."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for i, path in enumerate((sorted(Path(images).iterdir()) * 2)[:24]):
        shutil.copy(path, folder / f'{i}.jpg')
    return folder


# test_pretrain.py takes the example, in several ways
@each_method(planning.METHODS)
def test_one_command(method, photos, tmp_path, monkeypatch, capsys):
    """From 24 images to a backbone; every other command reads the run."""
    monkeypatch.chdir(tmp_path)
    recipe = planning.read_recipe(method)
    backbone = 'resnet18' if 'ResNet' in recipe.model.backbone.type else 'vit-tiny'

    def call(*arguments):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            assert end.code in (0, None), capsys.readouterr().err
        return capsys.readouterr().out

    asked = ['--method', method, '--backbone', backbone, '--size', 64, '--epochs', 1]
    if 'teacher' in recipe.model:  # a file of its own: the recipe's is downloaded
        save_backbone(ResNet(18).state_dict(), 'teacher.pth')
        asked += ['--teacher', 'teacher.pth']
    printed = call('pretrain', photos, *asked, '--batch-size', 8, '--workers', 0)
    work = Path('work_dirs') / f'{method}_photos'
    assert 'setting' in printed and f'{work}/backbone.pth' in printed
    assert Config.fromfile(str(work / 'config.py')).model.type == recipe.model.type
    checked = call('check', work / 'epoch_1.pth', '--images', photos)
    assert f'written by mmdense {recipe.model.type}' in checked and 'features of' in checked
    call('show', work / 'backbone.pth', photos / '0.jpg', '--out', 'shown')
    call('report', work)
    assert list(Path('shown').rglob('*.html')) and list(work.rglob('report.html'))
