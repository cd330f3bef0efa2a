# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Make one table of the results of transfer runs, with the published figures beside them."""

import csv
import glob
import io
import json
import os.path as osp
import re
import statistics
from functools import lru_cache
from typing import Dict, List, NamedTuple, Tuple

import yaml

from mmdense.utils.model_index import find_configs

# The columns of the papers' tables, in their order, and the factor that makes per cent: mmdet
# measures in fractions, mmseg and mmpretrain in per cent.
HEADLINES = {
    'coco/bbox_mAP': ('box AP', 100),
    'coco/bbox_mAP_50': ('box AP50', 100),
    'coco/bbox_mAP_75': ('box AP75', 100),
    'coco/segm_mAP': ('mask AP', 100),
    'coco/segm_mAP_50': ('mask AP50', 100),
    'coco/segm_mAP_75': ('mask AP75', 100),
    'lvis/bbox_AP': ('box AP', 100),
    'lvis/segm_AP': ('mask AP', 100),
    'pascal_voc/mAP': ('AP', 100),
    'pascal_voc/AP50': ('AP50', 100),
    'pascal_voc/AP75': ('AP75', 100),
    'mIoU': ('mIoU', 1),
    'accuracy/top1': ('top-1', 1),
    'accuracy/top5': ('top-5', 1),
}


class Cell(NamedTuple):
    """Hold one figure of one method.

    Attributes:
        method (str): Its name.
        task (str): Name of a config of configs/transfer.
        metric (str): A key of ``HEADLINES``.
        values (List[float]): In per cent, one a run; empty where it has none.
        published (List[Tuple[float, str]]): In per cent, each with its pretraining.
    """

    method: str
    task: str
    metric: str
    values: List[float]
    published: List[Tuple[float, str]]

    @property
    def spread(self) -> float:
        """Return half the range over the runs."""
        return (max(self.values) - min(self.values)) / 2

    def write(self, plus_minus: str = '±') -> str:
        """Write mean ± half the range, and the published figures in brackets."""
        text = f'{statistics.mean(self.values):.1f}' if self.values else '–'
        if len(self.values) > 1:
            text += f' {plus_minus} {self.spread:.1f}'
        if self.published:
            text += f' ({"; ".join(f"{value:.1f} {kind}" for value, kind in self.published)})'
        return text


@lru_cache(maxsize=None)
def read_published() -> Tuple[dict, ...]:
    """Return the entries of configs/transfer/published.yml."""
    (path,) = find_configs('transfer/published.yml')
    with open(path, encoding='utf-8') as file:
        return tuple(yaml.safe_load(file))


def find_published(method: str, task: str, metric: str) -> List[Tuple[float, str]]:
    """Return the published figures of a method, each with its pretraining: a data set and the
    number of epochs.

    Args:
        method (str): A name whose first word, as in ``densecl-2`` and ``densecl_r50``, is the
            algorithm of `mmdense pretrain`.
        task (str): Name of a config of configs/transfer.
        metric (str): As the package names it.
    """
    algorithm = re.split(r'[\W_]', method.lower())[0]
    return [
        (entry['metrics'][metric], entry['pretraining'])
        for entry in read_published()
        if (entry['method'], entry['task']) == (algorithm, task) and metric in entry['metrics']
    ]


def read_cells(work_dir: str) -> List[List[Cell]]:
    """Return all results below a folder, one row a method, the baseline first."""
    results: Dict[str, Dict[str, List[dict]]] = {}
    for depth in ('*/*', '*/*/seed[0-9]*'):
        for path in sorted(glob.glob(osp.join(work_dir, depth, 'result.json'))):
            with open(path, encoding='utf-8') as file:
                result = json.load(file)
            tasks = results.setdefault(result['method'], {})
            tasks.setdefault(result['task'], []).append(result['metrics'])
    columns = [
        (task, key)
        for task in sorted({task for tasks in results.values() for task in tasks})
        for key in HEADLINES
        if any(key in run for tasks in results.values() for run in tasks.get(task, ()))
    ]
    return [
        [
            Cell(
                method,
                task,
                key,
                [
                    run[key] * HEADLINES[key][1]
                    for run in results[method].get(task, ())
                    if key in run
                ],
                find_published(method, task, key),
            )
            for task, key in columns
        ]
        for method in sorted(results, key=lambda name: (name != 'random', name))
    ]


def _read_heads(row: List[Cell]) -> List[str]:
    """Return the heads of the columns; a task's name is in that of its first."""
    heads, before = [], None
    for cell in row:
        name = HEADLINES[cell.metric][0]
        heads.append(name if cell.task == before else f'{cell.task} {name}')
        before = cell.task
    return heads


def make_markdown(rows: List[List[Cell]]) -> str:
    """Return a table in Markdown, one row a method; '' without results."""
    if not rows:
        return ''
    lines = [['method', *_read_heads(rows[0])]]
    lines += [[row[0].method, *(cell.write() for cell in row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ['-' * width for width in widths])
    text = [' | '.join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines]
    return ''.join(f'| {line} |\n' for line in text)


def make_latex(rows: List[List[Cell]]) -> str:
    """Return a table in LaTeX, as :func:`make_markdown`."""
    if not rows:
        return ''
    lines = [['method', *_read_heads(rows[0])]]
    lines += [[row[0].method, *(cell.write('\\pm') for cell in row)] for row in rows]
    text = [' & '.join(map(_escape, line)) + r' \\' for line in lines]
    text.insert(1, r'\hline')
    columns = 'l' + 'r' * len(rows[0])
    return '\n'.join([rf'\begin{{tabular}}{{{columns}}}', *text, r'\end{tabular}', ''])


def _escape(text: str) -> str:
    text = re.sub(r'([_%&#])', r'\\\1', text)
    return text.replace('\\pm', r'$\pm$').replace('–', '--')


def make_csv(rows: List[List[Cell]]) -> str:
    """Return one line a figure: mean, lowest and highest over the runs, their number, and the
    published figures, each with its pretraining."""
    if not rows:
        return ''
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['method', 'task', 'metric', 'mean', 'low', 'high', 'runs', 'published'])
    for cell in (cell for row in rows for cell in row):
        values = cell.values
        figures = [f'{f(values):.2f}' for f in (statistics.mean, min, max)] if values else [''] * 3
        published = '; '.join(f'{value} {kind}' for value, kind in cell.published)
        writer.writerow([*cell[:3], *figures, len(values), published])
    return text.getvalue()


FORMATS = {'md': make_markdown, 'csv': make_csv, 'tex': make_latex}
