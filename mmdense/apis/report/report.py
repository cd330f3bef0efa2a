# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""One page of a run, from its work directory."""

import re
from datetime import datetime, timedelta
from itertools import permutations
from math import inf
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import DefaultScope
from torch.utils.data import Dataset

from mmdense.checkpoints.backbones import load_backbones
from mmdense.checkpoints.model_config import find_foreign_type
from mmdense.datasets import LoadImage, UnreadableImageError
from mmdense.datasets.transforms.batched import apply_batch
from mmdense.evaluation.collapse import SIGNS
from mmdense.evaluation.feature_maps import fit_image, stage_maps, to_inputs
from mmdense.models.utils.batch_norm import calibrate
from mmdense.registry import DATASETS
from mmdense.utils.errors import DataError
from mmdense.utils.randomness import seeded
from mmdense.visualization.levels import pca_colours
from mmdense.visualization.slots import _short_name

from .charts import Chart, Series
from .html import data_uri, write_page
from .run_log import Curve, RunLog, read_run

_NUM_IMAGES, _NUM_CHECKPOINTS = 4, 5


def write_report(directory: str, out: Optional[str] = None) -> str:
    """Writes one HTML page of a run, which may be going on.

    Args:
        directory (str): The work directory.
        out (str, optional): The file. Defaults to ``report.html`` in it.

    Returns:
        str: The file.

    Raises:
        InputError: There is no run.
    """
    run = read_run(directory)
    out = out or str(run.directory / 'report.html')
    notes: List[str] = []
    dataset = _attempt(notes, 'The images of the run are not shown', build_dataset, run)
    views, images, names = [], [], []
    if dataset is not None:
        views = _attempt(notes, 'Views are not shown', sample_views, run, dataset) or []
        found = _attempt(notes, 'Features are not shown', _photographs, dataset)
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
        events=_events(run),
        views=views,
        features=features,
        photographs=[
            (name, data_uri(image, 85), image.shape) for name, image in zip(names, images)
        ],
        notes=notes,
        written=datetime.now().strftime('%Y-%m-%d %H:%M'),
    )
    return out


def _attempt(notes: List[str], what: str, act: Any, *args: Any) -> Any:
    """A part of the page that may be missing: the images may lie elsewhere by now."""
    try:
        return act(*args)
    except Exception as error:  # a config may ask for anything
        notes.append(f'{what}: {" ".join(str(error).split()) or type(error).__name__}')
        return None


# ---------------------------------------------------------------- figures

# Of health values: what their names end with, the chart's title, and how to read it.
_HEALTH = [
    (
        '_std',
        'Spread of features (std)',
        '1 is spread over the whole sphere, 0 is constant: collapse.',
    ),
    (
        '_rank',
        'Effective rank of features',
        'Directions in which they differ; 1 is collapse.',
    ),
    (
        '_similarity',
        'Similarity of pairs (cosine)',
        'Positive pairs should be, and stay, more alike than negative ones.',
    ),
    ('match_entropy', 'Entropy of matches', '1: cells match each another one; 0: all the same.'),
    ('prototypes_used', 'Prototypes in use', 'Of all cells; 1 is collapse.'),
    (
        'prototypes_dead',
        'Prototypes hardly used',
        'Share with less than a hundredth of its part.',
    ),
    ('without_positive', 'Images without a positive pair', 'They teach nothing.'),
]


def charts_of(run: RunLog) -> List[Tuple[str, List[Chart]]]:
    """All scalars of a run as charts; each has a place in one of them.

    Args:
        run (RunLog): Of :func:`read_run`.

    Returns:
        List[Tuple[str, List[Chart]]]: By section.
    """
    left = dict(run.train)

    def take(test) -> Dict[str, Curve]:
        found = {name: left.pop(name) for name in list(left) if test(name)}
        return found

    def chart(title: str, curves: Dict[str, Curve], **kwargs: Any) -> List[Chart]:
        per = run.per_epoch or 1
        if not curves:
            return []
        series = [Series(name, c.steps / per, c.values) for name, c in curves.items()]
        kwargs.setdefault('x_name', 'epoch' if run.per_epoch else 'iteration')
        kwargs.setdefault('marks', [step / per for step in run.starts])
        kwargs.setdefault('x_end', run.last_step / per)
        return [Chart(title, series, **kwargs)]

    losses = take(lambda name: re.match(r'(.*\.)?loss', name) is not None)
    total = {k: losses.pop(k) for k in ['loss'] if k in losses}
    groups: Dict[str, Dict[str, Curve]] = {}
    for name, curve in losses.items():
        groups.setdefault(re.sub(r'_stage\d+$', '', name) if 'stage' in name else '', {})[name] = (
            curve
        )
    if list(groups) == [''] and len(groups['']) == 1:  # it is the whole loss
        total.update(groups.pop(''))
    span, levels, note = None, [], ''
    full, chance = run.queue_full_at, run.chance
    if full is not None:
        end = full / (run.per_epoch or 1)
        words = 'queue fills' if full < inf else 'queue is not full yet'
        span = (0, end, words)
        note = 'While the queue fills the loss rises toward chance level; then it should fall.'
    if chance is not None:
        levels = [(chance, f'chance level {chance:.2f}')]
    sections = [('Loss', chart('Loss', total, span=span, levels=levels, note=note))]
    for name, curves in groups.items():
        sections[0][1].extend(
            chart(f'Parts of the loss{f": {name}" if name else ""}', curves, span=span)
        )
    take(lambda name: name == 'chance')

    metrics: Dict[str, Dict[str, Curve]] = {}
    for name, curve in run.evaluation.items():
        short = re.sub('^eval/', '', name)
        metrics.setdefault(re.sub('^(knn|linear)_', '', short), {})[short] = curve
    found = [chart(metric, curves) for metric, curves in metrics.items()]
    sections.append(('Evaluation', [c for charts in found for c in charts]))

    health: List[Chart] = []
    for ending, title, note in _HEALTH:
        curves = take(lambda name: name.startswith('health_') and name.endswith(ending))  # noqa: B023
        curves = {name[len('health_') :]: curve for name, curve in curves.items()}
        sign = next((s for s in SIGNS if ending == s.name), None)
        levels = []
        if sign is not None:
            word = 'below' if sign.over > sign.bound else 'above'
            levels = [(sign.bound, f'warns {word} {sign.bound:g}')]
        health += chart(title, curves, note=note, levels=levels)
    for name, curve in take(lambda name: name.startswith('health_')).items():
        health += chart(name[len('health_') :], {name[len('health_') :]: curve})
    sections.append(('Health of the features', health))

    rates = take(lambda name: name in ('lr', 'base_lr') or name.startswith('lr/'))
    if len(rates) > 1 and len({tuple(c.values) for c in rates.values()}) == 1:
        rates = {k: rates[k] for k in list(rates)[:1]}
    speed, loading = run.images_per_second, run.loading_share
    course = [
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
    course += chart('Time of an iteration (s)', timing, zero=True)
    course += chart('GPU memory (MB)', take(lambda name: name == 'memory'), zero=True)
    for name in list(left):
        course += chart(name, take(lambda other: other == name))  # noqa: B023
    sections.append(('Course', course))
    return sections


def _tiles(run: RunLog) -> List[Tuple[str, str, str]]:
    """The first look: a name, a value and a remark each."""
    tiles = []
    if 'loss' in run.train:
        values = run.train['loss'].values
        remark = f'began at {values[0]:.4g}'
        if run.chance is not None:
            remark += f'; chance level {run.chance:.2f}'
        tiles.append(('loss', f'{values[-1]:.4g}', remark))
    if run.queue_full_at is not None:
        fill = run.train['queue_fill'].values[-1]
        remark = f'full at iteration {run.queue_full_at:,.0f}' if fill >= 1 else 'it fills'
        tiles.append(('queue', f'{fill:.0%}', remark))
    if run.images_per_second is not None and len(run.images_per_second.values):
        speed = float(np.nanmedian(run.images_per_second.values))
        share = run.loading_share
        waits = f'{np.nanmedian(share.values):.0%} of the time waiting for data' if share else ''
        tiles.append(('images/s', f'{speed:,.0f}' if speed >= 10 else f'{speed:.1f}', waits))
    for name, curve in list(run.evaluation.items())[:2]:
        best = np.nanmax(curve.values) if np.isfinite(curve.values).any() else float('nan')
        tiles.append((re.sub('^eval/', '', name), f'{curve.values[-1]:.4g}', f'highest {best:.4g}'))
    if any(name.startswith('health_') for name in run.train):
        count = sum(e.count for e in run.events if e.kind == 'health' and e.level == 'WARNING')
        tiles.append(
            ('health', str(count) if count else 'good', 'warnings' if count else 'no warning')
        )
    skipped = sum(event.count for event in run.events if event.kind == 'skipped')
    if skipped:
        tiles.append(('skipped steps', str(skipped), 'not finite'))
    return tiles


def _about(run: RunLog, dataset: Any) -> List[Tuple[str, str]]:
    """What was run, by the config."""
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
    rows = [
        ('Method', str(run.setting('model', 'type') or '')),
        ('Backbone', backbone),
        ('Images', where),
        ('Batch', batch),
        ('Length', f'{epochs} epochs' if epochs else ''),
        ('Config', run.config_name),
        ('Started', run.started),
        ('Running time', str(timedelta(seconds=round(run.seconds)))),
        ('Sessions', f'{len(run.sessions)} (resumed: dotted lines)' if run.starts else ''),
        ('Folder', str(run.directory.resolve())),
    ]
    return [(name, value) for name, value in rows if value]


def _table(run: RunLog) -> List[Tuple[str, List[str]]]:
    rows = []
    for name, curve in [*run.train.items(), *run.evaluation.items()]:
        known = curve.values[np.isfinite(curve.values)]
        if len(known):
            numbers = known[0], known[-1], known.min(), known.max()
            rows.append((name, [f'{v:.5g}' for v in numbers] + [f'{len(curve.values):,}']))
    return rows


class Group(NamedTuple):
    """Events under one heading: ``shown`` of ``total``; folded where they are minor."""

    title: str
    shown: list
    total: int
    minor: bool


def _events(run: RunLog) -> List[Group]:
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


# ---------------------------------------------------------------- pictures


def build_dataset(run: RunLog) -> Dataset:
    """The data set of a run, from its config, if that asks for nothing else.

    Args:
        run (RunLog): Of :func:`read_run`.

    Returns:
        Dataset: With its pipeline.

    Raises:
        DataError: The config does not say, or names types that are no data
            sets and transforms of mmdense, mmpretrain, mmcv and mmengine.
    """
    cfg = run.setting('train_dataloader', 'dataset')
    if not isinstance(cfg, dict):
        raise DataError('the config names no data set')
    foreign = find_foreign_type(cfg, ['TRANSFORMS', 'DATASETS'], (BaseTransform, Dataset))
    if foreign is not None:
        raise DataError(f'{foreign[1]!r} is no data set or transform that mmdense knows')
    with DefaultScope.overwrite_default_scope('mmdense'):
        return DATASETS.build(dict(cfg))


def _spread(dataset: Any) -> List[int]:
    return sorted(set(np.linspace(0, len(dataset) - 1, _NUM_IMAGES).round().astype(int).tolist()))


def _photograph(dataset: Any, index: int) -> Tuple[str, np.ndarray]:
    if hasattr(dataset, 'read'):
        path, content = dataset.read(index)
        info = dict(img_path=path, img_bytes=content)
    else:
        info = dict(img_path=dataset.get_data_info(index)['img_path'])
    return info['img_path'], LoadImage().transform(info)['img']


def _photographs(dataset: Any, size: int = 384) -> Tuple[List[np.ndarray], List[str]]:
    images, names = [], []
    for index in _spread(dataset):
        try:
            path, image = _photograph(dataset, index)
        except UnreadableImageError:
            continue
        images.append(fit_image(image, size))
        names.append(_short_name(path))
    return images, names


class Sample(NamedTuple):
    """An image and its views, to be shown.

    Attributes:
        name (str): Of the file.
        image (str): As :func:`~.html.data_uri` gives it.
        width (int): In pixels.
        height (int): In pixels.
        views (List[str]): Likewise.
        boxes (List[Tuple[float, ...]]): x, y, width and height of each view in
            the image, in pixels; none where the pipeline does not tell.
    """

    name: str
    image: str
    width: int
    height: int
    views: List[str]
    boxes: List[Tuple[float, ...]]


def sample_views(run: RunLog, dataset: Any) -> List[Sample]:
    """What the network is given of some images.

    Args:
        run (RunLog): Of :func:`read_run`.
        dataset (Dataset): Of :func:`build_dataset`.

    Returns:
        List[Sample]: One an image; the same at every call.
    """
    samples = []
    for index in _spread(dataset):
        with seeded(index):
            packed = dataset[index]
        views, sample = packed['inputs'], packed['data_samples']
        views = views if isinstance(views, (list, tuple)) else [views]
        if 'deferred' in sample:
            todo = sample.deferred
            views = [apply_batch(v[None], [o])[0] for v, o in zip(views, todo)]
        path = sample.get('img_path')
        try:
            path, image = _photograph(dataset, index)
        except UnreadableImageError:
            continue
        image = fit_image(image, 384)
        height, width = image.shape[:2]
        boxes = np.asarray(sample.get('view_boxes', np.zeros((0, 4))), float)
        samples.append(
            Sample(
                _short_name(path),
                data_uri(image, 80),
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
    """3×H×W or patches G×3×H×W, BGR, to H×W×3, RGB."""
    if view.dim() == 4:
        side = int(len(view) ** 0.5)
        rows = [np.concatenate(list(map(_pixels, row)), axis=1) for row in view.split(side)]
        return np.concatenate(rows, axis=0)
    return view.round().clamp(0, 255).byte().flip(0).permute(1, 2, 0).numpy()


class Features(NamedTuple):
    """The last stage's features of a checkpoint, as colours of each image."""

    label: str
    pictures: List[str]
    explained: float


def checkpoint_features(
    run: RunLog, images: Sequence[np.ndarray], notes: List[str]
) -> List[Features]:
    """How features change: random weights, then the checkpoints that are there.

    Colours of successive checkpoints are brought into the same order and
    direction, which principal components by themselves do not have.

    Args:
        run (RunLog): Of :func:`read_run`.
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        notes (List[str]): Gets a line for each checkpoint that cannot be used.

    Returns:
        List[Features]: In order; empty without a checkpoint.
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
        except Exception as error:  # as in _attempt
            notes.append(f'{path.name} is not shown: {" ".join(str(error).split())}')
            continue
        rows.append((label, stage._replace(colours=_aligned(stage.colours, rows[-1][1].colours))))
    return [
        Features(label, [data_uri(colour) for colour in stage.colours], stage.explained)
        for label, stage in rows
    ]


def _aligned(colours: List[np.ndarray], before: List[np.ndarray]) -> List[np.ndarray]:
    """Channels in the order, and with the signs, that are most like those before."""
    now, then = (np.concatenate([c.reshape(-1, 3) for c in x]) - 0.5 for x in (colours, before))
    if now.shape != then.shape:
        return colours
    alike = now.T @ then
    order = max(permutations(range(3)), key=lambda p: np.abs(alike[list(p), range(3)]).sum())
    flip = alike[list(order), range(3)] < 0
    return [np.where(flip, 1 - c[..., list(order)], c[..., list(order)]) for c in colours]
