# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The table of transfer runs, and the published figures beside it."""

import csv
import io
import json
import re

import pytest

from mmdense.apis import transfer, transfer_table
from mmdense.utils import model_index

PUBLISHED = transfer_table.read_published()
DETECTOR = 'mask-rcnn_r50_fpn_1x_coco'
SEVERAL = next(  # a method with several figures of one task
    entry['method'] for entry in PUBLISHED if entry['task'] == DETECTOR
)
FIGURES = [e for e in PUBLISHED if (e['method'], e['task']) == (SEVERAL, DETECTOR)]


def published(key):
    """The figures of a measure, each with its pretraining."""
    return [f'{entry["metrics"][key]} {entry["pretraining"]}' for entry in FIGURES]


@pytest.fixture
def results(tmp_path):
    def write(method, task, seed=None, **metrics):
        folder = tmp_path / method / task / ('' if seed is None else f'seed{seed}')
        folder.mkdir(parents=True)
        content = dict(method=method, task=task, seed=seed, metrics=metrics)
        (folder / 'result.json').write_text(json.dumps(content))

    for seed, value in enumerate([0.40, 0.41, 0.42]):
        write(SEVERAL, DETECTOR, seed, **{'coco/bbox_mAP': value, 'coco/segm_mAP': 0.3})
    write('random', 'fcn_r50_camvid', mIoU=40.04)
    write('mine', 'fcn_r50_camvid', mIoU=50.06)
    return tmp_path


def test_mean_range_and_published(results):
    rows = transfer_table.read_cells(str(results))
    header, _, *lines = transfer_table.make_markdown(rows).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in (header, *lines)]
    figures, masks = (
        f'{mean} ({"; ".join(published(key))})'
        for mean, key in (('41.0 ± 1.0', 'coco/bbox_mAP'), ('30.0 ± 0.0', 'coco/segm_mAP'))
    )
    assert cells == [
        ['method', 'fcn_r50_camvid mIoU', f'{DETECTOR} box AP', 'mask AP'],
        ['random', '40.0', '– (32.8 none)', '– (29.9 none)'],
        ['mine', '50.1', '–', '–'],
        [SEVERAL, '–', figures, masks],
    ]


def test_latex_and_csv(results):
    rows = transfer_table.read_cells(str(results))
    latex = transfer_table.make_latex(rows)
    assert latex.startswith('\\begin{tabular}{lrrr}\n') and latex.endswith('\\end{tabular}\n')
    assert (
        'fcn\\_r50\\_camvid mIoU & ' in latex
        and rf'41.0 $\pm$ 1.0 ({FIGURES[0]["metrics"]["coco/bbox_mAP"]}' in latex
    )
    assert '–' not in latex and '±' not in latex
    read = list(csv.DictReader(io.StringIO(transfer_table.make_csv(rows))))
    (box,) = (
        line for line in read if (line['method'], line['metric']) == (SEVERAL, 'coco/bbox_mAP')
    )
    assert [box[key] for key in ('mean', 'low', 'high', 'runs')] == ['41.00', '40.00', '42.00', '3']
    assert box['published'].count('; ') == len(FIGURES) - 1 > 0
    assert transfer_table.make_markdown([]) == transfer_table.make_latex([]) == ''


def test_names_of_methods():
    """The first word is the algorithm: RegionCL-D's figures are not RegionCL's."""
    task = 'mask-rcnn_r50_c4_1x_coco'
    for name in ('regioncld', 'RegionCLD-2', 'regioncld_r50_in1k'):
        assert [v for v, _ in transfer_table.find_published(name, task, 'coco/bbox_mAP')] == [40.3]
    assert transfer_table.find_published('regionclx', task, 'coco/bbox_mAP') == []


@pytest.mark.parametrize('entry', PUBLISHED, ids=lambda e: f'{e["method"]}-{e["task"]}')
def test_published(entry):
    """Each is of a task and a method that are here, in per cent, and says where it stands."""
    assert set(entry) == {'method', 'task', 'pretraining', 'metrics', 'source'}
    assert entry['method'] == 'random' or entry['method'] in model_index.methods()
    assert entry['task'] in transfer.find_tasks()
    assert entry['metrics'].keys() <= transfer_table.HEADLINES.keys()
    assert all(10 < value < 100 for value in entry['metrics'].values())
    assert re.match(r'(\S+ )?README|arXiv \d{4}\.\d{5}', entry['source']), entry['source']
    same = [
        e for e in PUBLISHED if all(e[k] == entry[k] for k in ('method', 'task', 'pretraining'))
    ]
    assert same == [entry]


def test_readme_has_each_task_and_figure(repo):
    text = (repo / 'configs' / 'transfer' / 'README.md').read_text()
    rows = dict(re.findall(r'^\| \[([^]]+)\].*\|([^|]*)\|$', text, re.MULTILINE))
    assert rows.keys() == transfer.find_tasks().keys()
    for entry in PUBLISHED:
        if entry['method'] != 'random':
            shown = [
                f'{value:.1f}'
                for key, value in entry['metrics'].items()
                if not key.endswith(('AP50', 'AP75'))
            ]
            figure = f'{" / ".join(shown)} ({entry["pretraining"]})'
            assert figure in rows[entry['task']], entry
    for task, cell in rows.items():
        wanted = [e for e in PUBLISHED if e['task'] == task and e['method'] != 'random']
        assert cell.count('(') == len(wanted) or '– (ours' in cell
