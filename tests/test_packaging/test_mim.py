# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""openmim itself, beside the wheel. It needs the package index."""

import hashlib
import io

import pytest
import torch
from tiny_algorithms import tiny_form

from mmdense.utils import model_index

pytestmark = pytest.mark.slow
EXAMPLE = tiny_form()
METHOD = EXAMPLE.method
NAME = next(
    entry['Name']
    for entry in model_index.entries()
    if entry['In Collection'] == EXAMPLE.algorithm and 'Weights' in entry
)


def mim(run_in, openmim, *arguments):
    code = 'from mim.cli import cli; cli()'
    return run_in('-c', code, *arguments, PYTHONPATH=str(openmim))


def test_lists_the_recipes(run_in, openmim):
    done = mim(run_in, openmim, 'search', 'mmdense', '--model', METHOD)
    assert done.returncode == 0 and NAME in done.stdout, done.stdout


def test_downloads(run_in, openmim, installed, server, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    torch.save(dict(state_dict={'a': torch.ones(1)}), buffer)
    content = buffer.getvalue()
    file = f'{METHOD}_20220825-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    metafile = installed[1] / f'mmdense/.mim/configs/{METHOD}/metafile.yml'
    before = metafile.read_text()
    (published,) = (line for line in before.splitlines() if line.startswith('    Weights: '))
    metafile.write_text(before.replace(published, f'    Weights: {server.put(file, content)}'))
    try:
        done = mim(run_in, openmim, 'download', 'mmdense', '--config', NAME, '--dest', '.')
    finally:
        metafile.write_text(before)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / file).read_bytes() == content
    assert EXAMPLE.algorithm in (tmp_path / f'{NAME}.py').read_text()


def test_trains(run_in, openmim, images, tmp_path, tiny_options):
    (tmp_path / 'own.py').write_text(f'''
_base_ = 'mmdense::{METHOD}/{NAME}.py'
train_dataloader = dict(dataset=dict(data_root='{images}', data_prefix=''))
''')  # fmt: skip
    done = mim(run_in, openmim, 'train', 'mmdense', 'own.py', '--gpus', 0, *tiny_options())
    assert done.returncode == 0 and 'loss: ' in done.stdout, done.stdout
    assert (tmp_path / 'work_dirs/own/backbone.pth').is_file()
