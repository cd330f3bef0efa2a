# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import save_checkpoint

from mmdense.checkpoints import read_checkpoint
from mmdense.utils.errors import CheckpointError


class Bomb:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def training_checkpoint():
    """What MMEngine saves: tensors, and a message hub that weights_only refuses."""
    return dict(
        meta=dict(epoch=3, iter=12, cfg='a = 1', seed=np.int64(7), time='now'),
        state_dict={'backbone.conv1.weight': torch.randn(4, 3, 2, 2)},
        optimizer=dict(state={0: dict(momentum_buffer=torch.ones(3))}, param_groups=[dict(lr=0.1)]),
        message_hub=dict(
            log_scalars={'train/loss': HistoryBuffer([1.0, 2.0], [1, 1])},
            runtime_info=dict(iter=12, lr=np.float64(0.1), done=np.bool_(True)),
            resumed_keys={'train/loss': True},
        ),
        param_schedulers=[dict(last_step=3, base_values=[0.1])],
    )


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_training_checkpoints_load_whole(tmp_path, zipped):
    path = str(tmp_path / 'epoch_3.pth')
    saved = training_checkpoint()
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint(path)
    assert torch.equal(
        loaded['state_dict']['backbone.conv1.weight'], saved['state_dict']['backbone.conv1.weight']
    )
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer) and history.mean() == 1.5
    history.update(3.0)  # its pickled methods work
    assert history.statistics('max') == 3.0
    assert loaded['message_hub']['runtime_info']['lr'] == 0.1
    assert loaded['meta']['seed'] == 7


def test_every_kind_of_tensor_loads(tmp_path):
    path = str(tmp_path / 'tensors.pth')
    saved = dict(
        half=torch.ones(2, dtype=torch.float16),
        bf16=torch.ones(2, dtype=torch.bfloat16),
        int8=torch.ones(2, dtype=torch.int8),
        flag=torch.tensor([True]),
        view=torch.arange(6).reshape(2, 3).t(),
        parameter=torch.nn.Parameter(torch.ones(2)),
        dtype=torch.float32,
        size=torch.Size([1, 2]),
        array=np.arange(4, dtype=np.float32).reshape(2, 2),
        text=np.array(['a', 'bc']),
        empty=np.zeros((0, 2)),
    )
    torch.save(saved, path)
    loaded = read_checkpoint(path)
    for key, value in saved.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype
        elif isinstance(value, np.ndarray):
            assert np.array_equal(loaded[key], value)
        else:
            assert loaded[key] == value


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('loader', [read_checkpoint, CheckpointLoader.load_checkpoint])
def test_code_is_refused(tmp_path, zipped, loader):
    """Also by MMEngine's loader, which is what resuming uses."""
    path, proof = str(tmp_path / 'bomb.pth'), tmp_path / 'it_ran'
    torch.save(dict(state_dict={}, x=Bomb(proof)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'bomb.pth asks for .*system.*refused') as error:
        loader(path)
    assert '\n' not in str(error.value)
    assert not proof.exists()


@pytest.mark.parametrize(
    'function', [eval, exec, getattr, __import__, torch.load, np.load, os.remove, pickle.loads]
)
def test_functions_are_refused(tmp_path, function):
    class Call:
        def __reduce__(self):
            return function, ('1',)

    path = str(tmp_path / 'call.pth')
    torch.save(Call(), path)
    with pytest.raises(CheckpointError, match='refused'):
        read_checkpoint(path)


def test_getattr_reaches_statistics_methods_only(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    path = str(tmp_path / 'reach.pth')
    torch.save(Reach(), path)
    with pytest.raises(CheckpointError, match='refused'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'is empty'),
        (b'<!DOCTYPE html><html><body>404</body></html>', 'is a web page'),
        (b'\n  <html>Not found</html>', 'is a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:1', 'is a Git LFS pointer'),
        (b'just some text, not a checkpoint', 'is not a PyTorch file'),
        (b'{"a": 1}', 'is not a PyTorch file'),
        (b'PK\x03\x04 torn', 'is damaged or cut short'),
        (b'\x80\x02 torn', 'is damaged or cut short'),
    ],
)
def test_other_files_say_what_they_are(tmp_path, content, message):
    path = tmp_path / 'file.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(str(path))
    assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_say_so(tmp_path, zipped, share):
    path = tmp_path / 'epoch_3.pth'
    torch.save(training_checkpoint(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match='damaged or cut short'):
        read_checkpoint(str(path))


def test_missing_files_say_so(tmp_path):
    with pytest.raises(CheckpointError, match='does not exist'):
        read_checkpoint(str(tmp_path / 'epoch_9.pth'))
    with pytest.raises(CheckpointError, match='is a directory'):
        read_checkpoint(str(tmp_path))


def test_what_mmengine_saves_resumes(tmp_path):
    path = str(tmp_path / 'epoch_3.pth')
    save_checkpoint(training_checkpoint(), path)
    assert CheckpointLoader.load_checkpoint(path)['meta']['epoch'] == 3
