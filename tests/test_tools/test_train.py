# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config
from tiny_algorithms import algorithms_of, each_algorithm, one_a_family, tiny_form

from mmdense.checkpoints import read_checkpoint
from mmdense.engine import training


def test_trains_exports_and_explains_itself(run, run_forked, tiny):
    done = run(sys.executable, 'tools/train.py', *tiny())
    assert done.returncode == 0, done.stdout
    # chance level and queue fill, in words and in every line of the log
    assert 'the loss rises toward chance level, ln(1 + 64) = 4.17' in done.stdout
    assert 'The key queue is 0% full' in done.stdout
    lines = [line for line in done.stdout.splitlines() if 'Epoch(train)' in line]
    assert len(lines) == 8  # sixteen images, batch of four, two epochs
    for i, line in enumerate(lines):
        value = dict(re.findall(r'(\w+): ([-\d.e+]+)', line))
        assert float(value['queue_fill']) == min(1, (i + 1) * 4 / 64)
        assert abs(float(value['chance']) - math.log(65)) < 1e-3
        # both parts, weighted: their sum is the loss
        parts = float(value['loss_single']) + float(value['loss_dense'])
        assert abs(float(value['loss']) - parts) < 1e-3

    checkpoint = read_checkpoint(str(tiny.work_dir / 'epoch_2.pth'))
    about = checkpoint['meta']['mmdense']
    assert about['product'] == 'backbone' and about['algorithm'] == tiny_form().algorithm
    exported = torch.load(tiny.work_dir / 'backbone.pth', weights_only=True)['state_dict']
    for key, value in exported.items():
        assert torch.equal(value, checkpoint['state_dict'][f'backbone.{key}'])

    out = tiny.work_dir / 'again.pth'
    done = run_forked('tools/convert_checkpoint.py', tiny.work_dir / 'epoch_2.pth', out)
    assert done.returncode == 0 and f'{len(exported)} tensors' in done.stdout, done.stdout
    assert torch.load(out, weights_only=True)['state_dict'].keys() == exported.keys()


def test_the_workers_of_a_run_end_quietly(run, tiny):
    workers = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']
    done = run(sys.executable, 'tools/train.py', *tiny(), *workers)
    assert done.returncode == 0, done.stdout
    assert 'Saving checkpoint at 2 epochs' in done.stdout
    for word in ('Traceback', 'Exception', 'killed'):  # at the exit of Python, by a worker's end
        assert word not in done.stdout, done.stdout


@each_algorithm(quick=one_a_family())
def test_every_algorithm_trains(run_here, tiny, algorithm):
    """All losses are in the log by name, queues fill, and the product is exported."""
    form = tiny_form(algorithm)
    code, printed = run_here('train.py', *tiny(algorithm=algorithm))
    assert code == 0, printed.err
    lines = _values(next(tiny.work_dir.glob('*/*.log')).read_text())
    assert len(lines) == 8
    for i, line in enumerate(lines):
        parts = {name for name in line if name.startswith('loss_')} or {'loss'}
        assert parts == set(form.losses)
        assert abs(line['loss'] - sum(line[name] for name in form.losses)) < 1e-2
        if 'queue_fill' in line:
            assert line['queue_fill'] == min(1, (i + 1) * 4 / 64)
    checkpoint = read_checkpoint(str(tiny.work_dir / 'epoch_2.pth'))
    assert checkpoint['meta']['mmdense']['product'] == form.product
    exported = torch.load(tiny.work_dir / 'backbone.pth', weights_only=True)['state_dict']
    for key, value in exported.items():
        assert torch.equal(value, checkpoint['state_dict'][f'{form.product}.{key}']), key


def warmup_rates(algorithm, images):
    """Return the first twelve learning rates of a recipe, four an epoch, for so many images in a
    step: they rise in a straight line by iteration, times a cosine by epoch where there is one."""
    recipe = Config.fromfile(str(tiny_form(algorithm).config))
    first, *falls = recipe.param_scheduler
    lr = recipe.optim_wrapper.optimizer.lr * images / recipe.auto_scale_lr.base_batch_size
    start = first.start_factor
    steps = 4 * (first.get('warmup') or first.end) - bool(first.get('reach_early'))
    rates = [lr * (start + (1 - start) * t / steps) for t in range(12)]
    if falls:
        rates = [r * (1 + math.cos(math.pi * (t // 4) / 3)) / 2 for t, r in enumerate(rates)]
    return [pytest.approx(rate, rel=1e-3, abs=1e-9) for rate in rates]


@pytest.mark.parametrize(
    'algorithm',
    [
        *algorithms_of('teacher'),
        *(pytest.param(name, marks=pytest.mark.slow) for name in algorithms_of('momentum')),
    ],
)
def test_schedules_by_iteration_train_and_resume(run_forked, tiny, algorithm):
    arguments = tiny('train_cfg.max_epochs=3', flags=['--auto-scale-lr'], algorithm=algorithm)
    done = run_forked('tools/train.py', *arguments)
    assert done.returncode == 0, done.stdout
    lines = _values(done.stdout)
    assert len(lines) == 12
    for line in lines:
        assert abs(line['loss'] - sum(line[name] for name in tiny_form(algorithm).losses)) < 2e-3
        assert math.isfinite(line['loss'])
    rates = [line['lr'] for line in lines]
    assert rates == warmup_rates(algorithm, 4)

    checkpoint = read_checkpoint(str(tiny.work_dir / 'epoch_3.pth'))
    state = checkpoint['state_dict']
    assert int(state['encoder_k.steps']) == 12
    product = checkpoint['meta']['mmdense']['product']
    assert product == tiny_form(algorithm).product
    exported = torch.load(tiny.work_dir / 'backbone.pth', weights_only=True)['state_dict']
    for key, value in exported.items():
        assert torch.equal(value, state[f'{product}.{key}']), key
    if product != 'backbone':  # a teacher, with statistics of its own
        key = 'bn1.running_mean'
        assert not torch.equal(exported[key], state[f'backbone.{key}'])
        batches = 1 if tiny_form(algorithm).passes else 2  # of two views: both at once, or each
        assert int(exported['bn1.num_batches_tracked']) == 12 * batches
    if 'center.value' in state:
        assert state['center.value'].abs().max() > 0

    # a resumed run continues the momentum encoder's schedule and the rate where they were
    (tiny.work_dir / 'epoch_3.pth').unlink()
    second = str(tiny.work_dir / 'epoch_2.pth')
    arguments = tiny(
        'train_cfg.max_epochs=3', flags=['--auto-scale-lr', '--resume', second], algorithm=algorithm
    )
    done = run_forked('tools/train.py', *arguments)
    assert done.returncode == 0, done.stdout
    assert [line['lr'] for line in _values(done.stdout)] == rates[8:]
    resumed = read_checkpoint(str(tiny.work_dir / 'epoch_3.pth'))['state_dict']
    assert int(resumed['encoder_k.steps']) == 12


def _values(log):
    """The numbers of each line about an iteration."""
    lines = [line for line in log.splitlines() if 'Epoch(train)' in line]
    pairs = [re.findall(r'(\w+): (-?[\d.]+(?:e[-+]\d+)?)(?=\s|$)', line) for line in lines]
    return [{name: float(value) for name, value in line} for line in pairs]


def kill_all(argument):
    """SIGKILL to every process with this argument (torchrun's are each in a
    session of their own)."""
    for entry in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{entry}/cmdline') as f:
                found = argument in f.read().split('\0')
            if found and int(entry) != os.getpid():
                os.kill(int(entry), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended meanwhile


def test_two_processes_killed_and_resumed(repo, run, tiny, free_port):
    """dist_train.sh without a GPU, SIGKILL of everything, --resume."""
    script = str(repo / 'tools' / 'dist_train.sh')
    arguments = tiny('train_cfg.max_epochs=40', 'model.backbone.norm_cfg.type=SyncBN')
    env = dict(os.environ, PORT=str(free_port), PYTHON=sys.executable)
    log = tiny.work_dir.parent / 'first.log'
    with log.open('w') as f:
        process = subprocess.Popen(
            [script, arguments[0], '2', *arguments[1:]],
            env=env,
            cwd=repo,
            stdout=f,
            stderr=subprocess.STDOUT,
        )
    deadline = time.time() + 200
    while not (tiny.work_dir / 'epoch_2.pth').exists():
        assert process.poll() is None and time.time() < deadline, log.read_text()
        time.sleep(0.2)
    kill_all(str(tiny.work_dir))
    process.wait()
    text = log.read_text()
    assert '40 SyncBN became BN' in text  # of both encoders
    # 2 processes × 4 images: two iterations an epoch
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\]', text), text

    # The kill may have come while a later checkpoint was being written.
    last = max(int(re.search(r'\d+', p.name)[0]) for p in tiny.work_dir.glob('epoch_*.pth'))
    while True:
        try:
            steps = read_checkpoint(str(tiny.work_dir / f'epoch_{last}.pth'))['state_dict']
            break
        except ValueError:
            last -= 1
    latest = tiny.work_dir / f'epoch_{last}.pth'
    is_latest = (tiny.work_dir / 'last_checkpoint').read_text().strip() == str(latest)
    arguments = tiny(
        f'train_cfg.max_epochs={last + 1}',
        'model.backbone.norm_cfg.type=SyncBN',
        flags=['--resume'] if is_latest else ['--resume', str(latest)],
    )
    done = run(script, arguments[0], 2, *arguments[1:], PORT=str(free_port))
    assert done.returncode == 0, done.stdout
    assert f'resumed epoch: {last}' in done.stdout
    after = read_checkpoint(str(tiny.work_dir / f'epoch_{last + 1}.pth'))['state_dict']
    # two iterations of 2×4 keys went in, and the twin made two steps
    assert int(after['encoder_k.steps']) == int(steps['encoder_k.steps']) + 2
    assert int(after['queue.filled']) == min(64, int(steps['queue.filled']) + 16)
    assert int(after['queue2.ptr']) == (int(steps['queue2.ptr']) + 16) % 64


def test_flags_of_mmpretrain(run_forked, tiny):
    done = run_forked(
        'tools/train.py',
        *tiny(
            'train_cfg.max_epochs=1',
            flags=(
                '--auto-scale-lr',
                '--no-validate',
                '--no-pin-memory',
                '--no-persistent-workers',
            ),
        ),
    )
    assert done.returncode == 0, done.stdout
    # 0.3 × 4 / 256
    assert 'lr: 4.6875e-03' in done.stdout
    assert run_forked('tools/train.py', '--help').returncode == 0


@pytest.mark.parametrize(
    'options, dtype, loss_scale',
    [
        ({}, 'float16', 'dynamic'),
        ({'optim_wrapper.dtype': 'bfloat16'}, 'bfloat16', dict(enabled=False)),
        ({'optim_wrapper.loss_scale': 512.0}, 'float16', 512.0),
    ],
)
def test_amp(repo, monkeypatch, options, dtype, loss_scale):
    """Settings of a run on a GPU; float16 alone needs its losses scaled."""
    monkeypatch.setattr(training, 'get_device', lambda: 'cuda')
    path = str(tiny_form(algorithms_of('momentum')[0]).config)
    args = training.train_parser().parse_args([path, '--amp'])
    args.cfg_options = options
    cfg = Config.fromfile(path)
    training.merge_train_arguments(cfg, args)
    wrapper = cfg.optim_wrapper
    assert wrapper.type == 'AmpOptimWrapper' and wrapper.optimizer.type == 'mmdense.LARS'
    assert (wrapper.dtype, wrapper.loss_scale) == (dtype, loss_scale)


def test_every_recipe_has_a_batch_for_its_learning_rate(repo):
    """8xb32 in a name: its learning rate is for 256 images."""
    recipes = list(repo.glob('configs/*/*_8xb*.py'))
    assert len(recipes) > 15
    for path in recipes:
        cfg = Config.fromfile(str(path))
        gpus, batch = map(int, re.search(r'_(\d+)xb(\d+)-', path.name).groups())
        assert cfg.train_dataloader.batch_size == batch, path.name
        assert cfg.auto_scale_lr == dict(base_batch_size=gpus * batch), path.name


def test_gradients_accumulate(run_forked, tiny):
    """LARS, a learning rate for all images of a step, and a twin that moves once a step."""
    hooks = ['MomentumEncoderHook', 'LossLogHook']
    algorithm = algorithms_of('momentum')[0]
    arguments = tiny(
        'optim_wrapper.accumulative_counts=2',
        'train_cfg.max_epochs=3',
        *(f'default_hooks.{hook}.type={hook}' for hook in hooks),
        flags=['--auto-scale-lr'],
        algorithm=algorithm,
    )
    done = run_forked('tools/train.py', *arguments)
    assert done.returncode == 0, done.stdout
    assert 'Scaling the LR by 2 more' in done.stdout
    lines = _values(done.stdout)
    assert len(lines) == 12 and all(math.isfinite(line['loss']) for line in lines)
    # 4 images in each of two iterations
    assert [line['lr'] for line in lines] == warmup_rates(algorithm, 8)
    state = read_checkpoint(str(tiny.work_dir / 'epoch_3.pth'))['state_dict']
    assert int(state['encoder_k.steps']) == 6
    stem = re.compile(r'encoder_k\.module\.\w+\.bn1\.num_batches_tracked')
    assert [int(state[key]) for key in state if stem.fullmatch(key)] == [24]


def test_checkpointed(run_forked, tiny):
    """MMEngine's own key of the config; the names in the checkpoint stay."""
    options = [
        'activation_checkpointing=backbone.layer1,backbone.layer2',
        'train_cfg.max_epochs=1',
        'randomness.seed=0',
    ]
    losses = []
    for changed in (options, options[1:]):
        done = run_forked('tools/train.py', *tiny(*changed))
        assert done.returncode == 0, done.stdout
        losses.append([line['loss'] for line in _values(done.stdout)])
        (tiny.work_dir / 'epoch_1.pth').rename(tiny.work_dir / f'{len(losses)}.pth')
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    ours, plain = (read_checkpoint(str(tiny.work_dir / f'{i}.pth'))['state_dict'] for i in (1, 2))
    assert list(ours) == list(plain)


def test_test_tool_says_what_it_needs(run_forked, repo, tmp_path):
    config = f'configs/{tiny_form().recipe}.py'
    done = run_forked('tools/test.py', config, tmp_path / 'x.pth')
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(f'mmdense: error: {config} has')


def test_test_tool_refuses_what_does_not_fit(repo, run_forked, pretrained_by, data_root, require):
    """MMEngine would warn, and score random weights."""
    require('mmseg')
    (config,) = repo.glob('configs/*/*_unsup-seg_camvid.py')
    options = [
        f'test_dataloader.dataset.data_root={data_root}/camvid',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]
    checkpoint = pretrained_by(*algorithms_of('teacher'))
    done = run_forked('tools/test.py', config, checkpoint, '--cfg-options', *options)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f'mmdense: error: {checkpoint} does not fit {config}: '), last
    assert 'mIoU' not in done.stdout


def test_test_tool_refuses_code(run_forked, tmp_path, data_root, require):
    """Also where nothing in the config is mmdense's."""
    require('mmseg')
    torch.save(dict(state_dict={}, meta=Bomb(str(tmp_path / 'it_ran'))), tmp_path / 'bomb.pth')
    config = 'configs/transfer/mmseg/fcn_r50_camvid.py'
    options = [
        f'test_dataloader.dataset.data_root={data_root}/camvid',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        *('--work-dir', tmp_path),
    ]
    done = run_forked('tools/test.py', config, tmp_path / 'bomb.pth', '--cfg-options', *options)
    assert done.returncode == 1 and 'which can run any code: refused' in done.stdout, done.stdout
    assert not (tmp_path / 'it_ran').exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_slurm(run, tmp_path):
    """With an srun that shows what it was asked for."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    done = run(
        *('tools/slurm_train.sh', 'gpu', 'my job', 'configs/recipe.py', 'a dir', '--amp'),
        PATH=path,
        GPUS='4',
        SRUN_ARGS='--time=10 --qos=high',
    )
    assert done.returncode == 0, done.stdout
    asked = done.stdout.splitlines()
    for word in ('--job-name=my job', '--gres=gpu:4', '--ntasks=4', '--time=10', '--qos=high'):
        assert word in asked
    assert asked[-4:] == [
        'configs/recipe.py',
        '--work-dir=a dir',
        '--launcher=slurm',
        '--amp',
    ]
    assert run('tools/slurm_train.sh', 'gpu').returncode == 2
