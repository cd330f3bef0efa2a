# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The benchmarks run, what they compare is equal, and the page is made of their results."""

import importlib
import json
import sys
from pathlib import Path

import cv2
import pytest
import torch
from tiny_algorithms import each_method, tiny_form

EXAMPLE = tiny_form()
METHODS = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / 'benchmarks' / 'methods').glob('*.py')
    if path.stem != '__init__'
)
TINY = ['--depth', '18', '--size', '64', '--batch-size', '2', '--queue-len', '64']
# so few prototypes that both views have some slots
FEW = ['--num-prototypes', '4']


@pytest.fixture
def bench(repo, monkeypatch, tmp_path):
    """Runs a script small, once; its rows by what they compare."""
    monkeypatch.syspath_prepend(str(repo / 'benchmarks'))

    def call(script, *options):
        path = tmp_path / 'result.json'
        arguments = [script, *options, '--rounds', '1', '--json', str(path)]
        monkeypatch.setattr(sys, 'argv', arguments)
        importlib.import_module(script).main()
        written = json.loads(path.read_text())
        assert written['machine']['versions']['torch'] == torch.__version__.split('+')[0]
        timed = [row for row in written['rows'] if row['unit'] != 'MiB']  # 0 where little is needed
        assert all(row['ours'][0] > 0 and row['theirs'][0] > 0 for row in timed)
        return {(row['what'], row['peer']): row for row in written['rows']}

    threads = cv2.getNumThreads(), torch.get_num_threads()
    yield call
    cv2.setNumThreads(threads[0])
    torch.set_num_threads(threads[1])


@pytest.mark.parametrize('algorithm', METHODS)
def test_losses_are_equal(algorithm, bench):
    # the script raises where one is not that of the formula
    rows = bench('loss', algorithm, *TINY, *FEW)
    written = [what for what, peer in rows if peer == 'written out']
    memory = [what for what in written if 'extra memory' in what]
    assert len(written) == 2 * len(memory) > 0  # every loss, its time and its memory


def test_an_unequal_loss_is_an_error(bench, monkeypatch):
    bench('loss', EXAMPLE.method, *TINY)
    method = sys.modules[f'methods.{EXAMPLE.method}']
    monkeypatch.setattr(method, 'info_nce_written_out', lambda q, k, n: (q * k).sum())
    with pytest.raises(AssertionError, match='written out'):
        bench('loss', EXAMPLE.method, *TINY)


@each_method(METHODS, 'algorithm')
def test_steps(algorithm, bench):
    rows = bench('step', algorithm, *TINY, *FEW, '--patch-size', '32', '--clock', 'cpu')
    title, method = sys.modules['models'].title(algorithm), sys.modules[f'methods.{algorithm}']
    peers = [peer for peer in method.PEERS if peer.startswith('mmpretrain')]
    assert {(title, peer) for peer in ('floor', 'bare backbone', *peers)} <= rows.keys()


def test_steps_of_an_optimizer(bench):
    rows = bench('step', 'lars', *TINY, *FEW, '--clock', 'cpu')
    assert ('LARS', 'mmpretrain LARS') in rows


@pytest.mark.slow
@pytest.mark.parametrize(
    'way, names', [('compile', ('torch.compile', 'without')), ('bfloat16', ('bfloat16', 'float32'))]
)
def test_steps_in_another_way(bench, way, names):
    rows = bench('step', way, '--algorithms', EXAMPLE.method, *TINY)
    assert list(rows) == [(f'{EXAMPLE.algorithm}, {names[0]}', names[1])]


def test_a_pipeline_is_that_of_the_config(bench, images):
    rows = bench('input', 'byol', '--data-root', images, '--images', '2', '--device-augment')
    assert ('BYOL views', 'mmpretrain') in rows
    assert ("BYOL views, device's part", 'torchvision v2') in rows


def test_no_images(bench, tmp_path):
    with pytest.raises(SystemExit, match='--data-root'):
        bench('input', 'byol', '--data-root', str(tmp_path))


def test_runs(bench, images):
    options = ['--workers', '1', '--warmup', '1', '--iterations', '1', '--data-root', images]
    rows = bench('end_to_end', *TINY, *options, '--clock', 'cpu')
    assert {peer for _, peer in rows} == {'mmpretrain', 'the same from device memory'}


def test_start_up(bench, images):
    rows = bench('end_to_end', *TINY, '--start-up', '--data-root', images)
    assert {peer for _, peer in rows} == {'mmpretrain', 'PyTorch alone'}


def test_batches_and_processes(bench):
    rows = bench('scale', 'batches', *TINY, '--batch-sizes', '2', '4')
    assert {row['unit'] for row in rows.values()} == {'images/s', 'MiB'} and len(rows) == 4
    rows = bench('scale', 'processes', *TINY, '--processes', '2')
    name = EXAMPLE.algorithm
    assert (f'{name}, 2 processes', f'mmpretrain {name}') in rows


@pytest.fixture
def writer(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / 'benchmarks'))
    return importlib.import_module('run')


MACHINE = dict(cpu='Abacus', cores=1, gpu=None, versions=dict(torch='9'))
REAL = 'R50, batch 16, 224 px, K = 65536, cpu, 2 threads'


def result(**row):
    default = dict(
        what=EXAMPLE.algorithm,
        setting=REAL,
        unit='s',
        ours=[5.0, 4.0, 6.0],
        peer='floor',
        theirs=[4.0, 4.0, 4.0],
        rounds=3,
    )
    rows = [dict(default, **row)]
    return {f'step-{EXAMPLE.method}': dict(date='2001-02-03', machine=MACHINE, rows=rows)}


def test_the_page_has_tables_and_machines(writer):
    page = writer.document(
        '# Steps\n\n{{ step }}\n{{ machines }}\n', result(ratio=[1.01, 1.0, 1.5])
    )
    ours = f'| {EXAMPLE.algorithm} | 5.00 [4.00 – 6.00] s | floor | 4.00 s |'
    assert f'{ours} 1.010 [1.000 – 1.500] | ≤ 1.02, met | 1 |\n' in page
    assert f'\n1. {REAL}; 3 rounds; 2001-02-03, machine A\n' in page
    assert '\n- A: Abacus, 1 cores, no GPU; torch 9\n' in page
    assert 'Missed' not in page


def test_a_missed_target_has_its_reason(writer):
    page = writer.document('{{ step }}', result(ratio=[1.03, 1.0, 1.5]))
    assert '≤ 1.02, missed' in page
    assert f'Missed:\n\n- {EXAMPLE.algorithm}, over floor: the floor is' in page


def test_a_small_step_has_no_target(writer):
    page = writer.document('{{ step }}', result(ratio=[1.3, 1.0, 1.5], setting='R18, batch 16'))
    assert '| 1.300 [1.000 – 1.500] |  | 1 |' in page


def test_a_table_that_a_script_prints(writer):
    results = {'storage': dict(date='2001-02-03', machine=MACHINE, table='| a | b |')}
    assert writer.document('{{ storage }}', results) == '| a | b |\n\n2001-02-03, machine A.'


def test_the_page_begins_with_what_a_user_gains(repo, writer):
    page = (repo / 'docs' / 'benchmarks.md').read_text(encoding='utf-8')
    table = page[: page.index('```')]
    found = list(sys.modules['gains'].gains(writer.read_results()))
    assert len(found) == 10 == table.count(', machine ')
    for gain, _, row in found:  # what is no gain is below
        assert f'| {gain.words} | ' in table and sys.modules['gains'].factor(row) > 1


def test_a_gain_is_taken_from_its_row(writer):
    what = f'{EXAMPLE.algorithm}, a run'
    run = dict(what=what, peer='mmpretrain', unit='images/s', ratio=[2.5, 2.4, 2.6])
    run.update(ours=[30.0, 20.0, 40.0], theirs=[12.0, 10.0, 14.0])
    lars = dict(what='LARS', peer='mmpretrain LARS', unit='ms', ratio=[0.5] * 3)
    lars.update(ours=[3.0] * 3, theirs=[6.0] * 3)
    rows = [run, lars]
    on_a_gpu = dict(date='2001-02-03', machine=MACHINE, rows=rows[:1])
    on_a_cpu = dict(date='2001-02-02', machine=dict(MACHINE, cores=2), rows=rows)
    page = writer.document('{{ gains }}', dict(end_to_end=on_a_cpu, gpu=on_a_gpu))
    (run,) = [line for line in page.splitlines() if ': a run' in line]
    assert run.endswith(
        '| 30.0 images/s | mmpretrain | 12.0 images/s | 2.5 times as fast | 2001-02-03, machine A |'
    )
    page = writer.document('{{ gains }}', {'step-lars': on_a_cpu})
    assert '| 3.0 ms | mmpretrain | 6.0 ms | 2 times as fast | 2001-02-02, machine A |' in page


def test_the_committed_page_is_that_of_the_results(repo, writer):
    template = (repo / 'benchmarks' / 'page.md').read_text(encoding='utf-8')
    written = (repo / 'docs' / 'benchmarks.md').read_text(encoding='utf-8')
    assert written == writer.document(template, writer.read_results())
