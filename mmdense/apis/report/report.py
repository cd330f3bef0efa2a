# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Write the report of a run, from its work directory."""

import re
from datetime import timedelta
from itertools import permutations
from math import inf
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import DefaultScope
from torch.utils.data import Dataset

from mmdense.checkpoints.backbones import load_backbones
from mmdense.checkpoints.model_config import find_foreign_type
from mmdense.datasets import LoadImage, UnreadableImageError
from mmdense.datasets.transforms.batched import apply_batch
from mmdense.engine.channels import find_loader
from mmdense.evaluation.collapse import THRESHOLDS
from mmdense.evaluation.feature_maps import as_colors, fit_image, stage_maps, to_inputs
from mmdense.models.utils.batch_norm import calibrate
from mmdense.registry import DATASETS
from mmdense.utils.errors import DataError
from mmdense.utils.paths import check_writable
from mmdense.utils.randomness import seeded
from mmdense.visualization.levels import pca_colours
from mmdense.visualization.slots import _short_name

from .charts import Chart, Series
from .html import data_uri, write_page
from .run_log import Curve, RunLog, read_run

_NUM_IMAGES, _NUM_CHECKPOINTS = 4, 5


def write_report(directory: str, out: Optional[str] = None) -> str:
    """Write one HTML file of a run, which may be running.

    Args:
        directory (str): The work directory.
        out (str, optional): The file. Defaults to ``report.html`` in the work directory.

    Returns:
        str: Path of the file.

    Raises:
        InputError: There is no run.
        MMDenseError: The file cannot be written.
    """
    run = read_run(directory)
    out = out or str(run.directory / 'report.html')
    check_writable(out)
    notes: List[str] = []
    dataset = _attempt(notes, 'The images of the run are not shown', build_dataset, run)
    views, images, names = [], [], []
    if dataset is not None:
        views = _attempt(notes, 'Views are not shown', sample_views, run, dataset) or []
        found = _attempt(notes, 'Features are not shown', _read_images, dataset)
        images, names = found or ([], [])
    features = checkpoint_features(run, images, notes) if images else []
    write_page(
        out,
        'report.html',
        run=run,
        about=_about(run, dataset),
        tiles=_tiles(run),
        sections=[(title, charts) for title, charts in charts_of(run) if charts],
        table=_table(run),
        events=_group_events(run),
        without_events=_describe_lack_of_events(run),
        views=views,
        features=features,
        photographs=[
            (name, data_uri(as_colors(image), 85), image.shape)
            for name, image in zip(names, images)
        ],
        notes=notes,
    )
    return out


def _attempt(notes: List[str], failure: str, act: Callable, *args: Any) -> Any:
    """Return a part of the report, or None with a note: the images may lie elsewhere by now."""
    try:
        return act(*args)
    except Exception as error:  # a config may ask for anything
        notes.append(f'{failure}: {" ".join(str(error).split()) or type(error).__name__}')
        return None


# ---------------------------------------------------------------- figures

# Endings of the names of health values, each with the title of its chart and the way to read it.
_HEALTH = [
    (
        '_std',
        'Spread of features (std)',
        '1 is spread over the complete sphere, 0 is constant: collapse.',
    ),
    (
        '_rank',
        'Effective rank of features',
        'Number of directions in which they differ; 1 is collapse.',
    ),
    (
        '_similarity',
        'Similarity of pairs (cosine)',
        'Positive pairs should be, and stay, more alike than negative ones.',
    ),
    (
        '_entropy',
        'Entropy of matches',
        '1: each location matches another one; 0: all match the same.',
    ),
    ('_used', 'Prototypes in use', 'Number that all locations are assigned to; 1 is collapse.'),
    ('_dead', 'Prototypes hardly used', 'Share with less than a hundredth of an equal part.'),
    ('without_positive', 'Images without a positive pair', 'The loss learns nothing from them.'),
]


def charts_of(run: RunLog) -> List[Tuple[str, List[Chart]]]:
    """Draw all scalars of a run; each has a place in one chart.

    Args:
        run (RunLog): A run, from :func:`read_run`.

    Returns:
        List[Tuple[str, List[Chart]]]: Charts by section.
    """
    draw = _Drawer(run)
    loss = _loss_charts(draw)
    draw.take(lambda name: name == 'chance')
    return [
        ('Loss', loss),
        ('Evaluation', _evaluation_charts(draw)),
        ('Health of the features', _health_charts(draw)),
        ('Course', _course_charts(draw)),
    ]


class _Drawer:
    """Draw the scalars of a run, and keep those that no chart has yet.

    Args:
        run (RunLog): The run.
    """

    def __init__(self, run: RunLog) -> None:
        self.run, self.left = run, dict(run.train)

    def take(self, test: Callable[[str], bool]) -> Dict[str, Curve]:
        """Remove from the rest and return the scalars whose names pass a test."""
        return {name: self.left.pop(name) for name in list(self.left) if test(name)}

    def chart(self, title: str, curves: Dict[str, Curve], **kwargs: Any) -> List[Chart]:
        """Return a chart of some curves, or none without a curve."""
        per = self.run.per_epoch or 1
        if not curves:
            return []
        series = [Series(name, c.steps / per, c.values) for name, c in curves.items()]
        kwargs.setdefault('x_name', 'epoch' if self.run.per_epoch else 'iteration')
        kwargs.setdefault('marks', [step / per for step in self.run.starts])
        kwargs.setdefault('x_end', self.run.last_step / per)
        return [Chart(title, series, **kwargs)]


def _loss_charts(draw: _Drawer) -> List[Chart]:
    run = draw.run
    losses = draw.take(lambda name: re.match(r'(.*\.)?loss', name) is not None)
    total = {k: losses.pop(k) for k in ['loss'] if k in losses}
    groups: Dict[str, Dict[str, Curve]] = {}
    for name, curve in losses.items():
        group = re.sub(r'_stage\d+$', '', name) if 'stage' in name else ''
        groups.setdefault(group, {})[name] = curve
    if list(groups) == [''] and len(groups['']) == 1:  # the only part is the complete loss
        total.update(groups.pop(''))
    span, levels, note = None, [], ''
    full, chance = run.queue_full_at, run.chance
    if full is not None:
        end = full / (run.per_epoch or 1)
        words = 'queue fills' if full < inf else 'queue is not full yet'
        span = (0, end, words)
        note = (
            'While the queue fills the loss rises toward chance level, and it can rise further '
            'while the first keys leave the queue.'
        )
    if chance is not None:
        each = run.train['chance'].values[-1]
        word = 'chance level' if np.isclose(chance, each) else 'chance level of all parts together'
        levels = [(chance, f'{word} {chance:.2f}')]
    spots = []
    if run.dense_from is not None:
        spots = [(run.dense_from / (run.per_epoch or 1), 'dense loss starts')]
        note = f'{note} The loss changes by a step where the dense loss starts.'.strip()
    charts = draw.chart('Loss', total, span=span, levels=levels, note=note, spots=spots)
    for name, curves in groups.items():
        title = f'Parts of the loss{f": {name}" if name else ""}'
        charts += draw.chart(title, curves, span=span, spots=spots)
    return charts


def _evaluation_charts(draw: _Drawer) -> List[Chart]:
    metrics: Dict[str, Dict[str, Curve]] = {}
    for name, curve in draw.run.evaluation.items():
        short = re.sub('^eval/', '', name)
        metrics.setdefault(re.sub('^(knn|linear)_', '', short), {})[short] = curve
    charts: List[Chart] = []
    for title, curves in metrics.items():
        guess = draw.run.guesses.get(title)
        levels = [] if guess is None else [(guess, f'most frequent class everywhere {guess:.4g}')]
        charts += draw.chart(title, curves, levels=levels)
    return charts


def _health_charts(draw: _Drawer) -> List[Chart]:
    prefix = 'health_'
    values = draw.take(lambda name: name.startswith(prefix))
    values = {name[len(prefix) :]: curve for name, curve in values.items()}
    charts: List[Chart] = []
    for ending, title, note in _HEALTH:
        names = [name for name in values if name.endswith(ending)]
        rule = next((s for s in THRESHOLDS if s.name.endswith(ending)), None)
        levels = []
        if rule is not None:
            word = 'below' if rule.recovery > rule.bound else 'above'
            levels = [(rule.bound, f'warns {word} {rule.bound:g}')]
        curves = {name: values.pop(name) for name in names}
        charts += draw.chart(title, curves, note=note, levels=levels)
    for name, curve in values.items():
        charts += draw.chart(name, {name: curve})
    return charts


def _course_charts(draw: _Drawer) -> List[Chart]:
    """Draw rates, speed, and all scalars that no other chart has."""
    run, take, chart = draw.run, draw.take, draw.chart
    rates = take(lambda name: name in ('lr', 'base_lr') or name.startswith('lr/'))
    if len(rates) > 1 and len({tuple(c.values) for c in rates.values()}) == 1:
        rates = {k: rates[k] for k in list(rates)[:1]}
    speed, loading = run.images_per_second, run.loading_share
    charts = [
        *chart('Learning rate', rates, zero=True),
        *chart('Throughput', {'images/s': speed} if speed else {}, zero=True),
        *chart(
            'Waiting for data',
            {'of the time': loading} if loading else {},
            percent=True,
            zero=True,
            note='Share of an iteration; if it is much, more workers or smaller files help.',
        ),
        *chart('Queue fill', take(lambda name: name == 'queue_fill'), percent=True, zero=True),
    ]
    timing = take(lambda name: name in ('time', 'data_time'))
    charts += chart('Time of an iteration (s)', timing, zero=True)
    charts += chart('GPU memory (MB)', take(lambda name: name == 'memory'), zero=True)
    for name, curve in take(lambda name: True).items():
        charts += chart(name, {name: curve})
    return charts


def _tiles(run: RunLog) -> List[Tuple[str, str, str]]:
    """Return the tiles at the top: a name, a value and a comment each."""
    tiles = []
    if 'loss' in run.train:
        values = run.train['loss'].values
        comment = f'began at {values[0]:.4g}'
        if run.chance is not None:
            comment += f'; chance level {run.chance:.2f}'
        tiles.append(('loss', f'{values[-1]:.4g}', comment))
    if run.queue_full_at is not None:
        fill = run.train['queue_fill'].values[-1]
        comment = f'full at iteration {run.queue_full_at:,.0f}' if fill >= 1 else 'it fills'
        tiles.append(('queue', f'{fill:.0%}', comment))
    if run.images_per_second is not None and len(run.images_per_second.values):
        speed = float(np.nanmedian(run.images_per_second.values))
        share = run.loading_share
        waits = f'{np.nanmedian(share.values):.0%} of the time waiting for data' if share else ''
        tiles.append(('images/s', f'{speed:,.0f}' if speed >= 10 else f'{speed:.1f}', waits))
    for name, curve in list(run.evaluation.items())[:2]:
        best = np.nanmax(curve.values) if np.isfinite(curve.values).any() else float('nan')
        tiles.append((re.sub('^eval/', '', name), f'{curve.values[-1]:.4g}', f'highest {best:.4g}'))
    if any(name.startswith('health_') for name in run.train) and not run.without_events:
        count = sum(e.count for e in run.events if e.kind == 'health' and e.level == 'WARNING')
        tiles.append(
            ('health', str(count) if count else 'good', 'warnings' if count else 'no warning')
        )
    skipped = sum(event.count for event in run.events if event.kind == 'skipped')
    if skipped:
        tiles.append(('skipped steps', str(skipped), 'not finite'))
    return tiles


def _about(run: RunLog, dataset: Any) -> List[Tuple[str, str]]:
    """Return names and values that describe the run, by the config."""
    kind, depth = (
        run.setting('model', 'backbone', 'type'),
        run.setting('model', 'backbone', 'depth'),
    )
    backbone = f'{str(kind).rpartition(".")[2]}{f"-{depth}" if depth else ""}' if kind else ''
    root, prefix = (
        run.setting('train_dataloader', 'dataset', key) for key in ('data_root', 'data_prefix')
    )
    folders = prefix if isinstance(prefix, (list, tuple)) else [prefix]
    where = ', '.join('/'.join(str(part) for part in (root, folder) if part) for folder in folders)
    if dataset is not None:
        where = f'{len(dataset):,} in {where}'
    epochs, batch = run.setting('train_cfg', 'max_epochs'), ''
    if run.batch_size:
        batch = f'{run.batch_size} images'
        if run.processes > 1:
            batch += f', {run.batch_size // run.processes} on each of {run.processes} processes'
    elif run.setting('train_dataloader', 'batch_size'):
        batch = f'{run.setting("train_dataloader", "batch_size")} images on each process'
    rows = [
        ('Method', str(run.setting('model', 'type') or '')),
        ('Backbone', backbone),
        ('Images', where),
        ('Batch', batch),
        ('Length', f'{epochs} epochs' if epochs else ''),
        ('Config', run.config_name),
        ('Started', run.started),
        ('Running time', str(timedelta(seconds=round(run.seconds)))),
        ('Starts', f'{len(run.folders)} (resumed: dotted lines)' if run.starts else ''),
        ('Folder', str(run.directory.resolve())),
    ]
    return [(name, value) for name, value in rows if value]


def _table(run: RunLog) -> List[Tuple[str, List[str]]]:
    rows = []
    for name, curve in [*run.train.items(), *run.evaluation.items()]:
        known = curve.values[np.isfinite(curve.values)]
        if len(known):
            numbers = known[0], known[-1], known.min(), known.max()
            if name == 'chance' and not np.isclose(run.chance or known[-1], known[-1]):
                name = 'chance (of each part, before its weight)'
            rows.append((name, [f'{v:.5g}' for v in numbers] + [f'{len(curve.values):,}']))
    return rows


class Group(NamedTuple):
    """Hold events under one heading: ``shown`` of ``total``; folded if they are minor."""

    title: str
    shown: list
    total: int
    minor: bool


def _describe_lack_of_events(run: RunLog) -> str:
    """Return one line on the starts that wrote scalars without events; '' if all wrote both."""
    missing = run.without_events
    if not missing:
        return ''
    if len(missing) == len(run.folders):
        which = 'This run wrote'
    else:
        which = f'{len(missing)} of {len(run.folders)} starts ({", ".join(missing)}) wrote'
    return (
        f'{which} no events (events.jsonl), as runs of an older mmdense and of other packages do: '
        'warnings, skipped steps, unreadable images and the course of the run are not shown; the '
        'log has them.'
    )


def _group_events(run: RunLog) -> List[Group]:
    titles = dict(
        health='Health of the features',
        skipped='Steps that were not finite, and skipped',
        unreadable='Images that cannot be read',
        course='Course of the run',
        other='Other warnings',
    )
    groups = []
    for kind, title in titles.items():
        found = [event for event in run.events if event.kind == kind]
        if found:
            groups.append(Group(title, found[:30], len(found), kind == 'other'))
    return groups


# ---------------------------------------------------------------- images


def build_dataset(run: RunLog) -> Dataset:
    """Build the data set of a run from its config, if the config asks for nothing else.

    Args:
        run (RunLog): A run, from :func:`read_run`.

    Returns:
        Dataset: The data set with its pipeline.

    Raises:
        DataError: The config names no data set, or types that are no data sets and transforms
            of mmdense, mmpretrain, mmcv and mmengine.
    """
    cfg = run.setting('train_dataloader', 'dataset')
    if not isinstance(cfg, dict):
        raise DataError('the config names no data set')
    foreign = find_foreign_type(cfg, ['TRANSFORMS', 'DATASETS'], (BaseTransform, Dataset))
    if foreign is not None:
        raise DataError(f'{foreign[1]!r} is no data set or transform that mmdense knows')
    with DefaultScope.overwrite_default_scope('mmdense'):
        return DATASETS.build(dict(cfg))


def _select_indices(dataset: Any) -> List[int]:
    return sorted(set(np.linspace(0, len(dataset) - 1, _NUM_IMAGES).round().astype(int).tolist()))


def _read_image(dataset: Any, index: int) -> Tuple[str, np.ndarray]:
    if hasattr(dataset, 'read'):
        path, content = dataset.read(index)
        info = dict(img_path=path, img_bytes=content)
    else:
        info = dict(img_path=dataset.get_data_info(index)['img_path'])
    load = find_loader(dataset) or LoadImage()
    return info['img_path'], load.transform(info)['img']


def _read_images(dataset: Any, size: int = 384) -> Tuple[List[np.ndarray], List[str]]:
    images, names = [], []
    for index in _select_indices(dataset):
        try:
            path, image = _read_image(dataset, index)
        except UnreadableImageError:
            continue
        images.append(fit_image(image, size))
        names.append(_short_name(path))
    return images, names


class Sample(NamedTuple):
    """Hold an image and its views for the report.

    Attributes:
        name (str): Name of the file.
        image (str): The image, from :func:`~.html.data_uri`.
        width (int): Width in pixels.
        height (int): Height in pixels.
        views (List[str]): The views, from :func:`~.html.data_uri`.
        boxes (List[Tuple[float, ...]]): x, y, width and height of each view in the image, in
            pixels; empty if the pipeline keeps no boxes.
    """

    name: str
    image: str
    width: int
    height: int
    views: List[str]
    boxes: List[Tuple[float, ...]]


def sample_views(run: RunLog, dataset: Any) -> List[Sample]:
    """Return the views that the network gets of some images.

    Args:
        run (RunLog): A run, from :func:`read_run`.
        dataset (Dataset): Its data set, from :func:`build_dataset`.

    Returns:
        List[Sample]: One for each image; the same at every call.
    """
    samples = []
    for index in _select_indices(dataset):
        with seeded(index):
            packed = dataset[index]
        views, sample = packed['inputs'], packed['data_samples']
        views = views if isinstance(views, (list, tuple)) else [views]
        if 'deferred' in sample:
            todo = sample.deferred
            views = [apply_batch(v[None], [o])[0] for v, o in zip(views, todo)]
        path = sample.get('img_path')
        try:
            path, image = _read_image(dataset, index)
        except UnreadableImageError:
            continue
        image = fit_image(image, 384)
        height, width = image.shape[:2]
        boxes = np.asarray(sample.get('view_boxes', np.zeros((0, 4))), float)
        samples.append(
            Sample(
                _short_name(path),
                data_uri(as_colors(image), 80),
                width,
                height,
                [data_uri(_pixels(view), 80) for view in views],
                [
                    (min(x0, x1) * width, y0 * height, abs(x1 - x0) * width, (y1 - y0) * height)
                    for x0, y0, x1, y1 in boxes.tolist()
                ],
            )
        )
    return samples


def _pixels(view: Any) -> np.ndarray:
    """Turn C×H×W or patches G×C×H×W, BGR with 3 channels, into a picture H×W×3, RGB."""
    if view.dim() == 4:
        side = int(len(view) ** 0.5)
        rows = [np.concatenate(list(map(_pixels, row)), axis=1) for row in view.split(side)]
        return np.concatenate(rows, axis=0)
    pixels = view.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return as_colors(pixels[..., ::-1] if pixels.shape[2] == 3 else pixels)


class Features(NamedTuple):
    """Hold the last stage's features of a checkpoint, as colours of each image."""

    label: str
    pictures: List[str]
    explained: float


def checkpoint_features(
    run: RunLog, images: Sequence[np.ndarray], notes: List[str]
) -> List[Features]:
    """Colour the features of random weights and of the checkpoints, to show how they develop.

    Principal components have no fixed order and direction: those of successive checkpoints are
    aligned.

    Args:
        run (RunLog): A run, from :func:`read_run`.
        images (Sequence[np.ndarray]): Images, each H×W×C uint8, RGB with 3 channels.
        notes (List[str]): Notes of the report; a checkpoint that cannot be used adds a line.

    Returns:
        List[Features]: Features in the order of training; empty without a checkpoint.
    """
    number = min(len(run.checkpoints), _NUM_CHECKPOINTS)
    chosen = np.linspace(0, len(run.checkpoints) - 1, number).round().astype(int)
    rows: List[Tuple[str, Any]] = []
    for label, path in [run.checkpoints[i] for i in chosen]:
        try:
            backbones = load_backbones(str(path))
            inputs = to_inputs(images, backbones.preprocessor)
            if not rows:
                calibrate(backbones.random, inputs)
                rows.append(
                    ('random weights', pca_colours(stage_maps(backbones.random, inputs)[-1]))
                )
            stage = pca_colours(stage_maps(backbones.pretrained, inputs)[-1])
        except Exception as error:  # a checkpoint may hold anything
            notes.append(f'{path.name} is not shown: {" ".join(str(error).split())}')
            continue
        colours = _align_colours(stage.colours, rows[-1][1].colours)
        rows.append((label, stage._replace(colours=colours)))
    return [
        Features(label, [data_uri(colour) for colour in stage.colours], stage.explained)
        for label, stage in rows
    ]


def _align_colours(colours: List[np.ndarray], before: List[np.ndarray]) -> List[np.ndarray]:
    """Order and flip channels so that they are most like those of the checkpoint before."""
    now, then = (np.concatenate([c.reshape(-1, 3) for c in x]) - 0.5 for x in (colours, before))
    if now.shape != then.shape:
        return colours
    alike = now.T @ then
    order = max(permutations(range(3)), key=lambda p: np.abs(alike[list(p), range(3)]).sum())
    flip = alike[list(order), range(3)] < 0
    return [np.where(flip, 1 - c[..., list(order)], c[..., list(order)]) for c in colours]
