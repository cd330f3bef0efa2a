# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The script for a GPU runs here: every part on the CPU, and its GPU code on fake tensors."""

import argparse
import copy
import importlib
import json
import os
import sys

import pytest
import torch
from tiny_algorithms import algorithms, joined_batch, tiny_form, tiny_model

EXAMPLE = tiny_form()


@pytest.fixture
def gpu(repo, monkeypatch, tmp_path):
    """Runs the script at a tiny size; returns the words it ended with, and what it wrote."""
    monkeypatch.syspath_prepend(str(repo / 'benchmarks'))
    for name in ('PYTHONPATH', 'MMDENSE_BENCH_START'):  # the script sets them
        monkeypatch.setenv(name, os.environ.get(name, ''))
        monkeypatch.delenv(name)
    script = importlib.import_module('gpu')
    path = tmp_path / 'gpu.json'

    def call(*options):
        arguments = ['gpu.py', '--tiny', *map(str, options), '--json', str(path)]
        monkeypatch.setattr(sys, 'argv', arguments)
        ended = ''
        try:
            script.main()
        except SystemExit as error:
            ended = str(error)
        return ended, json.loads(path.read_text()) if path.exists() else None

    call.script = script
    return call


def on_page(result):
    """Return the lines of the page's table."""
    writer = importlib.import_module('run')
    page = writer.document('{{ gpu }}', dict(gpu=result))
    return [line for line in page.splitlines() if line.startswith('| ')][2:]


def check_all(ended, written, printed):
    """Check that all went well, and that each row is printed and on the page."""
    assert ended == '', printed
    rows = written['rows']
    assert not [row for row in rows if 'failed' in row]
    assert len(on_page(written)) == len(rows)
    assert all(f'| {row["what"]} | ' in printed for row in rows)
    return {row['what'] for row in rows}


# what `make test` leaves to `make test-slow`: other tests run most of these scripts on a CPU
LONG = ['step-bf16', 'run', 'step-fp16', 'tests', 'input', 'batches', 'compile']


@pytest.mark.parametrize(
    'long', [pytest.param(False, id='quick'), pytest.param(True, id='long', marks=pytest.mark.slow)]
)
def test_every_part_runs_on_a_cpu(long, gpu, capfd, images):
    names = {part.name for part in gpu.script.PLAN}
    assert names > set(LONG)
    only = ['--only', *sorted(LONG if long else names - set(LONG))]
    options = ['--device', 'cpu', '--algorithms', EXAMPLE.method, '--data-root', images]
    found = check_all(*gpu(*options, *only, '--budget', 2000), capfd.readouterr().out)
    title = EXAMPLE.algorithm
    expected = {f'{title}, data loader', f'{title}, gradients in float32 against the CPU', 'LARS'}
    if long:
        expected = {title, f'{title}, a run', f'{title}, compiled', 'Tests that need a GPU'}
    assert expected <= found


@pytest.mark.slow
def test_every_algorithm_passes_its_check_on_a_cpu(gpu, capfd, images):
    """Both sides are the CPU: a step that draws other numbers would differ."""
    options = ['--device', 'cpu', '--data-root', images, '--budget', 2000, '--only', 'check']
    found = check_all(*gpu(*options), capfd.readouterr().out)
    titles = {what.split(',')[0] for what in found if 'gradients' in what}
    assert len(titles) == len(
        {tiny_form(algorithm).method for algorithm in algorithms(labelled=True)}
    )


@pytest.mark.parametrize('algorithm', algorithms())
def test_two_steps_draw_the_same(algorithm, gpu):
    parts = importlib.import_module('gpu_parts')
    model, batch = tiny_model(algorithm), joined_batch(algorithm, number=2)
    args, other = argparse.Namespace(fake=False, device='cpu'), copy.deepcopy(model)
    chances = [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    results = []
    for one in (model, other):
        with parts.same_draws(one, args):
            results.append(parts.step_results(one, batch))
    for kind, values in results[0].items():
        for name, value in values.items():
            assert torch.equal(value, results[1][kind][name]), (kind, name)
    assert chances == [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]


@pytest.mark.skipif(
    not hasattr(torch._C, '_ensureCUDADeviceGuardSet'), reason='PyTorch has no fake CUDA tensors'
)
@pytest.mark.parametrize(
    'methods, only',
    [
        ([EXAMPLE.method], ['check', 'loss', 'lars']),
        pytest.param([], [''], marks=pytest.mark.slow, id='all'),
    ],
)
def test_what_is_written_for_a_gpu_runs_on_fake_tensors(methods, only, gpu, capfd, images):
    options = ['--fake', '--data-root', images, '--budget', 2000, '--only', *only]
    options += ['--algorithms', *methods] if methods else []
    found = check_all(*gpu(*options), capfd.readouterr().out)
    assert f'{EXAMPLE.algorithm}, losses in float16' in found
    assert any('extra memory' in what for what in found)


def test_a_part_that_fails_has_a_row_and_the_others_go_on(gpu, capfd, monkeypatch, images):
    kind = gpu.script.Part
    plan = [
        kind('broken', 'no_such_part', 5),
        kind('slow', 'measure_lars', -0.6),  # three seconds
        kind('lars', 'check_lars', 5),
        kind('long', 'check_lars', 10**6),
    ]
    monkeypatch.setattr(gpu.script, 'PLAN', plan)
    monkeypatch.setitem(gpu.script.TINY, 'rounds', 10**9)
    ended, written = gpu('--device', 'cpu', '--data-root', images)
    assert ended == 'failed or missed: broken; slow; long'
    failed = {row['what']: row['failed'] for row in written['rows'] if 'failed' in row}
    assert failed.pop('long').startswith('no time: 1000000 s planned, 4')
    assert failed == dict(broken="KeyError: 'no_such_part'", slow='more than 3 s')
    assert [row['ok'] for row in written['rows'] if 'ok' in row] == [True, True]
    assert '| slow | failed: more than 3 s |  |  |  |  | ' in on_page(written)[1]
    assert '| slow | failed: more than 3 s |' in capfd.readouterr().out


def test_a_missed_check_is_an_error(gpu, capfd, monkeypatch, images):
    parts = importlib.import_module('gpu_parts')
    row = parts.check('x', 'here', '2.0', '≤ 1', False)
    rows = [dict(row, script='gpu'), dict(parts.check('y', '', '1', '1', True), script='gpu')]
    monkeypatch.setattr(gpu.script, 'run_parts', lambda *_: (rows, {}))
    ended, _ = gpu('--device', 'cpu', '--data-root', images)
    assert ended == 'failed or missed: x'
    assert '| x | 2.0 |  |  |  | ≤ 1, missed | 1 |' in capfd.readouterr().out


def test_a_wrong_value_is_noticed(gpu):
    parts = importlib.import_module('gpu_parts')
    args = argparse.Namespace(fake=False)
    exact = dict(a=torch.tensor([3.0, 4.0]))
    for wrong, ok in ((0.0, True), (1e-4, True), (0.1, False), (float('nan'), False)):
        found = dict(a=exact['a'] + wrong)
        assert parts.check_values('x', '', found, exact, args, 1e-3)['ok'] == ok
    with pytest.raises(AssertionError, match='must be'):
        parts.check_values('x', '', dict(a=torch.zeros(3)), exact, args, 1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is here')
def test_without_a_gpu_one_line_says_so(gpu):
    ended, written = gpu()
    assert written is None and '\n' not in ended
    assert ended.startswith('torch ') and ended.endswith('rehearse with --device cpu or --fake')


def test_what_is_missing_is_said_in_one_line(gpu, monkeypatch):
    monkeypatch.setitem(gpu.script.NEEDED, 'no_such_package', 'no-such-package')
    assert gpu('--device', 'cpu') == ('not installed: no-such-package', None)


def test_the_plan_fits_into_the_budget(gpu):
    kinds = [part for part in gpu.script.PLAN if part.name != 'compile']  # gets what is left
    names = sorted(
        {tiny_form(algorithm).method for algorithm in algorithms(labelled=True)}
    )  # each once
    parts = gpu.script.parts_of(kinds, names, argparse.Namespace(only=[''], fake=False))
    assert sum(part.seconds for _, part, _ in parts) <= 450  # 30 s to import, and for images


@pytest.mark.parametrize('algorithm', algorithms())
def test_declared_reads_are_those_of_the_tests(algorithm, gpu):
    methods = importlib.import_module('methods')
    method = methods.load(tiny_form(algorithm).method)
    assert getattr(method, 'READS', 0) == len(tiny_form(algorithm).reads)


def test_drawn_photographs_are_like_real_ones(gpu, tmp_path):
    gpu.script.draw_photographs(tmp_path, 2)
    first, second = (path.read_bytes() for path in sorted(tmp_path.glob('*.jpg')))
    assert first != second and 60_000 < len(first) < 300_000
