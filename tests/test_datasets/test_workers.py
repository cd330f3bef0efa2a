# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The data loader's workers: how long they live, their threads, their memory."""

import argparse
import signal
import time
import zipfile

import cv2
import psutil
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tiny_algorithms import tiny_form
from torch.utils.data import DataLoader

from mmdense.datasets import UnlabeledDataset
from mmdense.datasets.workers import defer_signals
from mmdense.engine.launch import merge_common_arguments


@pytest.fixture
def recipe(repo, images, tmp_path, mmdense_scope):
    """A recipe's data loader as it is, of two workers and few images, in a zip."""
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w') as z:
        for i in range(16):
            z.write(f'{images}/{i:02}.jpg', f'{i:02}.jpg')

    def build(**options):
        cfg = Config.fromfile(str(tiny_form().config)).train_dataloader
        cfg.update(num_workers=2, batch_size=4, **options)
        cfg.dataset.update(data_root=str(tmp_path), data_prefix='images.zip')
        return Runner.build_dataloader(cfg, seed=0)

    return build


def processes_of_epochs(loader, epochs=2):
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        iterator = iter(loader)
        number = sum(len(batch['data_samples']) for batch in iterator)
        assert number == 16
        yield {worker.pid for worker in iterator._workers}


def test_workers_live_for_the_whole_run(recipe):
    first, second = processes_of_epochs(recipe())
    assert first == second and len(first) == 2
    first, second = processes_of_epochs(recipe(persistent_workers=False))
    assert not first & second


def test_workers_and_sigterm(recipe):
    """While a run listens they go on; else, when the program ends, they end at once."""
    loader = recipe()
    defer_signals(True)
    try:
        iterator = iter(loader)
        next(iterator)
        workers = [psutil.Process(worker.pid) for worker in iterator._workers]
        time.sleep(2)  # both have begun
        for worker in workers:
            worker.send_signal(signal.SIGUSR1)
            worker.terminate()
        assert psutil.wait_procs(workers, timeout=2)[0] == []
        assert len(list(iterator)) == 3
    finally:
        defer_signals(False)
    iterator = iter(loader)
    next(iterator)
    workers[0].terminate()
    with pytest.raises(RuntimeError, match='Terminated|exited unexpectedly'):  # PyTorch's watch
        list(iterator)
        time.sleep(5)


PROBE = """
import cv2, torch

def probe(results):
    return cv2.getNumThreads(), torch.get_num_threads()
"""


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_one_thread_a_worker(recipe, tmp_path, monkeypatch, method):
    (tmp_path / 'probe_of_threads.py').write_text(PROBE)  # spawned workers have to import it
    monkeypatch.syspath_prepend(str(tmp_path))
    from probe_of_threads import probe

    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)  # as under a tool that does not limit them
        loader = recipe(multiprocessing_context=method)
        loader.dataset.pipeline = probe
        for batch in loader:
            opencv, pytorch = batch
            assert opencv.tolist() == pytorch.tolist() == [1] * 4
        assert cv2.getNumThreads() == 4  # the main process keeps its own
        assert probe({})[0] == 4 == loader.dataset[0][0]
    finally:
        cv2.setNumThreads(threads)


@pytest.mark.parametrize('cuda', [True, False])
@pytest.mark.parametrize('flag', [True, False])
def test_memory_is_pinned_for_a_gpu_only(repo, monkeypatch, cuda, flag):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    cfg = Config.fromfile(str(tiny_form().config))
    args = argparse.Namespace(
        no_pin_memory=flag, launcher='none', work_dir='x', cfg_options=None, local_rank=0
    )
    monkeypatch.setenv('LOCAL_RANK', '0')
    assert cfg.train_dataloader.pin_memory
    merge_common_arguments(cfg, args)
    assert cfg.train_dataloader.pin_memory is (cuda and not flag)


def growth(dataset):
    """Bytes that four workers come to have for themselves while they go through all."""
    loader = DataLoader(
        dataset, batch_size=1000, shuffle=True, num_workers=4, persistent_workers=True,
        multiprocessing_context='fork', collate_fn=len,
    )  # fmt: skip
    iterator = iter(loader)

    def own():
        return [psutil.Process(w.pid).memory_full_info().uss for w in iterator._workers]

    total = next(iterator)
    before = own()
    total += sum(iterator)
    assert total == len(dataset)
    return [after - b for after, b in zip(own(), before)]


def test_the_list_is_in_memory_once(tmp_path):
    number = 300_000
    (tmp_path / 'list.txt').write_text(
        '\n'.join(f'n{i // 1300:08}/n{i // 1300:08}_{i:08}.JPEG' for i in range(number))
    )
    found = {}
    for serialize_data in (True, False):
        dataset = UnlabeledDataset(
            data_prefix='s3://not/looked/up/train',
            ann_file=str(tmp_path / 'list.txt'),
            pipeline=[lambda results: results['sample_idx']],
            serialize_data=serialize_data,
        )
        assert len(dataset) == number
        found[serialize_data] = growth(dataset)
        if serialize_data:
            assert dataset.data_bytes.nbytes > 20e6
        del dataset
    assert max(found[True]) < 5e6
    assert min(found[False]) > 20e6  # else the figure above says nothing
