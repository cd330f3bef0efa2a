# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Writes docs/evidence.md from the results, with its pictures."""

import json
import re
from pathlib import Path
from statistics import mean
from typing import Dict, Iterable, List, Optional

import full_scale
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config
from pieces import REPO, Study
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from plan import START, _few, order

from mmdense.apis.report.show import load_images
from mmdense.checkpoints.backbones import load_backbones
from mmdense.evaluation.feature_maps import stage_maps, to_inputs
from mmdense.visualization.levels import pca_colours

HERE = Path(__file__).resolve().parent
DOCUMENT = REPO / 'docs' / 'evidence.md'
IMAGES = 'images/evidence'  # beside the document
NAMES = dict(
    random='random weights',
    mocov2='MoCo v2',
    densecl='DenseCL',
    pixpro='PixPro',
    slotcon='SlotCon',
    detco='DetCo',
    **{
        'densecl-bccd': 'DenseCL on bccd alone',
        'densecl-bccd-continued': 'DenseCL, continued on bccd alone',
        'densecl-camvid': 'DenseCL on camvid alone',
        'densecl-camvid-continued': 'DenseCL, continued on camvid alone',
        # configs/probes.py
        'mocov2-lars': 'MoCo v2 by LARS (lr 0.71, weight decay 1e-5)',
        'mocov2-lars-byol': "the same with BYOL's augmentation, as PixPro's",
        'pixpro-full': "PixPro, the last BatchNorm of branches at 1 as MoCo v2's",
        'pixpro-lr4': "PixPro, lr 4.0, the recipe's",
        'pixpro-twin': 'PixPro, a twin five times as fast',
        'pixpro-moco': "PixPro, MoCo v2's augmentation",
        'pixpro-full-moco': "PixPro, branches at 1 and MoCo v2's augmentation",
        'pixpro-blur': 'PixPro, blur in proportion to the views',
        'mocov2-lars-blur': "MoCo v2 by LARS, PixPro's augmentation, blur in proportion",
        'pixpro-running': 'PixPro, a twin that normalises by running statistics',
        'pixpro-long': 'PixPro, 30 epochs',
        'mocov2-long': 'MoCo v2, 30 epochs',
        'pixcontrast': "PixContrast, all else PixPro's",
    },
)
EXPECTED = ('densecl', 'pixpro', 'slotcon')  # to beat MoCo v2 with few labels
Results = Dict[str, dict]


def write(study: Study, cfg: Config, results_dir: Path, data_root: Path) -> Path:
    """The page and its pictures, of what has been run with these settings."""
    results = study.results()
    document_path = place(study.results_dir)
    folder = document_path.parent / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    if any(result.get('curves') for result in results.values()):
        draw_curves(cfg, results, folder / 'curves.svg')
    draw_features(study, cfg, data_root, folder / 'features.jpg')
    template = (HERE / 'page.md').read_text(encoding='utf-8')
    document_path.write_text(document(template, cfg, results, results_dir), encoding='utf-8')
    return document_path


def place(results_dir: Path) -> Path:
    """The page of results: that of the documentation for those that are committed, for others one
    beside them."""
    return DOCUMENT if results_dir == HERE / 'results' else results_dir / DOCUMENT.name


def seeds(cfg: Config, results_dir: Path) -> List[int]:
    """Those of the config, and those that there are results of."""
    found = [int(path.stem[4:]) for path in results_dir.glob('*/*/seed*.json')]
    return sorted({*cfg.seeds, *found})


def read_results(cfg: Config, results_dir: Path) -> Results:
    """All that are there, whether or not they are of these settings."""
    paths = {id: results_dir / f'{id}.json' for id in order(cfg, {})}
    return {
        id: json.loads(path.read_text(encoding='utf-8'))
        for id, path in paths.items()
        if path.is_file()
    }


def document(template: str, cfg: Config, results: Results, results_dir: Path) -> str:
    """The page.

    Args:
        template (str): With places {{ name }}.
        cfg (Config): Of the study.
        results (dict[str, dict]): Of the pieces, by id.
        results_dir (Path): Where the configs and ``full_scale.json`` are.
    """
    results = {id: results[id] for id in order(cfg, {}) if id in results}
    machines: List[dict] = []
    pretrained = [r for r in results.values() if r['id'].startswith('pretrain/')]
    seen = pretrained[0]['images_seen'] if pretrained else None
    paper = results_dir / 'full_scale.json'
    paper = json.loads(paper.read_text(encoding='utf-8')) if paper.is_file() else None
    folder = place(results_dir).parent

    def picture(name: str, words: str) -> str:
        return f'![{words}]({IMAGES}/{name})' if (folder / IMAGES / name).is_file() else ''

    parts = dict(
        missing=lambda: _missing(cfg, results),
        images=lambda: f'{pretrained[0]["images"]:,}' if pretrained else '?',
        size=lambda: cfg.pretrain.size,
        epochs=lambda: cfg.pretrain.epochs,
        share=lambda: cfg.share,
        seen=lambda: f'{seen:,}' if seen else 'few',
        settings=lambda: _settings(cfg, results, results_dir),
        spread=lambda: _about_spread(results),
        results=lambda: _table(cfg, results),
        small=lambda: _small_table(cfg, results),
        classes=lambda: _class_tables(cfg, results),
        expectations=lambda: _expectations(cfg, results),
        pretraining=lambda: _pretraining(cfg, results, machines),
        curves=lambda: picture('curves.svg', 'Learning curves of pretraining'),
        pictures=lambda: picture('features.jpg', 'Dense features before and after pretraining'),
        probes=lambda: _probes(results_dir),
        gpu_flops=lambda: f'{paper["gpu_flops"] / 1e12:.0f}' if paper else '?',
        full_scale=lambda: full_scale.markdown(paper) if paper else 'Not counted yet.',
        machines=lambda: _machines(results, machines),
        **{
            f'{name}_iterations': lambda task=task: task.options['train_cfg.max_iters']
            for name, task in cfg.tasks.items()
        },
    )
    return re.sub(r'{{ (\w+) }}', lambda place: str(parts[place[1]]()), template)


def name_of(method: str) -> str:
    """In tables."""
    if method.endswith(START):
        return f'{NAMES.get(method[: -len(START)], method)} after 0 iterations'
    return NAMES.get(method, method)


def values(results: Results, kind: str, method: str, metric: str) -> Dict[str, float]:
    """By seed."""
    found = {id: r for id, r in results.items() if id.startswith(f'{kind}/{method}/')}
    return {id.rsplit('/', 1)[1]: r['metrics'][metric] for id, r in found.items()}


def cell(numbers: Iterable[float], sign: str = '') -> str:
    """Mean, and half of the range where there are several."""
    numbers = list(numbers)
    if not numbers:
        return 'not run'
    half = (max(numbers) - min(numbers)) / 2
    return f'{mean(numbers):{sign}.1f}' + (f' ± {half:.1f}' if len(numbers) > 1 else '')


def _columns(cfg: Config) -> List[tuple]:
    """Head, kind and metric."""
    found = []
    for name, task in cfg.tasks.items():
        for kind, labels in ((_few(cfg, name), f'{cfg.share} % of labels'), (name, 'all')):
            found += [(f'{name} {metric}, {labels}', kind, metric) for metric in task.metrics]
    found.append(('frozen, linear mIoU', 'frozen', 'linear_mIoU'))
    return [*found, ('frozen, nearest mIoU', 'frozen', 'knn_mIoU')]


def _rows(heads: List[str], rows: List[List[str]]) -> str:
    lines = [heads, ['---'] * len(heads), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def _table(cfg: Config, results: Results) -> str:
    columns = _columns(cfg)
    methods = ['random', *cfg.methods, *(f'{m}{START}' for m in cfg.methods)]
    rows = [[name_of(m), *_cells(cfg, results, columns, [m])] for m in methods]
    return _rows(['', *(head for head, *_ in columns)], rows)


def _small_table(cfg: Config, results: Results) -> str:
    """Return the rows of tasks with few images, from nothing or continued."""
    small = cfg.get('small') or {}
    by = {ours.method for ours in small.values()}
    rows = {
        name_of('random'): ['random'],
        **{name_of(f'{m}{START}'): [f'{m}{START}'] for m in sorted(by)},
        "pretrained on the task's own images alone": [
            m for m in small if not small[m].get('start')
        ],
        'pretrained on all images above': by,
        "that, continued on the task's own images": [m for m in small if small[m].get('start')],
    }
    columns = _columns(cfg)
    lines = [[name, *_cells(cfg, results, columns, methods)] for name, methods in rows.items()]
    return _rows(['', *(head for head, *_ in columns)], lines)


def _probes(results_dir: Path) -> str:
    """configs/probes.py with few labels, beside the rows that it is compared with."""
    cfg = Config.fromfile(str(HERE / 'configs' / 'probes.py'))
    results = read_results(cfg, results_dir)
    few = [c for c in _columns(cfg) if c[1] in {_few(cfg, name) for name in cfg.tasks}]
    columns = [*_columns(cfg)[-2:], *(c for c in few if c[2] == 'mIoU')]
    columns = [c for c in columns if any(id.startswith(f'{c[1]}/') for id in results)]
    beside = ['random', f'mocov2{START}', f'densecl{START}', 'mocov2', 'pixpro', 'slotcon']
    rows = []
    for method in [*beside, *cfg.small]:
        found = [values(results, kind, method, metric).values() for _, kind, metric in columns]
        if any(found):
            rows.append(
                [name_of(method), *(cell(numbers) if numbers else '–' for numbers in found)]
            )
    return _rows(['', *(head for head, *_ in columns)], rows)


def _class_tables(cfg: Config, results: Results) -> str:
    """Return a table of each task by class; rows are all that have been run."""
    firsts, tables = [next(iter(task.metrics)) for task in cfg.tasks.values()], []
    for head, kind, metric in _columns(cfg):
        runs = [r for r in results.values() if r['id'].startswith(f'{kind}/') and 'classes' in r]
        if not runs or metric not in firsts:
            continue
        classes, rows = list(runs[0]['classes']), {}
        for run in runs:
            rows.setdefault(run['id'].split('/')[1], []).append(run['classes'])
        lines = [
            [name_of(method), *(cell([run[c] for run in found]) for c in classes)]
            for method, found in rows.items()
        ]
        tables.append(_rows([head.replace('mIoU', 'IoU'), *classes], lines))
    return '\n\n'.join(tables) or 'Not run yet.'


def _cells(cfg: Config, results: Results, columns: List[tuple], methods: Iterable[str]) -> list:
    """Return the settings of each column, from the method that is run for it."""
    planned = {id.rsplit('/', 1)[0] for id in order(cfg, {})}
    cells = []
    for _, kind, metric in columns:
        ours = [m for m in methods if f'{kind}/{m}' in planned]
        cells.append(cell(values(results, kind, ours[0], metric).values()) if ours else '–')
    return cells


def _expectations(cfg: Config, results: Results) -> str:
    """Each method less random weights, less MoCo v2 and less what it began with; how many of the
    dense ones are as expected."""
    compared, rows, met, known = [], [], 0, 0
    for name, task in cfg.tasks.items():
        metric = next(iter(task.metrics))
        for kind, labels in ((_few(cfg, name), f'{cfg.share} %'), (name, 'all')):
            compared.append((f'{name} {metric}, {labels}, over random', kind, metric, 'random'))
    for name, task in cfg.tasks.items():
        metric = next(iter(task.metrics))
        head = f'{name} {metric}, {cfg.share} %, over MoCo v2'
        compared.append((head, _few(cfg, name), metric, 'mocov2'))
    for name, task in cfg.tasks.items():
        if task.get('controls'):
            metric = next(iter(task.metrics))
            head = f'{name} {metric}, {cfg.share} %, over its own after 0 iterations'
            compared.append((head, _few(cfg, name), metric, START))
    for method in cfg.methods:
        row = [name_of(method)]
        for _, kind, metric, base in compared:
            other = f'{method}{START}' if base == START else base
            ours, theirs = (values(results, kind, m, metric) for m in (method, other))
            pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            row.append('–' if method == base else cell(pairs, '+'))
            if not pairs or base == START or method == 'mocov2':
                continue
            if base == 'random' or method in EXPECTED:
                known += 1
                met += mean(pairs) > 0
        rows.append(row)
    verdict = f'Of {known} differences that have been run and were expected above 0, {met} are.'
    heads = ['', *(head for head, *_ in compared)]
    return f'{_rows(heads, rows)}\n\n{verdict if known else "None of them has been run."}'


def _about_spread(results: Results) -> str:
    seeds = {result['id'].rsplit('seed', 1)[1] for result in results.values()}
    several = 'Mean of the seeds ± half of their range; without ± it is one seed.'
    return several if len(seeds) > 1 else 'One seed: the spread is not known.'


def _missing(cfg: Config, results: Results) -> str:
    """Return what is not run of each seed, or, where that is most, what is run."""
    ids = order(cfg, {})
    if all(id in results for id in ids):
        return f'All {len(ids)} pieces have been run.'
    sentences = ['**Not finished**: “not run” in the tables is what it says.']
    for seed in cfg.seeds:
        ours = [id for id in ids if id.endswith(f'/seed{seed}')]
        done = [id for id in ours if id in results]
        if 2 * len(done) >= len(ours):
            lead, told = 'still to be run', [id for id in ours if id not in results]
        else:
            lead, told = 'these', [id for id in done if not id.startswith(('start/', 'pretrain/'))]
        kinds: Dict[str, List[str]] = {}
        for kind, method, _ in (id.split('/') for id in told):
            kinds.setdefault(kind, []).append(name_of(method))
        names = '; '.join(f'{kind}: {", ".join(methods)}' for kind, methods in kinds.items())
        sentences.append(
            f'With seed {seed} {len(done)} of {len(ours)} pieces have been run'
            + (f', {lead} {names}.' if names else '.')
        )
    return ' '.join(sentences)


def _settings(cfg: Config, results: Results, results_dir: Path) -> str:
    """Return the differences between the methods, from their configs."""
    rows = []
    for method in [*cfg.methods, *(cfg.get('small') or {})]:
        found = [r for r in results.values() if r['id'].startswith(f'pretrain/{method}/')]
        if not found:
            continue
        run = Config.fromfile(str(results_dir / found[0]['config']))
        model, optimizer = run.model, run.optim_wrapper.optimizer
        warmup = run.param_scheduler[0].get('warmup', 0)
        rest = []
        if 'queue_len' in model:
            rest.append(f'queue of {model.queue_len:,}')
        if 'num_prototypes' in model:
            rest.append(f'{model.num_prototypes} prototypes')
        for hook in run.get('custom_hooks') or ():
            if hook.type == 'LambdaWarmupHook':
                rest.append(f'dense loss from step {hook.start_iters + 1}')
        rows.append(
            [
                name_of(method),
                f'{optimizer.type.split(".")[-1]}, {optimizer.lr:g}',
                f'{warmup} epoch{"s" * (warmup > 1)}' if warmup else 'none',
                run.train_dataloader.batch_size,
                f'{model.momentum:g}',
                ', '.join(rest),
            ]
        )
    heads = ['', 'optimizer, learning rate', 'warm-up', 'batch', "twin's momentum", '']
    return _rows(heads, rows) if rows else 'Not run yet.'


def _pretraining(cfg: Config, results: Results, machines: List[dict]) -> str:
    rows = []
    for result in results.values():
        kind, method, seed = result['id'].split('/')
        if kind != 'pretrain':
            continue
        metrics, machine = result['metrics'], result['machine']
        device = machine['gpu'] or f'CPU, {machine["threads"]} threads'
        first = result['curves']['loss'][0][1]
        rows.append(
            [
                f'{name_of(method)}, seed {seed[4:]}',
                f'{result["images_seen"]:,}',
                f'{result["minutes"]:.0f} min, sessions: {result["sessions"]}',
                f'{device}, {_letter(machine, machines)}',
                f'{first:.2f} → {metrics["loss"]:.2f}',
                f'{metrics["knn_mIoU"]:.1f}' if 'knn_mIoU' in metrics else '–',
            ]
        )
    heads = ['', 'images seen', 'wall time', 'device', 'loss', 'nearest mIoU on 50 of val']
    return _rows(heads, rows) if rows else 'Not run yet.'


def _letter(machine: dict, machines: List[dict]) -> str:
    if machine not in machines:
        machines.append(machine)
    return f'machine {chr(ord("A") + machines.index(machine))}'


def _machines(results: Results, machines: List[dict]) -> str:
    for result in results.values():
        _letter(result['machine'], machines)
    lines = []
    for machine in machines:
        ids = [r['id'] for r in results.values() if r['machine'] == machine]
        kinds = ', '.join(sorted({id.split('/')[0] for id in ids}))
        versions = ', '.join(f'{name} {value}' for name, value in machine['versions'].items())
        device = machine['gpu'] or 'no GPU'
        lines.append(
            f'- {_letter(machine, machines)[8:]}: {machine["cpu"]}, {machine["cores"]} cores, '
            f'{machine["threads"]} threads, {device}; {versions}. Pieces of {kinds}: {len(ids)}.'
        )
    return '\n'.join(lines) or 'None yet.'


def draw_curves(cfg: Config, results: Results, path: Path) -> None:
    """Nearest neighbours on val of all methods, and the loss of each."""
    runs = [r for r in results.values() if r['id'].startswith('pretrain/')]
    methods = [m for m in cfg.methods if any(f'/{m}/' in r['id'] for r in runs)]
    panels = 1 + len(methods)
    columns = min(3, panels)
    figure = Figure(figsize=(3.6 * columns, 2.7 * -(-panels // columns)), layout='constrained')
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(-(-panels // columns), columns, squeeze=False).flat)
    for empty in axes[panels:]:
        empty.set_axis_off()
    axes[0].set_title('nearest neighbours on val, mIoU', fontsize=9)
    for i, method in enumerate(methods):
        for run in (r for r in runs if f'/{method}/' in r['id']):
            step = run['images_seen'] / max(run['curves']['loss'][-1][0], 1)  # images
            first = run['id'].endswith(f'seed{cfg.seeds[0]}')
            label, line = (name_of(method), '-') if first else (None, '--')
            # the first is of BatchNorm without statistics
            knn = [p for p in run['curves'].get('knn_mIoU', []) if p[0] > 0]
            axes[0].plot(*_thousands(knn, step), f'C{i}.{line}', label=label)
            axes[1 + i].plot(*_thousands(run['curves']['loss'], step), f'C{i}{line}', lw=1)
        axes[1 + i].set_title(f'{name_of(method)}, loss', fontsize=9)
    axes[0].legend(fontsize=7, loc='lower right', ncol=2)
    for axis in axes[:panels]:
        axis.set_xlabel('thousand images seen', fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    # the same results, the same file
    with matplotlib.rc_context({'svg.hashsalt': 'mmdense', 'svg.fonttype': 'none'}):
        figure.savefig(path, metadata=dict(Date=None))


def _thousands(points: List[List[float]], step: float) -> tuple:
    return [x * step / 1000 for x, _ in points], [y for _, y in points]


def draw_features(study: Study, cfg: Config, data_root: Path, path: Path) -> Optional[Path]:
    """The last maps of three test images, by principal components, of each backbone of the first
    seed; None without images, or without two backbones.

    The maps, a pixel a cell, stay in a folder beside the picture, for when the weights are gone;
    each says of which settings it is.
    """
    folder = data_root / 'camvid' / 'img_dir' / 'test'
    if not folder.is_dir():
        return None
    images = load_images([str(folder)], 3, 480)[0]
    seed, columns = cfg.seeds[0], path.with_suffix('')
    columns.mkdir(parents=True, exist_ok=True)
    ids = [f'start/random/seed{seed}', *(f'pretrain/{m}/seed{seed}' for m in cfg.methods)]
    found = {}
    for id in ids:
        method = id.split('/')[1]
        column = columns / f'{method}.png'
        if study.product(id).is_file():
            backbones = load_backbones(str(study.product(id)))
            maps = stage_maps(backbones.pretrained, to_inputs(images, backbones.preprocessor))[-1]
            colours = np.concatenate([np.asarray(c) for c in pca_colours(maps).colours])
            known = PngInfo()
            known.add_text('key', study.key(id))
            Image.fromarray(np.uint8(255 * colours + 0.5)).save(column, pnginfo=known)
        if column.is_file():
            kept = Image.open(column)
            if kept.text.get('key') == study.key(id):
                found[method] = np.split(np.asarray(kept), len(images))
    if len(found) < 2:
        return None
    figure = Figure(figsize=(1.7 * (1 + len(found)), 1.32 * 3 + 0.3), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 1 + len(found))
    for row, image in enumerate(images):
        axes[row][0].imshow(image)
    for column, (method, maps) in enumerate(found.items(), 1):
        for row, colours in enumerate(maps):
            axes[row][column].imshow(colours)
        axes[0][column].set_title(name_of(method), fontsize=9)
    axes[0][0].set_title('image', fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=90, pil_kwargs=dict(quality=85))
    return path
