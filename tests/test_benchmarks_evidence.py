# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The study of docs/evidence.md: stopped, killed and gone on with, and its page."""

import fcntl
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

# Counts to --to in a file, a second a count; on SIGTERM it ends at once, and later goes on.
COUNT = """
import sys, time
path, to, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
if to < 0:
    sys.exit('there is no such number')
done = len(open(path).read()) if __import__('os').path.exists(path) else 0
while done < to:
    time.sleep(pause)
    open(path, 'a').write('.')
    done += 1
"""


@pytest.fixture
def evidence(repo, monkeypatch):
    """Imports one of the study's modules."""
    monkeypatch.syspath_prepend(str(repo / 'benchmarks'))
    monkeypatch.syspath_prepend(str(repo / 'benchmarks' / 'evidence'))
    return importlib.import_module


@pytest.fixture
def make(evidence, tmp_path):
    """A study of pieces that count, by their ids: (what they need, their config)."""
    pieces = evidence('pieces')

    def piece(id, needs=(), to=1, pause=0.0, **options):
        def read(folder):
            path = folder / 'count'
            done = path.is_file() and len(path.read_text()) >= abs(to)
            return dict(metrics=dict(count=to)) if done else None

        def command(folder, *products):
            assert all(product.is_file() for product in products)
            return [sys.executable, '-c', COUNT, str(folder / 'count'), str(to), str(pause)]

        options = dict(dict(needs=needs, minutes=0.01, product='count'), **options)
        return pieces.Piece(id, lambda: dict(to=to), command, read, 'counting.json', **options)

    def study(*described, **options):
        made = [piece(*one[:1], **one[1]) for one in described]
        return pieces.Study(made, tmp_path / 'work', tmp_path / 'results', **options)

    return study


FIRST, SECOND = 'pretrain/a/seed0', 'frozen/a/seed0'


def test_each_piece_is_run_once_and_leaves_a_result(make, capsys):
    study = make((FIRST, dict(to=2)), (SECOND, dict(needs=(FIRST,))))
    assert [study.state(id, study.missing()) for id in (FIRST, SECOND)] == ['pending', 'waiting']
    assert study.run(only='frozen/*') == [] and not study.results()  # it needs the other
    assert study.run() == []
    results = study.results()
    assert list(results) == [FIRST, SECOND] and not study.missing()
    first = results[FIRST]
    assert first['metrics'] == dict(count=2) and first['sessions'] == 1 and first['minutes'] >= 0
    assert first['machine']['versions']['torch'] and first['machine']['threads']
    text = study.results_dir / first['config']
    assert text.name == 'counting.json' and json.loads(text.read_text()) == dict(to=1)  # the last's

    before = study.path(FIRST).stat().st_mtime_ns
    capsys.readouterr()
    assert study.run() == [] and capsys.readouterr().out == ''
    assert study.path(FIRST).stat().st_mtime_ns == before
    assert '0 of 2 to be run' in study.table()

    # another machine has the results but not the weights, which only an unfinished piece needs
    study.product(FIRST).unlink()
    assert not study.missing()
    study.path(SECOND).unlink()
    assert study.missing() == [FIRST, SECOND] and study.run() == []


def test_it_stops_in_time_and_goes_on(make, capsys):
    described = (FIRST, dict(to=40, pause=0.1)), (SECOND, dict(needs=(FIRST,)))
    start, study = time.monotonic(), make(*described)
    assert study.run(minutes=1.6 / 60) == []
    assert study.stopped == 'the time is up'
    counted = len(study.product(FIRST).read_text())
    assert 1 <= counted < 24  # one takes at least 0.1 s
    study = make(*described)
    assert study.state(FIRST, study.missing()) == 'begun' and not study.results()
    assert study.run() == []
    first = study.results()[FIRST]
    assert len(study.product(FIRST).read_text()) == 40  # not from the beginning
    assert first['sessions'] == 2 and 4 < 60 * first['minutes'] < time.monotonic() - start + 1
    assert f'{FIRST}: goes on' in capsys.readouterr().out


def test_what_cannot_go_on_is_not_begun_too_late(make):
    study = make((FIRST, dict(minutes=5, resumable=False)), (SECOND, {}))
    assert study.run(minutes=1) == [] and list(study.results()) == [SECOND]


def test_other_settings_make_results_stale(make):
    make((FIRST, {}), (SECOND, dict(needs=(FIRST,)))).run()
    study = make((FIRST, dict(to=2)), (SECOND, dict(needs=(FIRST,))))
    missing = study.missing()
    assert [study.state(id, missing) for id in (FIRST, SECOND)] == ['stale', 'stale']
    assert study.results() == {} and set(study.results(stale=True)) == {FIRST, SECOND}
    study.run()
    assert study.results()[FIRST]['metrics'] == dict(count=2) and not study.results(stale=True)
    assert len(list((study.work_dir / FIRST).iterdir())) == 2  # runs of each


def test_a_failure_does_not_stop_the_others(make, capsys):
    study = make((FIRST, dict(to=-1)), (SECOND, dict(needs=(FIRST,))), ('frozen/b/seed0', {}))
    assert study.run() == [FIRST]
    out = capsys.readouterr().out
    assert f'{FIRST}: failed with exit code 1: there is no such number' in out
    assert list(study.results()) == ['frozen/b/seed0']
    assert study.run() == [FIRST]  # it is tried again


def test_what_another_runs_is_left_alone_and_then_taken(make):
    """Another study, or what outlived a killed one."""
    study = make((FIRST, {}), ('frozen/b/seed0', {}))
    folder = study.folder(FIRST)
    folder.mkdir(parents=True)
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert study.run(minutes=0.1) == []
    assert list(study.results()) == ['frozen/b/seed0']
    (folder / 'count').write_text('.')  # its end
    assert study.run() == [] and not (folder / 'log.txt').exists()


# ------------------------------------------------------------------------------------------- plan


@pytest.fixture
def cfg(repo):
    return Config.fromfile(str(repo / 'benchmarks' / 'evidence' / 'configs' / 'cpu.py'))


def test_the_order_has_all_pieces(evidence, cfg, tmp_path):
    plan = evidence('plan')
    cfg.seeds = [0, 1]
    study = plan.make_study(cfg, tmp_path, tmp_path, tmp_path)
    ids = plan.order(cfg, {})
    assert sorted(ids) == sorted(study.pieces) and len(set(ids)) == len(ids)
    for id in ids:  # what is needed comes before
        assert all(ids.index(need) < ids.index(id) for need in study.pieces[id].needs)
    seeds = [id[-1] for id in ids]
    assert seeds == sorted(seeds)
    kinds = list(dict.fromkeys(id.split('/')[0] for id in ids))
    assert kinds == ['start', 'pretrain', 'frozen', 'camvid10', 'camvid', 'bccd10', 'bccd']


def test_the_best_two_are_detected_first(evidence, cfg):
    plan = evidence('plan')
    scores = dict(random=9, mocov2=8, densecl=1, pixpro=5, slotcon=2, detco=4)
    results = {
        f'camvid10/{m}/seed0': dict(id=f'camvid10/{m}/seed0', metrics=dict(mIoU=score))
        for m, score in scores.items()
    }
    ids = [id.split('/')[1] for id in plan.order(cfg, results) if id.startswith('bccd10/')]
    assert ids[:4] == ['random', 'mocov2', 'pixpro', 'detco']
    assert [id for id in ids if '-' not in id][4:] == ['densecl', 'slotcon']


def test_lists_are_every_tenth_image(evidence):
    names = [f'{i:03}' for i in range(25)]
    assert evidence('plan').every(names[::-1], 10, 0) == ['000', '010', '020']
    assert evidence('plan').every(names, 10, 1) == ['001', '011', '021']


@pytest.fixture
def data(tmp_path, images):
    """Data as the study wants them, as far as the settings of pretraining need them."""
    os.makedirs(tmp_path / 'data' / 'camvid' / 'img_dir')
    os.symlink(images, tmp_path / 'data' / 'unlabeled')
    os.symlink(images, tmp_path / 'data' / 'camvid' / 'img_dir' / 'train')
    return tmp_path / 'data'


def test_small_data_is_by_the_rules_and_continued_where_it_says_so(evidence, cfg, data, tmp_path):
    plan = evidence('plan')
    names = data / 'bccd' / 'ImageSets' / 'Main' / 'train.txt'
    names.parent.mkdir(parents=True)
    names.write_text(''.join(f'Blood_{i}\n' for i in range(200)))
    study = plan.make_study(cfg, tmp_path / 'w', tmp_path / 'r', data)
    piece = study.pieces['pretrain/densecl-bccd-continued/seed0']
    assert piece.needs == ('pretrain/densecl/seed0',)
    piece.command(tmp_path / 'folder', tmp_path / 'densecl' / 'backbone.pth')
    made = Config.fromfile(tmp_path / 'folder' / 'config.py')
    assert made.model.pretrained == str(tmp_path / 'densecl' / 'backbone.pth')
    assert made.train_cfg.max_epochs == 100 and made.model.queue_len == 128
    dataset = made.train_dataloader.dataset
    lines = Path(dataset.ann_file).read_text().splitlines()
    assert lines[:2] == ['Blood_0.jpg', 'Blood_1.jpg'] and len(lines) == 200
    assert dataset.data_prefix == 'bccd/JPEGImages' and 'custom_hooks' not in made
    scratch = study.pieces['pretrain/densecl-bccd/seed0']
    assert not scratch.needs and scratch.config()['model'].get('pretrained') is None
    assert scratch.config()['custom_hooks'][0]['start_iters'] == 150
    assert study.pieces['bccd10/densecl-bccd/seed0'].needs == (scratch.id,)


@pytest.mark.parametrize('method', ['mocov2', 'densecl'])
def test_settings_are_those_of_the_rules_and_the_key_is_of_no_machine(
    method, evidence, cfg, data, tmp_path
):
    plan = evidence('plan')
    cfg.pretrain.epochs = 3
    piece = f'pretrain/{method}/seed0'

    def key(**options):
        cfg.merge_from_dict(options)
        return plan.make_study(cfg, tmp_path / 'w', tmp_path / 'r', data).key(piece)

    made = plan._Plan(cfg, tmp_path, data).pretraining(method, 7, str(data))
    assert made.model.backbone.depth == 18 and made.model.neck.in_channels == 512
    assert made.train_cfg.max_epochs == 3 and made.randomness.seed == 7
    assert made.train_dataloader.batch_size == 16 * 2  # of 32 images
    assert made.optim_wrapper.optimizer.lr == pytest.approx(0.3 * 32 / 256)
    assert made.model.queue_len == 32
    view = made.train_dataloader.dataset.pipeline[1].transforms[0][0]
    assert view.scale == 96
    first = key()
    moved = data.rename(tmp_path / 'moved')
    assert plan.make_study(cfg, tmp_path, tmp_path, moved).key(piece) == first
    moved.rename(data)
    assert key(**{'pretrain.epochs': 4}) != first


@pytest.mark.parametrize('method', ['mocov2', 'pixpro'])
def test_on_a_gpu_settings_are_those_for_gpus(method, evidence, repo, data, tmp_path):
    plan = evidence('plan')
    cfg = Config.fromfile(str(repo / 'benchmarks' / 'evidence' / 'configs' / 'gpu.py'))
    made = plan._Plan(cfg, tmp_path, data).pretraining(method)
    assert made.optim_wrapper.type == 'AmpOptimWrapper'
    assert made.optim_wrapper.dtype == 'bfloat16'
    assert made.train_dataloader.dataset.pipeline[1].transforms[0][0].scale == 192
    assert made.train_cfg.max_epochs == 100 and made.default_hooks.evaluation.interval == 20
    # tasks are the same: rows of both sizes can be compared
    cpu = Config.fromfile(str(repo / 'benchmarks' / 'evidence' / 'configs' / 'cpu.py'))
    assert cfg.tasks == cpu.tasks and cfg.frozen == cpu.frozen


# ------------------------------------------------------------------------------------------- page


MACHINE = dict(cpu='Abacus', cores=1, gpu=None, threads=1, versions=dict(torch='9'))


def results_of(**figures):
    """camvid10's mIoU of methods, one a seed."""
    return {
        (id := f'camvid10/{method}/seed{seed}'): dict(
            id=id, metrics=dict(mIoU=value), machine=MACHINE, config='configs/camvid10.json'
        )
        for method, values in figures.items()
        for seed, value in enumerate(values)
    }


def test_the_table_says_what_is_not_run(evidence, cfg, tmp_path):
    page = evidence('page')
    found = results_of(random=[10.0], mocov2=[20.0], densecl=[19.0])
    text = page.document('{{ results }}\n{{ spread }}\n{{ missing }}', cfg, found, tmp_path)
    heads, _, *rows = [line.strip('| ').split(' | ') for line in text.splitlines()]
    assert heads[0] == 'camvid mIoU, 10 % of labels'  # the first is empty
    assert rows[0][:3] == ['random weights', '10.0', 'not run']
    assert rows[2][:2] == ['DenseCL', '19.0']
    after = next(row for row in rows if row[0] == 'DenseCL after 0 iterations')
    assert after[1:3] == ['not run', '–']  # all labels are not planned
    assert 'One seed: the spread is not known.' in text
    assert 'With seed 0 3 of 65 pieces have been run, these camvid10: random weights,' in text


def test_of_a_seed_that_is_hardly_begun_it_says_what_is_run(evidence, cfg, tmp_path):
    page = evidence('page')
    cfg.seeds = [0, 1]
    *most, last = (id for id in page.order(cfg, {}) if id.endswith('seed0'))
    ids = [*most, 'start/random/seed1', 'camvid10/random/seed1']
    found = {id: dict(id=id, metrics={}, machine=MACHINE, images_seen=1) for id in ids}
    text = page.document('{{ missing }}', cfg, found, tmp_path)
    left = f'{last.split("/")[0]}: {page.name_of(last.split("/")[1])}'
    assert f'With seed 0 64 of 65 pieces have been run, still to be run {left}.' in text
    assert 'With seed 1 2 of 65 pieces have been run, these camvid10: random weights.' in text


def test_small_data_has_one_row_for_all_tasks(evidence, cfg, tmp_path):
    found = {
        'random': [10.0],
        'densecl-0it': [11.0],
        'densecl': [19.0],
        'densecl-camvid': [12.0],
        'densecl-camvid-continued': [20.0],
    }
    text = evidence('page').document('{{ small }}', cfg, results_of(**found), tmp_path)
    heads, _, *rows = [line.strip('| ').split(' | ') for line in text.splitlines()]
    assert heads[0] == 'camvid mIoU, 10 % of labels'
    names = [
        'random',
        'DenseCL after 0',
        'pretrained on the task',
        'pretrained on all',
        'that, continued',
    ]
    assert all(row[0].startswith(name) for row, name in zip(rows, names))
    assert [row[1] for row in rows] == ['10.0', '11.0', '12.0', '19.0', '20.0']
    assert [row[2:4] for row in rows] == [['not run'] * 2, ['–'] * 2, *([['not run'] * 2] * 3)]


LOGS = {
    'ap': """
11/22 20:10 - mmengine - INFO -
--------iou_thr: 0.5--------
| class     | gts | dets | recall | ap    |
+-----------+-----+------+--------+-------+
| RBC       | 805 | 1581 | 0.889  | 0.700 |
| Platelets | 69  | 116  | 0.783  | 0.500 |
+-----------+-----+------+--------+-------+
| mAP       |     |      |        | 0.600 |
| class     | gts | dets | recall | ap    |
| RBC       | 805 | 1581 | 0.889  | 0.300 |
| Platelets | 69  | 116  | 0.783  | 0.000 |
| mAP       |     |      |        | 0.150 |
""",
    'IoU': """
11/22 20:10 - mmengine - INFO - per class results:
|   Class    |  IoU  |  Acc  |
+------------+-------+-------+
|    RBC     |  0.5  |  85.2 |
| Platelets  | 0.25  |  nan  |
""",
}


@pytest.mark.parametrize('column', LOGS)
def test_what_each_class_has_is_read_from_the_tables_of_testing(evidence, column):
    assert evidence('plan').by_class(LOGS[column], column) == dict(RBC=0.5, Platelets=0.25)


def test_each_class_has_a_column(evidence, cfg, tmp_path):
    cfg.seeds = [0, 1]
    found = results_of(random=[10.0], densecl=[19.0, 21.0])
    for result in found.values():
        result['classes'] = dict(sky=result['metrics']['mIoU'] * 2, road=0.0)
    text = evidence('page').document('{{ classes }}', cfg, found, tmp_path)
    heads, _, *rows = [line.strip('| ').split(' | ') for line in text.splitlines()]
    assert heads == ['camvid IoU, 10 % of labels', 'sky', 'road']
    assert rows == [['random weights', '20.0', '0.0'], ['DenseCL', '40.0 ± 2.0', '0.0 ± 0.0']]


def test_probes_are_beside_what_they_are_compared_with(evidence, cfg, tmp_path):
    found = results_of(random=[10.0], pixpro=[19.0])
    found['camvid10/pixpro-blur/seed0'] = dict(metrics=dict(mIoU=21.0))
    for id, result in found.items():
        path = tmp_path / f'{id}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    heads, _, *rows = [
        line.strip('| ').split(' | ')
        for line in evidence('page').document('{{ probes }}', cfg, {}, tmp_path).splitlines()
    ]
    assert heads == ['camvid mIoU, 10 % of labels']  # of what has been run alone
    assert rows == [
        ['random weights', '10.0'],
        ['PixPro', '19.0'],
        ['PixPro, blur in proportion to the views', '21.0'],
    ]


def test_a_task_once_more_has_other_random_numbers_alone(evidence, repo, data, tmp_path):
    cfg = Config.fromfile(str(repo / 'benchmarks' / 'evidence' / 'configs' / 'probes.py'))
    plan = evidence('plan')._Plan(cfg, tmp_path, data)
    once, again = (plan.transferring(name, False) for name in ('camvid', 'camvid-again'))
    assert (once.pop('randomness.seed'), again.pop('randomness.seed')) == (0, 1) and once == again


def test_a_twin_by_running_statistics(evidence):
    from mmpretrain.models import ResNet

    torch.manual_seed(0)
    online, twin = ResNet(depth=18), ResNet(depth=18)
    twin.load_state_dict(online.state_dict())
    x = torch.randn(4, 3, 64, 64)
    for _ in range(3):
        batch = online(x)[-1]  # gathers statistics
    evidence('twin_statistics').borrow_statistics(twin, online)
    online.eval()
    for _ in range(2):  # and adds nothing to them
        assert torch.equal(twin(x)[-1], online(x)[-1])
    assert not torch.allclose(twin(x)[-1], batch)


def test_differences_are_of_the_same_seeds(evidence, cfg, tmp_path):
    page = evidence('page')
    cfg.seeds = [0, 1]
    found = results_of(random=[10, 12], mocov2=[20, 21], densecl=[19, 22], detco=[5, 6])
    text = page.document('{{ results }}\n{{ expectations }}', cfg, found, tmp_path)
    assert '| DenseCL | 20.5 ± 1.5 | not run |' in text
    densecl = next(line for line in text.splitlines() if line.startswith('| DenseCL | +'))
    assert densecl.startswith('| DenseCL | +9.5 ± 0.5 | not run |') and '| +0.0 ± 1.0 |' in densecl
    # over random 1 of 2; over MoCo v2 0 of 1, for nothing was expected of DetCo there
    assert 'Of 3 differences that have been run and were expected above 0, 1 are.' in text

    # over what each began with
    found.update(results_of(**{'densecl-0it': [18, 20]}))
    rows = page.document('{{ expectations }}', cfg, found, tmp_path).splitlines()
    assert rows[0].endswith('| camvid mIoU, 10 %, over its own after 0 iterations |')
    assert next(r for r in rows if r.startswith('| DenseCL ')).endswith('| +1.5 ± 0.5 |')
    moco = next(r for r in rows if r.startswith('| MoCo v2 '))
    assert moco.startswith('| MoCo v2 | +9.5 ± 0.5 |') and moco.count(' – |') == 2
    assert moco.endswith('| not run |')

    # one of random weights that has another seed than the one of DenseCL: nothing to compare
    only = [f'camvid10/{id}' for id in ('random/seed0', 'densecl/seed1')]
    text = page.document('{{ expectations }}', cfg, {id: found[id] for id in only}, tmp_path)
    assert 'None of them has been run.' in text


def test_the_committed_page_is_that_of_the_results(repo, evidence, cfg):
    page = evidence('page')
    folder = repo / 'benchmarks' / 'evidence'
    cfg.seeds = page.seeds(cfg, folder / 'results')
    template = (folder / 'page.md').read_text(encoding='utf-8')
    found = page.read_results(cfg, folder / 'results')
    written = page.document(template, cfg, found, folder / 'results')
    assert page.DOCUMENT.read_text(encoding='utf-8') == written


def test_blur_is_that_of_the_results(evidence, cfg, data, tmp_path):
    """A rule that is newer than the results is left out, and no other."""
    plan = evidence('plan')
    old = plan._Plan(cfg, tmp_path, data).pretraining('densecl')
    cfg.pretrain.without = []
    new = plan._Plan(cfg, tmp_path, data).pretraining('densecl')
    blur = [made.train_dataloader.dataset.pipeline[1].transforms[0][3] for made in (old, new)]
    assert [b.sigma for b in blur] == [(0.1, 2.0), (0.0429, 0.857)]
    blur[1].sigma = blur[0].sigma
    assert old.to_dict() == new.to_dict()


def test_committed_results_are_of_the_committed_configs(repo, evidence):
    digest, results = evidence('pieces').digest, repo / 'benchmarks' / 'evidence' / 'results'
    for path in results.glob('*/*/*.json'):
        result = json.loads(path.read_text(encoding='utf-8'))
        config = Config.fromfile(str(results / result['config']), import_custom_modules=False)
        assert digest(config.to_dict()) == result['config_digest'], path
        assert all(len(curve) <= 200 for curve in result.get('curves', {}).values())


# ------------------------------------------------------------------------------------- full scale


def test_what_a_recipe_takes(repo, evidence):
    full_scale = evidence('full_scale')
    cfg = Config.fromfile(str(repo / 'configs' / 'densecl_r50_coco.py'))
    row = full_scale._row('densecl_resnet50_8xb32', 'COCO', 118_287, cfg)
    rate = full_scale.measured('densecl_resnet50_8xb32')
    assert 0.1 < rate < 100
    assert full_scale.measured('densecl_resnet101_8xb32') is None
    assert row['steps'] == 800 * 462 and row['images_seen'] == 800 * 462 * 256
    # 100 GFLOP an image: 53 ms of 60 TFLOP/s for a GPU's 32
    cost = full_scale._cost(cfg, 118_287, 100e9, 50e6, 86e6)
    seconds = 800 * 462 * 32 * 100e9 / 60e12 / 0.9
    assert cost['days'] == pytest.approx(seconds / 86400, rel=1e-3)
    assert cost['flops'] == pytest.approx(256 * 100e9)
    assert cost['memory'] == pytest.approx(16 * 50e6 + 32 * 86e6 * 0.7)
    # no step is shorter than its operations take to start
    few = full_scale._cost(cfg, 118_287, 1e9, 50e6, 86e6)
    assert few['days'] == pytest.approx(800 * 462 * 0.03 / 0.9 / 86400, rel=1e-3)

    found = dict(rows=[dict(row, **cost)])
    heads, _, line = full_scale.markdown(found).splitlines()
    cells = dict(zip(heads.split(' | '), line.split(' | ')))
    assert cells['images seen, millions'] == '95' and cells['steps'] == '369,600'
    assert cells['TFLOP a step'] == '25.6' and cells['days on 8 GPUs, at best'] == '0.25'
    assert cells['EFLOP in all'] == '9.5'
    # that of benchmarks/results as they are now
    assert cells['measured images/s, two cores'] == f'{rate:.3g}'


@pytest.mark.slow
def test_operations_are_counted(repo, evidence):
    cfg = Config.fromfile(str(repo / 'configs' / 'densecl_r50_coco.py'))
    flops, parameters, kept = evidence('full_scale').count_operations(cfg)
    # a ResNet-50 has 4.1 G multiplications at 224 px: forward, twin, and twice that backward; a
    # tenth more for heads and the queues
    assert 4 * 2 * 4.1e9 < flops < 4 * 2 * 4.1e9 * 1.15
    assert parameters == pytest.approx(32.6e6, rel=0.02) and kept == pytest.approx(86e6, rel=0.05)


# ------------------------------------------------------------------------------------ end to end

TINY = """
_base_ = '{repo}/benchmarks/evidence/configs/cpu.py'
methods = ['mocov2', 'densecl']
pretrain = dict(
    images=['camvid/img_dir/val'], size=64, batch_size=4, epochs=2, workers=0,
    evaluation=dict(interval=1, max_images=2),
)
frozen = dict(options={{'max_images': 3, 'size': 96}})
tasks = dict(
    camvid=dict(controls=False, options={{
        'model.data_preprocessor.size': (96, 128), 'train_cfg.max_iters': 3,
        'train_dataloader.dataset.pipeline.3.crop_size': (96, 128),
        'param_scheduler.0.end': 3, 'test_dataloader.dataset.indices': 2,
        'train_dataloader.batch_size': 2, 'default_hooks.logger.interval': 1,
    }}),
    bccd=dict(options={{
        'train_dataloader.dataset.pipeline.2.scales': [(160, 120)],
        'test_dataloader.dataset.pipeline.1.scale': (160, 120), 'train_cfg.max_iters': 3,
        'test_dataloader.dataset.indices': 2, 'train_dataloader.batch_size': 2,
        'default_hooks.logger.interval': 1,
    }}),
)
small = {{
    '_delete_': True,
    'densecl-bccd-continued': dict(
        method='densecl', images=['bccd/JPEGImages'], names='bccd/ImageSets/Main/train.txt',
        epochs=1, evaluation=None, task='bccd', start='densecl',
    ),
}}
"""


@pytest.mark.slow
def test_the_whole_study(repo, evidence, data_root, tmp_path, require, run):
    require('mmseg')
    require('mmcv._ext')
    config, results = tmp_path / 'tiny.py', tmp_path / 'results'
    config.write_text(TINY.format(repo=repo))
    command = [
        *(sys.executable, 'benchmarks/evidence/study.py', '--config', config),
        *('--data-root', data_root, '--work-dir', tmp_path / 'work', '--results', results),
    ]

    # stopped in the middle of an epoch, as by a scheduler
    process = subprocess.Popen(
        [*map(str, command), '--only', 'pretrain/densecl/*'],
        cwd=repo,
        env=dict(os.environ, PYTHONPATH=str(repo)),
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if list(tmp_path.rglob('scalars.json')) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and 'stopped: SIGTERM' in out, out
    assert list(tmp_path.rglob('iter_*.pth')) and not list(results.glob('pretrain/*'))

    for pattern in ('start/*', 'pretrain/*', 'frozen/*', 'camvid10/*', 'bccd/densecl/*'):
        done = run(*command, '--only', pattern)
        assert done.returncode == 0, done.stdout
    page, plan = evidence('page'), evidence('plan')
    cfg = Config.fromfile(str(config))
    study = plan.make_study(cfg, tmp_path / 'work', results, data_root)
    found = study.results()
    assert len(found) == 3 + 3 + 5 + 3 + 1
    assert len(study.missing()) == len(study.pieces) - 15
    trained = found['pretrain/densecl/seed0']
    assert trained['sessions'] == 2 and trained['images_seen'] == 2 * 100
    steps = [step for step, _ in trained['curves']['loss']]
    assert steps == sorted(set(steps)) and steps[-1] == 50
    names = (results / 'lists' / 'seed0' / 'camvid10.txt').read_text().split()
    assert len(names) == 37
    for id, keys in (('camvid10/random', {'mIoU'}), ('bccd/densecl', {'AP', 'AP50'})):
        assert set(found[f'{id}/seed0']['metrics']) == keys

    # the documentation's is of the committed results alone
    assert page.write(study, cfg, results, data_root) == results / 'evidence.md'
    text = (results / 'evidence.md').read_text()
    assert '15 of ' in text and '{{' not in text and '](images/evidence/curves.svg)' in text
    folder = results / 'images' / 'evidence'
    assert sum(path.stat().st_size for path in folder.rglob('*.*')) < 300_000
    # weights are not kept, their maps are: later pages have the same picture
    before = (folder / 'features.jpg').read_bytes()
    study.product('pretrain/densecl/seed0').unlink()
    page.write(study, cfg, results, data_root)
    assert (folder / 'features.jpg').read_bytes() == before
    # unless they are of other settings
    column = folder / 'features' / 'densecl.png'
    shutil.copy(page.DOCUMENT.parent / 'images' / 'evidence' / 'features' / 'densecl.png', column)
    page.write(study, cfg, results, data_root)
    assert (folder / 'features.jpg').read_bytes() != before
    for path in results.glob('*/*/*.json'):
        result = json.loads(path.read_text())
        again = Config.fromfile(str(results / result['config'])).to_dict()
        assert evidence('pieces').digest(again) == result['config_digest'], path
