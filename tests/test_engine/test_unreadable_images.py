# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import logging
import os
import socket
import subprocess
import sys
import uuid

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset

from mmdense.datasets import UnlabeledDataset
from mmdense.engine import UnreadableImagesHook, check_enough_images
from mmdense.engine.events import read_events
from mmdense.utils.errors import DataError


class Tiny(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.weight.sum() * inputs[0].float().mean())


def make_images(folder, number, bad=()):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(str(folder / f'{i:04}.png'))
    for i in bad:
        (folder / f'{i:04}.png').write_bytes(b'')
    return str(folder)


def run(
    folder,
    work_dir,
    train_cfg=None,
    hook=None,
    batch_size=10,
    num_workers=0,
    sampler=None,
    param_scheduler=None,
    **runner_cfg,
):
    dataset = folder
    if isinstance(folder, str):
        dataset = dict(
            type='mmdense.UnlabeledDataset',
            data_root=folder,
            pipeline=[
                dict(type='mmdense.LoadImage'),
                dict(type='mmpretrain.PackInputs', meta_keys=('img_path',)),
            ],
        )
    runner = Runner(
        model=Tiny(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=num_workers,
            drop_last=True,
            sampler=sampler or dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='mmdense.default_collate', _scope_='mmdense'),
            dataset=dataset,
        ),
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        param_scheduler=param_scheduler,
        custom_hooks=[dict(type='mmdense.UnreadableImagesHook', **(hook or {}))],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1000)),
        experiment_name=uuid.uuid4().hex,  # MMEngine keeps one logger a name
        randomness=dict(seed=0),
        **runner_cfg,
    )
    runner.train()
    return runner


def log_of(work_dir):
    return '\n'.join(path.read_text() for path in sorted(work_dir.rglob('*.log')))


@pytest.mark.parametrize('num_workers', [0, 2])
def test_named_once_and_counted(tmp_path, num_workers):
    folder = make_images(tmp_path / 'images', 200, bad=[7, 150])
    run(folder, tmp_path / 'work', num_workers=num_workers)
    log = log_of(tmp_path / 'work')
    for name in ('0007.png', '0150.png'):
        assert log.count(f'cannot read image {folder}/{name}: the file is empty') == 1
    assert log.count('2 of 200 images (1.00%) cannot be read; others took their places') == 2
    (folder,) = {path.parent for path in (tmp_path / 'work').rglob('*.log')}
    events = read_events(folder)
    images = [event['path'] for event in events if event['kind'] == 'unreadable_image']
    assert sorted(path[-8:] for path in images) == ['0007.png', '0150.png']
    counts = [event for event in events if event['kind'] == 'unreadable_images']
    assert [(event['number'], event['total']) for event in counts] == [(2, 200)] * 2


def test_too_many_are_an_error_after_the_first_epoch(tmp_path):
    folder = make_images(tmp_path / 'images', 100, bad=[7, 50])
    message = (
        r'2 of 100 images \(2.00%\) cannot be read, more than max_ratio=0.01 of '
        rf'UnreadableImagesHook allows; the first is .*.png \(the file is empty\).* from {folder}'
    )
    with pytest.raises(DataError, match=message) as e:
        run(folder, tmp_path / 'work')
    assert '\n' not in str(e.value)
    log = log_of(tmp_path / 'work')
    assert '0007.png' in log and '0050.png' in log
    assert not list((tmp_path / 'work').glob('*.pth'))  # before the checkpoint of that epoch


def test_max_ratio(tmp_path):
    folder = make_images(tmp_path / 'images', 20, bad=[1, 2, 3])
    run(folder, tmp_path / 'a', hook=dict(max_ratio=0.15))
    assert '3 of 20 images (15.00%)' in log_of(tmp_path / 'a')
    with pytest.raises(DataError, match='max_ratio=0.14'):
        run(folder, tmp_path / 'b', hook=dict(max_ratio=0.14))


def test_nothing_is_said_of_good_data(tmp_path):
    run(make_images(tmp_path / 'images', 20), tmp_path / 'work')
    assert 'cannot' not in log_of(tmp_path / 'work')


class GoesBad:
    """A transform before LoadImage: files 0..9 vanish after so many loads."""

    def __init__(self, after):
        self.loads, self.after = 0, after

    def __call__(self, results):
        self.loads += 1
        if self.loads > self.after and '000' in os.path.basename(results['img_path']):
            results['img_path'] += '.gone'
        return results


def test_later_epochs_only_count(tmp_path):
    folder = make_images(tmp_path / 'images', 100)
    dataset = UnlabeledDataset(
        data_root=folder,
        pipeline=[
            GoesBad(100),
            dict(type='mmdense.LoadImage'),
            dict(type='mmpretrain.PackInputs', meta_keys=('img_path',)),
        ],
    )
    run(dataset, tmp_path / 'work', train_cfg=dict(by_epoch=True, max_epochs=3))
    log = log_of(tmp_path / 'work')
    assert log.count('10 of 100 images (10.00%) cannot be read; others') == 2
    assert log.count('0004.png.gone: No such file or directory; another') == 1


@pytest.mark.parametrize('sampler', ['DefaultSampler', 'InfiniteSampler'])
def test_loops_that_count_iterations(tmp_path, sampler, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # MMEngine's, between epochs
    folder = make_images(tmp_path / 'images', 100, bad=[7, 50])
    kwargs = dict(sampler=dict(type=sampler, shuffle=True))
    with pytest.raises(DataError, match='2 of 100 images'):
        run(folder, tmp_path / 'a', dict(by_epoch=False, max_iters=10), **kwargs)
    # Stopped before it has seen all: named, but no judgement.
    run(folder, tmp_path / 'b', dict(by_epoch=False, max_iters=9), **kwargs)
    assert 'cannot read image' in log_of(tmp_path / 'b')
    run(folder, tmp_path / 'c', dict(by_epoch=False, max_iters=25), dict(max_ratio=0.5), **kwargs)
    assert log_of(tmp_path / 'c').count('2 of 100 images (2.00%)') == 2


def test_resume(tmp_path):
    folder = make_images(tmp_path / 'images', 200, bad=[7, 150])
    run(folder, tmp_path / 'work', dict(by_epoch=True, max_epochs=1))
    runner = run(folder, tmp_path / 'work', dict(by_epoch=True, max_epochs=3), resume=True)
    assert runner.epoch == 3
    assert log_of(tmp_path / 'work').count('2 of 200 images') == 3


# ---------------------------------------------------------------- several processes


def work(rank, folder, work_dir, port):
    """What this file does as a script: one of two processes."""
    torch.set_num_threads(1)
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=address, rank=int(rank), world_size=2)
    for ratio in (0.01, 0.5):
        ratio_dir = os.path.join(work_dir, str(ratio))
        try:
            run(
                folder,
                ratio_dir,
                hook=dict(max_ratio=ratio),
                sampler=dict(type='DefaultSampler', shuffle=False),
                cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)),
            )
            result = 'finished'
        except DataError as e:
            result = str(e)
        with open(os.path.join(ratio_dir, f'result{rank}'), 'w') as f:
            f.write(result)
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    # Unshuffled, rank 0 has the even images and rank 1 the odd ones.
    folder = make_images(tmp_path / 'images', 80, bad=[4, 5, 9])
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, rank, folder, str(tmp_path), str(port)], env=env
        )
        for rank in '01'
    ]
    assert [process.wait() for process in processes] == [0, 0]
    for ratio in (0.01, 0.5):
        results = [(tmp_path / str(ratio) / f'result{rank}').read_text() for rank in range(2)]
        log = log_of(tmp_path / str(ratio))
        for name in ('0004', '0005', '0009'):  # rank 1's too, in the one log
            assert log.count(f'cannot read image {folder}/{name}.png') == 1
        if ratio == 0.5:
            assert results == ['finished'] * 2
            assert log.count('3 of 80 images (3.75%) cannot be read') == 2
        else:  # on both at once, or one would wait for the other forever
            assert all('3 of 80 images (3.75%) cannot be read, more' in r for r in results)


# ---------------------------------------------------------------- too few images


def test_fewer_images_than_a_batch(tmp_path):
    folder = make_images(tmp_path / 'images', 9)
    message = (
        rf'9 images are fewer than one batch of 10 on each of 1 process\(es\); looked for images '
        rf'in {folder} \(with sub-folders, files ending in .jpg'
    )
    for name, train_cfg in (('a', None), ('b', dict(by_epoch=False, max_iters=3))):
        with pytest.raises(DataError, match=message) as e:
            run(folder, tmp_path / name, train_cfg)
        assert '\n' not in str(e.value)


def test_check_before_the_schedulers_are_built(tmp_path):
    """MMEngine asserts on an empty epoch before any hook runs; the check works
    on the runner before that."""
    folder = make_images(tmp_path / 'images', 9)
    dataset = UnlabeledDataset(data_root=folder)
    with pytest.raises(DataError, match='9 images are fewer than one batch of 10'):
        check_enough_images(DataLoader(dataset, batch_size=10, drop_last=True))
    check_enough_images(DataLoader(dataset, batch_size=9, drop_last=True))


def test_wrapped_data_sets(tmp_path):
    a = UnlabeledDataset(data_root=make_images(tmp_path / 'a', 4))
    b = UnlabeledDataset(data_root=make_images(tmp_path / 'b', 4))
    with pytest.raises(DataError, match='3 images .* in .*/a '):
        check_enough_images(DataLoader(Subset(a, [0, 1, 2]), batch_size=4))
    with pytest.raises(DataError, match='8 images .* in .*/a .*, .*/b '):
        check_enough_images(DataLoader(ConcatDataset([a, b]), batch_size=9))
    with pytest.raises(DataError, match='in list'):
        check_enough_images(DataLoader([1, 2], batch_size=4))
    check_enough_images(DataLoader(RepeatDataset(a, 3), batch_size=12))  # asked for


def test_repeated_images_count_once(tmp_path):
    folder = make_images(tmp_path / 'images', 20, bad=[3])
    dataset = UnlabeledDataset(
        data_root=folder,
        pipeline=[dict(type='mmdense.LoadImage'), dict(type='mmpretrain.PackInputs')],
    )
    with pytest.raises(DataError, match=r'1 of 20 images \(5.00%\)'):
        run(RepeatDataset(dataset, 10), tmp_path / 'work')


def test_streams_have_no_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    check_enough_images(DataLoader(Stream(), batch_size=4))


@pytest.mark.parametrize('batch', [None, {}, dict(data_samples=None), [1], dict(data_samples=[1])])
def test_batches_without_data_samples(batch):
    class Loop:
        train_loop = None
        logger = logging.getLogger('none')

    UnreadableImagesHook().after_train_iter(Loop(), 0, batch)
    batch = dict(data_samples=[BaseDataElement()])
    UnreadableImagesHook().after_train_iter(Loop(), 0, batch)


@pytest.mark.parametrize(
    'max_ratio, error', [('1%', TypeError), (None, TypeError), (True, TypeError), (1, None)]
)
def test_wrong_types(max_ratio, error):
    if error is None:
        UnreadableImagesHook(max_ratio=max_ratio)
        return
    with pytest.raises(error, match='max_ratio must be a number in 0..1'):
        UnreadableImagesHook(max_ratio=max_ratio)


@pytest.mark.parametrize('max_ratio', [-0.1, 1.5, float('nan')])
def test_wrong_values(max_ratio):
    with pytest.raises(ValueError, match='max_ratio must be a number in 0..1'):
        UnreadableImagesHook(max_ratio=max_ratio)


if __name__ == '__main__':
    work(*sys.argv[1:])
