# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The page of a run says what its log says, in whatever state the run is."""

import base64
import io
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from tiny_algorithms import algorithm_class, each_algorithm, tiny_form

from mmdense.apis.report import report
from mmdense.apis.report.charts import thin
from mmdense.apis.report.report import (
    _align_colours,
    build_dataset,
    charts_of,
    sample_views,
    write_report,
)
from mmdense.apis.report.run_log import RunLog, read_run
from mmdense.utils.errors import InputError

CONFIG = """
model = dict(type='Algorithm', backbone=dict(type='mmpretrain.ResNet', depth=18))
train_dataloader = dict(batch_size=32, dataset=dict({dataset}))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4)
"""
GONE = "type='UnlabeledDataset', data_root='none', pipeline=[dict(type='LoadImage')]"


def row(step, per_epoch=10, **values):
    values = {**dict(lr=0.1, time=0.5, data_time=0.05, loss=3 + 1 / step), **values}
    return dict(values, epoch=-(-step // per_epoch), iter=step, step=step)


def event(kind, text='', level='INFO', clock='10:00:00', **data):
    time = f'2026-01-31T{clock}'
    return dict(kind=kind, time=time, iter=0, epoch=0, level=level, text=text, **data)


STARTED = event('started', processes=2, epoch_length=10, max_iters=40, resumed=False)


@pytest.fixture
def write(tmp_path):
    """Write a start of a run as MMEngine and mmdense do; returns the work directory.

    ``events`` None is a run of an mmdense that wrote none.
    """

    def start(rows, name='20260131_100000', events=(), dataset=GONE, tail='', age=10000.0, torn=''):
        folder = tmp_path / 'work' / name
        (folder / 'vis_data').mkdir(parents=True)
        text = ''.join(json.dumps(values) + '\n' for values in rows) + tail
        (folder / 'vis_data' / 'scalars.json').write_text(text)
        (folder / 'vis_data' / 'config.py').write_text(CONFIG.format(dataset=dataset))
        (folder / f'{name}.log').write_text('2026/01/31 10:00:00 - mmengine - INFO - begins\n')
        if events is not None:
            lines = ''.join(json.dumps(values) + '\n' for values in [STARTED, *events])
            (folder / 'events.jsonl').write_text(lines + torn)
        when = time.time() - age
        for path in folder.rglob('*.*'):
            os.utime(path, (when, when))
        return str(tmp_path / 'work')

    return start


def page(directory):
    return Path(write_report(directory)).read_text(encoding='utf-8')


def figures(html):
    """All curves of a page by name, as its script reads them: x and y."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', html)
    return {
        s['name']: (np.array(s['x'], float), np.array(s['y'], float))
        for text in found
        for s in json.loads(text)['series']
    }


def resources(html):
    """Return the addresses that a browser would fetch."""
    used = re.findall(r'(?:src|href|poster|action)\s*=\s*"([^"]*)"', html)
    used += re.findall(r'(?:url\(|@import)\s*([^)\s;]+)', html)
    return [address for address in used if not re.match('data:|#', address)]


def test_figures_are_those_of_the_log(write):
    rows = [row(s, queue_fill=min(1, s / 16), chance=6.24) for s in range(2, 41, 2)]
    html = page(write(rows))
    found = figures(html)
    steps = np.arange(2, 41, 2)
    for name, values in [('loss', 3 + 1 / steps), ('queue_fill', np.minimum(1, steps / 16))]:
        np.testing.assert_allclose(found[name][0], steps / 10, rtol=1e-5)  # in epochs
        np.testing.assert_allclose(found[name][1], values, rtol=1e-5)
    assert set(found['images/s'][1]) == {128.0} and set(found['of the time'][1]) == {0.1}
    assert 'chance level 6.24' in html and 'full at iteration 16' in html
    assert '>finished<' in html and 'epoch 4 of 4, iteration 40 of 40' in html
    assert resources(html) == []


def test_the_queue_is_full_where_its_event_says_it(write):
    """Not at the next iteration that is logged."""
    rows = [row(s, queue_fill=1.0, chance=6.24) for s in (10, 20)]
    assert 'full at iteration 10<' in page(write(rows))
    full = event('queue_full', 'The key queue is full.', iteration=3)
    assert 'full at iteration 3<' in page(write(rows, '20260131_110000', events=[full]))


def test_the_start_of_the_dense_loss_is_marked(write):
    rows = [row(s, loss_dense=2.0, loss_single=1.0) for s in (10, 20, 30)]
    assert 'dense loss starts' not in page(write(rows))
    starts = event('dense_loss_starts', 'The dense loss starts (iteration 15)', iteration=15)
    html = page(write(rows, '20260131_110000', events=[starts]))
    for title in ('>Loss<', '>Parts of the loss<'):
        chart = html[html.index(title) :]
        chart = chart[: chart.index('</svg>')]
        assert 'dense loss starts' in chart, title
    assert 'The dense loss starts (iteration 15)' in html  # in the course


def test_health_has_the_points_that_were_measured(write):
    """The log repeats the last number in each line; it is measured every 50 iterations."""
    rows = [row(s, per_epoch=100) for s in range(8, 49, 8)]
    rows += [row(s, per_epoch=100, health_dense_std=s // 50) for s in range(56, 201, 8)]
    found = figures(page(write(rows)))
    np.testing.assert_allclose(found['dense_std'][1], [1, 2, 3, 4])
    run = read_run(write(rows, '20260131_110000'))
    assert run.train['health_dense_std'].steps.tolist() == [50, 100, 150, 200]


def test_scores_are_next_to_those_of_a_guess(write):
    rows = [row(s) for s in (10, 20)] + [{'iter': 20, 'step': 20, 'eval/knn_mIoU': 12.0}]
    scores = event('evaluation', 'Features', values={'knn_mIoU': 12.0}, guesses={'mIoU': 3.21})
    html = page(write(rows, events=[scores]))
    assert 'most frequent class everywhere 3.21' in html


def test_one_chance_level_for_the_loss_of_several_parts(write):
    names = [f'loss_gg_stage{i}' for i in (2, 3, 4, 5)]
    rows = [row(s, chance=2.0, **dict.fromkeys(names, 1.0)) for s in (10, 20)]
    assert 'chance level 2.00' in page(write([row(s, chance=2.0) for s in (10, 20)]))
    run = read_run(write(rows, '20260131_110000'))
    run.config['model'] = dict(type='Algorithm', stage_weights=(0.1, 0.4, 0.7, 1.0))
    (chart,) = [c for _, charts in charts_of(run) for c in charts if c.title == 'Loss']
    assert chart.levels == [(pytest.approx(4.4), 'chance level of all parts together 4.40')]
    names = [name for name, _ in report._table(run)]
    assert 'chance (of each part, before its weight)' in names and 'chance' not in names


def test_ticks_of_small_shares_differ(write):
    html = page(write([row(s, data_time=0.01 + 0.0001 * s) for s in (2, 4)]))
    chart = html[html.index('>Waiting for data<') :]
    ticks = re.findall(r'text-anchor="end"[^>]*>([\d.]+%)<', chart[: chart.index('</svg>')])
    assert len(ticks) > 2 and len(set(ticks)) == len(ticks)


def test_every_scalar_has_a_place(write):
    """Those of all four algorithms, and others."""
    losses = ['loss_single', 'loss_dense', 'loss_pixel', 'loss_instance', 'loss_group', 'loss_slot']
    losses += [f'loss_{pairing}_stage{i}' for pairing in ('gg', 'gl', 'll') for i in (2, 3, 4, 5)]
    kinds = ('std', 'rank', 'positive_similarity', 'negative_similarity')
    health = [f'{k}_{n}' for k in ('global', 'dense', 'local', 'slot') for n in kinds]
    health += ['match_entropy', 'prototypes_used', 'prototypes_dead', 'without_positive', 'own']
    others = ['momentum', 'grad_norm', 'memory', 'base_lr', 'lambda', 'mine']
    names = losses + [f'health_{name}' for name in health] + others
    rows = [row(s, **{name: s + i for i, name in enumerate(names)}) for s in (5, 10)]
    evaluation = {'eval/knn_mIoU': 20.5, 'eval/linear_mIoU': 30.5, 'coco/AP': 0.25}
    rows.append(dict(evaluation, iter=10, step=10))
    run = read_run(write(rows))
    shown = {
        series.name: series.y[-1]
        for _, charts in charts_of(run)
        for chart in charts
        for series in chart.series
    }
    for i, name in enumerate(names):
        assert shown[name.replace('health_', '')] == 10 + i, name
    for name, value in evaluation.items():
        assert shown[name.replace('eval/', '')] == value


def test_chance_of_a_weighted_sum_over_stages(write):
    """The weights of the config, or the default of the model; unknown without either."""
    names = [f'loss_{pairing}_stage{i}' for pairing in ('gg', 'gl', 'll') for i in (2, 3, 4, 5)]
    run = read_run(write([row(5, chance=2.0, **dict.fromkeys(names, 1.0))]))
    assert run.chance is None
    run.config['model'] = dict(type='DetCo')
    assert run.chance == pytest.approx(2 * 3 * (0.1 + 0.4 + 0.7 + 1))
    run.config['model'] = dict(type='os.DetCo', stage_weights=(1.0, 1.0, 1.0, 2.0))
    assert run.chance == pytest.approx(2 * 3 * 5)


def test_bounds_of_health_are_those_of_the_hook(write):
    from mmdense.evaluation.collapse import THRESHOLDS

    rows = [row(s, health_global_std=0.4, health_global_rank=9.0) for s in (5, 10)]
    charts = {c.title: c for _, found in charts_of(read_run(write(rows))) for c in found}
    bounds = {sign.name: sign.bound for sign in THRESHOLDS}
    assert charts['Spread of features (std)'].levels[0][0] == bounds['_std']
    assert charts['Effective rank of features'].levels[0][0] == bounds['_rank']


def test_resumed_in_several_sessions(write):
    write([row(s) for s in range(2, 31, 2)])
    later = [dict(row(s), loss=s) for s in range(22, 41, 2)]
    directory = write(later, '20260131_110000')
    run = read_run(directory)
    assert run.train['loss'].steps.tolist() == list(range(2, 41, 2))
    assert run.train['loss'].values[10:].tolist() == list(range(22, 41, 2))
    assert run.starts == [22] and 'class="mark"' in page(directory)
    # a new run in the same directory takes the place of the old one
    directory = write([row(2), row(4)], '20260131_120000')
    run = read_run(directory)
    assert run.train['loss'].steps.tolist() == [2, 4] and run.starts == []


def test_while_it_is_written(write):
    directory = write([row(s) for s in range(2, 21, 2)], tail='{"lr": 0.1, "los', age=3)
    run = read_run(directory)
    assert len(run.train['loss'].steps) == 10 and run.state.kind == 'running'
    assert 'epoch 2 of 4, iteration 20 of 40, about 0:00:10 left' in page(directory)


def test_interrupted(write):
    said = 'SIGTERM: saved work/iter_20.pth and ended.'
    ended = event('preempted', said, 'WARNING', iterations=20)
    directory = write([row(s) for s in range(2, 21, 2)], events=[ended], age=3)
    state = read_run(directory).state
    assert state.kind == 'interrupted' and said in state.text
    # lines come every other iteration
    ended = event('preempted', said, 'WARNING', iterations=21)
    shutil.rmtree(directory)
    directory = write([row(s) for s in range(2, 21, 2)], events=[ended], age=3)
    run = read_run(directory)
    assert run.last_step == 21 and 'at epoch 3 of 4, iteration 21 of 40' in run.state.text


def test_killed_without_a_word(write):
    state = read_run(write([row(s) for s in range(2, 21, 2)])).state
    assert state.kind == 'interrupted' and 'epoch 2 of 4, iteration 20 of 40' in state.text
    assert 'nothing was logged for 2:4' in state.text and '--resume' in state.text


def test_before_the_first_line(write):
    html = page(write([], age=1))
    assert 'Nothing has been logged yet' in html and '>running<' in html


def test_warnings_in_words(write):
    said = [
        event('health', 'health_dense_std is 0.01 after 100 iterations: collapse: <b>', 'WARNING'),
        event('skipped_step', 'NaN or Inf in the loss of iteration 7', 'WARNING'),
        *(event('unreadable_image', f'{i}.jpg: no image', 'WARNING') for i in range(40)),
        event('unreadable_images', '40 of 99 images (40.40%) cannot be read'),
        event('message', 'Some of another package', 'WARNING'),
        event('checkpoint', path='a.pth'),
        event('something_new', 'Load checkpoint from a.pth'),
    ]
    html = page(write([row(2)], events=said))
    assert 'collapse: &lt;b&gt;' in html and '<b>' not in html.split('What the log says')[1][:900]
    for words in ('and skipped</h3>', '39.jpg', 'and 11 more', 'Some of another package'):
        assert (words in html) == (words != '39.jpg')  # of forty the first thirty are enough
    assert 'Load checkpoint' not in html
    assert '<span>health</span><b>1</b><span>warnings</span>' not in html  # no value was logged
    assert '<span>skipped steps</span><b>1</b>' in html


def test_a_torn_line_of_events_is_left_out(write):
    skipped = event('skipped_step', 'NaN in the loss', 'WARNING', iteration=2)
    torn = json.dumps(event('preempted', 'SIGTERM', 'WARNING', iterations=2))[:-9]
    run = read_run(write([row(2)], events=[skipped], torn=torn, age=3))
    assert [e.text for e in run.events] == ['NaN in the loss'] and run.state.kind == 'running'
    torn = '[1]\n{"kind": 3}\n' + json.dumps(dict(STARTED, time='yesterday')) + '\n"é'
    run = read_run(write([row(2)], '20260131_110000', torn=torn))
    assert run.processes == 2 and len(run.events) == 1


def test_events_with_values_that_make_no_sense(write):
    odd = [event('queue_full', iteration='soon'), event('finished', iterations=None)]
    odd.append(dict(STARTED, processes='many', epoch_length=-1))
    html = page(write([row(2, queue_fill=1.0)], events=odd))
    assert '>finished<' in html and 'full at iteration 2<' in html


def test_a_run_without_events(write):
    """As mmdense wrote them before, and as other packages do."""
    rows = [row(s, queue_fill=1.0, health_dense_std=0.5) for s in range(2, 39, 2)]
    directory = write(rows, events=None)
    html = page(directory)
    assert len(figures(html)['loss'][0]) == 19 and '32 images<' in html
    assert html.count('This run wrote no events') == 1
    assert 'warnings, skipped steps, unreadable images and the course of the run' in html
    assert 'What the log says' not in html and '<span>health</span>' not in html
    assert '>interrupted<' in html and 'iteration 38 of 40' in html
    assert read_run(directory).seconds == pytest.approx(19)
    # it says by its last checkpoint that it is finished: few lines log the last iteration
    (Path(directory) / 'epoch_4.pth').touch()
    assert '>finished<' in page(directory)
    # a later start by this mmdense
    directory = write([row(40)], '20260131_110000')
    html = page(directory)
    assert '1 of 2 starts (20260131_100000) wrote no events' in html


def test_how_many_processes_an_old_run_had_is_not_known(write):
    directory = write([row(5)], events=None)
    path = Path(directory) / '20260131_100000' / 'vis_data' / 'config.py'
    path.write_text(path.read_text() + "launcher = 'pytorch'\n")
    html = page(directory)
    assert '32 images on each process' in html and 'images/s' not in html


def test_resumed_is_said(write):
    write([row(s) for s in range(2, 31, 2)])
    resumed = dict(STARTED, iter=20, resumed=True, resumed_from='work/iter_20.pth')
    html = page(write([row(22)], '20260131_110000', events=[resumed]))
    assert 'Resumed from work/iter_20.pth after 20 iterations' in html


def test_values_that_are_not_finite(write):
    rows = [row(s) for s in (2, 4, 6)]
    rows[1]['loss'] = float('nan')
    html = page(write(rows))
    assert np.isnan(figures(html)['loss'][1]).tolist() == [False, True, False]


def test_images_are_gone(write):
    html = page(write([row(2)]))
    assert 'The images of the run are not shown: image folder none does not exist' in html


@pytest.mark.parametrize('kind', ['subprocess.check_call', 'mmdense.utils.download.download'])
def test_a_config_calls_nothing_but_transforms(write, kind):
    run = read_run(
        write([row(2)], dataset=f"type='UnlabeledDataset', pipeline=[dict(type={kind!r})]")
    )
    with pytest.raises(ValueError, match='is no data set or transform'):
        build_dataset(run)


def test_a_config_does_not_run(write, tmp_path):
    code = f"type=__import__('os').mkdir({str(tmp_path / 'ran')!r})"
    page(write([row(2)], dataset=code))
    assert not (tmp_path / 'ran').exists()


def test_views_of_the_run(write, images):
    views = "[dict(type='RandomResizedCrop', scale=32)], [dict(type='RandomResizedCrop', scale=32)]"
    pipeline = (
        f"[dict(type='LoadImage'), dict(type='MultiView', num_views=[1, 1], transforms=[{views}]),"
        " dict(type='PackInputs')]"
    )
    dataset = f"type='UnlabeledDataset', data_root={images!r}, pipeline={pipeline}"
    directory = write([row(2)], dataset=dataset)
    html = page(directory)
    assert html.count('<rect class="v') == 8 and html.count('<img class="v') == 8
    assert 'Not on this page' not in html and 'Images</dt><dd>16 in' in html
    (Path(directory) / 'epoch_1.pth').write_bytes(b'PK of a run that was killed')
    assert 'epoch_1.pth is not shown: ' in page(directory)


@pytest.mark.parametrize(
    'dataset, shown',
    [
        ("data_root='a'", '>a<'),
        ("data_root='a', data_prefix='b'", '>a/b<'),
        ("data_root='a', data_prefix=['b', 'c/d']", '>a/b, a/c/d<'),
    ],
)
def test_folders_of_the_images(write, dataset, shown):
    assert f'Images</dt><dd{shown}/dd>' in page(write([row(2)], dataset=dataset))


@pytest.mark.parametrize('device_augment', [False, True])
@each_algorithm()
def test_views_of_the_recipes(images, algorithm, device_augment):
    form = tiny_form(algorithm)
    cfg = Config.fromfile(str(form.config)).train_dataloader.to_dict()
    cfg['dataset'].update(data_root=images, data_prefix='')
    cfg['dataset']['pipeline'][form.multi_view]['device_augment'] = device_augment
    run = RunLog(Path('work'), ['20260131_100000'], config=dict(train_dataloader=cfg))
    samples = sample_views(run, build_dataset(run))
    assert [sample.name for sample in samples] == ['00.jpg', '05.jpg', '10.jpg', '15.jpg']
    for sample in samples:
        assert len(sample.views) == algorithm_class(algorithm).views.count
        shown = [Image.open(io.BytesIO(base64.b64decode(v.split(',')[1]))) for v in sample.views]
        sides = shown[0].size
        detects = form.family == 'detector'
        assert sides == (224, 224) or detects and 320 <= min(sides) <= 480
        for x, y, w, h in sample.boxes:
            assert 0 <= x <= x + w <= sample.width + 1e-6 and 0 <= y <= y + h <= 288 + 1e-6


def test_colours_of_checkpoints_are_brought_into_line():
    rng = np.random.default_rng(0)
    before = [rng.random((4, 5, 3)), rng.random((3, 3, 3))]
    shuffled = [np.stack([1 - c[..., 2], c[..., 0], 1 - c[..., 1]], axis=2) for c in before]
    for now, then in zip(_align_colours(shuffled, before), before):
        np.testing.assert_allclose(now, then)


def test_a_hundred_thousand_lines(write):
    names = [f'health_{i}' for i in range(20)]
    line = json.dumps(row(2, **dict.fromkeys(names, 0.123456789)))
    prefix = line[: line.index('"epoch"')]
    tail = ''.join(f'{prefix}"epoch": 1, "iter": {s}, "step": {s}}}\n' for s in range(1, 100001))
    said = [event('checkpoint', path=f'iter_{s}.pth') for s in range(100000)]
    directory = write([], events=said, tail=tail)
    start = time.process_time()
    html = page(directory)
    assert time.process_time() - start < 30 and len(html) < 2e6
    assert len(figures(html)['loss'][0]) <= 300


def test_thin_keeps_extremes_and_gaps():
    y = np.zeros(1000)
    y[500], y[501] = 7, -3
    y[:100] = np.nan
    x, mean, low, high = thin(np.arange(1000.0), y, 50)
    assert len(x) == 50 and (np.diff(x) == 20).all()
    assert np.nanmax(high) == 7 and np.nanmin(low) == -3
    assert np.isnan(mean[:5]).all() and np.isfinite(mean[5:]).all()
    assert mean[25] == pytest.approx(4 / 20)


def test_no_run(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'foreign' / 'photos').mkdir(parents=True)
    (tmp_path / 'foreign' / 'a.py').write_text('import os')
    (tmp_path / 'file').touch()
    for name, words in [
        ('empty', 'holds no run'),
        ('foreign', 'holds no run'),
        ('none', 'does not exist'),
        ('file', 'is no directory'),
    ]:
        with pytest.raises(InputError, match=words):
            read_run(str(tmp_path / name))


def test_a_real_run(pretrained):
    html = page(str(pretrained.parent))
    logged = [
        json.loads(line)
        for path in pretrained.parent.glob('*/vis_data/scalars.json')
        for line in path.read_text().splitlines()
    ]
    losses = [values['loss'] for values in logged]
    np.testing.assert_allclose(figures(html)['loss'][1], losses, rtol=1e-4)
    assert 'Not on this page' not in html, html[html.index('Not on this page') :][:500]
    assert '>finished<' in html
    assert 'random weights (' in html
    assert 'epoch 1 (' in html
    assert resources(html) == []
