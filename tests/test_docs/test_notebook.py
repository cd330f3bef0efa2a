# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The notebook of the documentation, executed on real images with small settings."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_algorithms import tiny_form

EXAMPLE = tiny_form()

NOTEBOOK = Path(__file__).resolve().parents[2] / 'docs' / 'folder_to_detector.ipynb'
SMALL = dict(labelled=8, size=64, epochs=1, iterations=5, tests=1)


@pytest.fixture(scope='module')
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def printed(cell):
    return ''.join(o.text for o in cell.outputs if o.output_type == 'stream')


def pictures(cell):
    return [o for o in cell.outputs if 'image/jpeg' in o.get('data', {})]


def whole(cells):
    """Nothing that went wrong on the way."""
    return not [o for cell in cells for o in cell.outputs if o.output_type == 'error']


def test_it_is_shown_with_its_results(notebook):
    """As it ran, from top to bottom, with what its readers look for."""
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    nbformat.validate(notebook)
    assert whole(cells)
    text = '\n'.join(map(printed, cells))
    assert not re.search(r'Traceback|(?i:warning)|/(home|root|tmp|work)/', text)
    assert sum(len(pictures(cell)) for cell in cells) == 4
    assert NOTEBOOK.stat().st_size < 2**20


@pytest.fixture
def few_images(data_root, tmp_path):
    """Every fourth image of the example's data, in its layout: 52 for training, 18 for the test."""
    whole_data, few = data_root / 'bccd', tmp_path / 'bccd'
    (few / 'ImageSets' / 'Main').mkdir(parents=True)
    for folder in ('JPEGImages', 'Annotations'):
        (few / folder).symlink_to(whole_data / folder)
    for split in (whole_data / 'ImageSets' / 'Main').glob('*.txt'):
        names = split.read_text().split()[::4]
        (few / 'ImageSets' / 'Main' / split.name).write_text('\n'.join(names))
    return few


def test_from_a_folder_to_a_detector(notebook, few_images, tmp_path, require, monkeypatch):
    require('mmdet')
    require('mmcv._ext')
    small = dict(SMALL, data_root=few_images)
    cells = code(notebook)
    assert 'parameters' in cells[0].metadata.tags
    for name, value in small.items():
        value = f'Path({str(value)!r})' if isinstance(value, Path) else value
        cells[0].source, found = re.subn(
            rf'(?m)^{name} = [^#\n]*', f'{name} = {value}  ', cells[0].source
        )
        assert found == 1, name
    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    NotebookClient(
        notebook, timeout=500, resources=dict(metadata=dict(path=str(tmp_path)))
    ).execute()

    run = tmp_path / 'work_dirs' / 'cells'
    assert (run / EXAMPLE.method / 'backbone.pth').is_file()
    assert whole(cells) and (run / EXAMPLE.method / 'report.html').is_file()
    text = [printed(cell) for cell in cells]
    assert text[1] == '52 photographs, 8 of them with boxes\n'
    assert re.search(r'filled +120 of 120 tensors, by SelfSupPretrained', '\n'.join(text))
    table = re.findall(r'(?m)^(from .*?) +([\d.]+) +([\d.]+)$', '\n'.join(text))
    assert [row[0] for row in table] == ['from random weights', f'from {EXAMPLE.algorithm}']
    assert sum(len(pictures(cell)) for cell in cells) == 4
    for name in ('random', f'{EXAMPLE.method}_detector'):
        assert (run / name / 'iter_5.pth').is_file()
