# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import argparse
import collections
import datetime
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import sys
import tarfile
import types
import typing
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import save_checkpoint
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from mmdense.checkpoints import io as checkpoint_io
from mmdense.checkpoints import read_checkpoint, recognise
from mmdense.checkpoints.io import load_from_http
from mmdense.utils.download import file_name
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


@pytest.fixture
def foreign():
    """Makes a class of a package that is not installed, as the one who wrote the file has it."""
    made = []

    def call(path, base=object):
        module, _, name = path.rpartition('.')
        parts = module.split('.')
        for i in range(1, len(parts) + 1):
            package = '.'.join(parts[:i])
            if package not in sys.modules:
                sys.modules[package] = types.ModuleType(package)
                made.append(package)
        kind = type(name, (base,), dict(__module__=module))
        setattr(sys.modules[module], name, kind)
        return kind

    yield call
    for package in made:
        sys.modules.pop(package, None)


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_classes_of_other_packages_hold_nothing(tmp_path, foreign, zipped):
    """Lightning's callbacks, attribute dicts, configs: the weights next to them are read."""
    callback = foreign('no_such_lightning.callbacks.ModelCheckpoint')
    attributes = foreign('no_such_lightning.utilities.AttributeDict', dict)
    node, ran = foreign('no_such_omegaconf.dictconfig.DictConfig')(), []
    vars(node)['_content'] = dict(lr=0.1)
    vars(node)['kind'] = typing.Any
    runs = foreign('no_such_lightning.Runs')
    runs.__init__ = lambda self, *args: ran.append(args)
    runs.__setstate__ = lambda self, state: ran.append(state)
    runs.__reduce__ = lambda self: (runs, (1, 2), dict(a=1))
    content = dict(
        state_dict={'conv1.weight': torch.ones(2)},
        callbacks={callback: dict(best=1.0)},
        hyper_parameters=attributes(lr=0.1, inner=node),
        keyed={runs.__new__(runs): 1},
    )
    torch.save(content, tmp_path / 'x.ckpt', _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(str(tmp_path / 'x.ckpt'))
    assert torch.equal(found['state_dict']['conv1.weight'], torch.ones(2)) and not ran
    (name,) = found['callbacks']
    assert name is not callback and name.__name__ == 'ModelCheckpoint'
    assert type(found['hyper_parameters']['inner']) is not type(node)
    assert not vars(found['hyper_parameters']['inner'])
    recognise(found)


def test_a_model_that_was_pickled_as_a_whole(tmp_path, foreign):
    """Nothing of it is kept; the line says what to do."""
    torch.save(foreign('no_such_package.Net', torch.nn.Linear)(2, 2), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='no_such_package.Net.*save its state dict alone'):
        recognise(read_checkpoint(str(tmp_path / 'x.pth')))
    torch.save(torch.nn.Linear(2, 2), tmp_path / 'y.pth')
    with pytest.raises(CheckpointError, match='torch.nn.*save its state dict alone'):
        recognise(read_checkpoint(str(tmp_path / 'y.pth')))


def test_a_pickled_network_next_to_the_tensors(tmp_path):
    """Tensors are read; the network that lightly-train pickles beside them is inert."""
    from torchvision.models import resnet18

    network = resnet18()
    state = {
        f'embedding_model.wrapped_model._model.{k}': v for k, v in resnet18().state_dict().items()
    }
    torch.save(dict(state_dict=state, models=dict(model=network)), tmp_path / 'x.ckpt')
    found = read_checkpoint(str(tmp_path / 'x.ckpt'))
    assert not found['models']['model'] and type(found['models']['model']) is not type(network)
    assert recognise(found).source == 'lightly-train'
    for function in (
        torch.nn.functional.relu,
        torch.nn.modules.utils.consume_prefix_in_state_dict_if_present,
        torch.hub.load,
    ):
        torch.save(dict(state_dict=state, call=function), tmp_path / 'y.ckpt')
        with pytest.raises(CheckpointError, match='refused'):
            read_checkpoint(str(tmp_path / 'y.ckpt'))


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


def test_checkpoints_of_tensorflow_and_jax(tmp_path):
    """SimCLR's files, one by one, in a folder or in a zip, and BYOL's pickles: one line that says
    what to take instead."""
    files = ['model.ckpt-250228.index', 'model.ckpt-250228.data-00000-of-00001']
    (tmp_path / 'saved').mkdir()
    for name in (*files, 'model.ckpt-250228.meta', 'checkpoint', 'saved/saved_model.pb'):
        (tmp_path / name).write_bytes(b'\0' * 64)
    with zipfile.ZipFile(tmp_path / 'ResNet50_1x.zip', 'w') as archive:
        for name in files:
            archive.write(tmp_path / name, f'ResNet50_1x/{name}')
    haiku = b'\x80\x04\x8c\x1ahaiku._src.data_structures\x94\x8c\x0bFlatMapping\x94\x93\x94)\x81.'
    (tmp_path / 'pretrain_res50x1.pkl').write_bytes(haiku)
    plain = {'res_net50/~/initial_conv': dict(w=np.ones((2, 2), np.float32))}
    (tmp_path / 'plain.pkl').write_bytes(pickle.dumps(dict(online_params=plain)))
    torch.save(dict(a=torch.ones(2)), tmp_path / 'ours.pth')
    for name, framework in (
        ('model.ckpt-250228', 'TensorFlow'),
        *((name, 'TensorFlow') for name in files),
        ('', 'TensorFlow'),
        ('checkpoint', 'TensorFlow'),
        ('saved', 'TensorFlow'),
        ('ResNet50_1x.zip', 'TensorFlow'),
        ('pretrain_res50x1.pkl', 'JAX'),
        ('plain.pkl', 'JAX'),
    ):
        with pytest.raises(CheckpointError, match=f'is of {framework}, which mmd.*`mmdense list`'):
            read_checkpoint(str(tmp_path / name))
    assert read_checkpoint(str(tmp_path / 'ours.pth')).keys() == {'a'}


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


def rewritten(path, change, legacy=False):
    """A checkpoint whose pickle is changed by hand."""
    if legacy:
        head = [pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {})]
        path.write_bytes(b''.join(head) + change(b'') + pickle.dumps([], 2))
        return str(path)
    buffer = io.BytesIO()
    torch.save({'a': torch.ones(4)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, 'w') as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith('data.pkl') else content)
    return str(path)


def refused(path, match='refused'):
    with pytest.raises(CheckpointError, match=match) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert str(path) in message and 'refused' in message and '\n' not in message


def inner(value):
    """The opcodes that make a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def test_torchscript_is_refused(tmp_path, monkeypatch):
    """``torch.load`` passes it on to ``torch.jit.load``, which runs what is in it."""
    path = str(tmp_path / 'script.pth')
    torch.jit.script(torch.nn.Identity()).save(path)
    monkeypatch.setattr(torch.jit, 'load', lambda *args, **kwargs: pytest.fail('it ran'))
    refused(path, 'is a TorchScript program')


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize(
    'target',
    [
        b'ctorch._utils\n_rebuild_tensor_v2\n',
        b'ctorch.nn.parameter\nParameter\n',
        b'cargparse\nNamespace\n',
        b'cmmengine.logging.history_buffer\nHistoryBuffer\n',
        b'cnumpy\ndtype\n',
    ],
)
@pytest.mark.parametrize('slots', [False, True])
def test_functions_and_classes_are_not_changed(tmp_path, target, slots, legacy):
    """An ordinary unpickler sets attributes of anything, for the whole process."""
    state = inner({'__defaults__': (7,), 'dump_patches': True})
    state = b'N' + state + b'\x86' if slots else state
    pickled = b'\x80\x02' + target + state + b'b0}.'
    refused(rewritten(tmp_path / 'poison.pth', lambda _: pickled, legacy), 'a change of')
    torch.save({'a': torch.ones(1)}, tmp_path / 'good.pth')
    assert read_checkpoint(str(tmp_path / 'good.pth'))['a'] == 1


def test_statistics_of_other_buffers_stay(tmp_path):
    """HistoryBuffer keeps its methods in its class and would take a file's."""
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    vars(buffer)['statistics_methods'] = None
    state = dict(vars(buffer), statistics_methods=dict(mean=HistoryBuffer.max))

    class Poison:
        def __reduce__(self):
            return HistoryBuffer, (), state

    torch.save(Poison(), tmp_path / 'poison.pth')
    assert read_checkpoint(str(tmp_path / 'poison.pth')).statistics('mean') == 2
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics('mean') == 2


def test_persistent_modules_are_refused(tmp_path, monkeypatch):
    """The old format's, by which PyTorch compares source files and writes patches."""
    monkeypatch.chdir(tmp_path)
    body = b'\x80\x02(' + inner('module') + b'cargparse\nNamespace\n'
    body += inner('x.py') + inner('source') + b'tQ.'
    refused(rewritten(tmp_path / 'module.pth', lambda _: body, legacy=True), 'persistent module')
    assert [path.name for path in tmp_path.iterdir()] == ['module.pth']


def test_tar_files_are_refused(tmp_path):
    path = tmp_path / 'old.pth'
    with tarfile.open(path, 'w') as tar:
        for name in ('storages', 'tensors', 'pickle'):
            tar.addfile(tarfile.TarInfo(name))
    refused(path, 'is a tar file')


def test_storages_have_the_size_that_is_claimed(tmp_path):
    """PyTorch 2.1 reads on into other memory."""
    path = rewritten(tmp_path / 'long.pth', lambda p: p.replace(b'K\x04', b'M\x00\x40'))
    refused(path, 'of another size')


ARRAY = np.ones(1).__reduce__()[:2]


@pytest.mark.parametrize(
    'function, args, state',
    [
        (np.dtype, ('O',), None),
        (np.dtype, ('V8',), None),
        (np.dtype, ('f8, O',), None),
        (np.dtype, ('f8',), (3, '<', None, ('a',), {'a': (np.dtype('f4'), 0)}, 8, 1, 0)),
        (np.dtype, ('f8',), (3, '<', (np.dtype('f4'), (2,)), None, None, 8, 1, 0)),
        (np.dtype, ('f8',), (4, '<', None, None, None, -1, -1, 0, {})),
        (np.ndarray, ((1,), np.dtype('f8'), b'A' * 8), None),
        (*ARRAY, (1, (99,), np.dtype('f8'), False, b'A')),
        (*ARRAY, (1, (-1, -8), np.dtype('f8'), False, b'A' * 64)),
        (*ARRAY, (1, (1,), 'O', False, b'A' * 8)),
        (np.float64(1).__reduce__()[0], (np.dtype('f8'), b'A'), None),
        (tuple, ([1],), None),
        (torch.Tensor, (3,), None),
        (torch.UntypedStorage, (8,), None),
        (torch.nn.Parameter, (torch.ones(1),), None),
        (HistoryBuffer.register_statistics, (len,), None),
    ],
)
def test_what_corrupts_memory_is_refused(tmp_path, function, args, state):
    class Craft:
        def __reduce__(self):
            return (function, args) if state is None else (function, args, state)

    path = str(tmp_path / 'craft.pth')
    torch.save(Craft(), path)
    refused(path)


def test_flags_of_dtypes_are_not_believed(tmp_path):
    class Craft:
        def __reduce__(self):
            return np.dtype, ('f8', False, True), (3, '>', None, None, None, 99, 99, 63)

    torch.save(Craft(), tmp_path / 'craft.pth')
    dtype = read_checkpoint(str(tmp_path / 'craft.pth'))
    assert dtype == np.dtype('>f8') and dtype.flags == np.dtype('>f8').flags
    assert np.dtype('f8').isnative


def test_keyword_arguments_are_refused(tmp_path):
    """By these torch's classes take pointers."""
    body = b'\x80\x04ctorch\nSize\n)' + inner({'cdata': 1}) + b'\x92.'
    refused(rewritten(tmp_path / 'pointer.pth', lambda _: body), 'does not write')


CONFIG = b'\x80\x02cmmengine.config.config\nConfigDict\n}'


@pytest.mark.parametrize(
    'error, body',
    [
        (MemoryError, b'\x80\x02cbuiltins\nbytearray\n' + inner(2**62) + b'\x85R.'),
        (RecursionError, b'\x80\x02cbuiltins\nset\n)' + b'\x85' * 200_000 + b'R.'),
        (RecursionError, CONFIG + inner('a') + b']' * 5000 + b'a' * 4999 + b's\x85R.'),
    ],
)
def test_greed_is_one_line(tmp_path, error, body):
    path = rewritten(tmp_path / 'greedy.pth', lambda _: body)
    with pytest.raises(CheckpointError, match='more memory than there is') as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value) and isinstance(caught.value.__cause__, error)


def test_names_in_messages_stay_on_the_line(tmp_path):
    body = b'\x80\x04' + inner('os\n\x1b[2J') + inner('system') + b'\x93.'
    refused(rewritten(tmp_path / 'name.pth', lambda _: body), r'asks for os\\n')


def test_plain_python_values_load(tmp_path):
    saved = dict(
        counter=collections.Counter('aab'),
        deque=collections.deque([1, 2], 3),
        lists=collections.defaultdict(list, {1: [2]}),
        ordered=collections.OrderedDict(a=1),
        args=argparse.Namespace(lr=0.1),
        config=ConfigDict(a=dict(b=[1, dict(c=2)])),
        time=datetime.datetime.now(datetime.timezone.utc),
        took=datetime.timedelta(1),
        path=pathlib.PurePosixPath('a/b'),
        here=pathlib.Path('a/b'),
        types=[int, float, str, bool, list, tuple, dict],
        others=[{1}, frozenset([1]), range(3), slice(1), 1j, b'a', bytearray(b'a'), 2**99],
        layout=torch.strided,
        device=torch.device('cpu'),
        big_endian=np.arange(3, dtype='>f4'),
        fortran=np.asfortranarray(np.ones((2, 3))),
        scalars=[np.float32(1), np.str_('a'), np.bool_(True)],
    )
    saved['ordered']._metadata = {'version': 1}
    for protocol in (2, 4, 5):
        path = str(tmp_path / f'{protocol}.pth')
        torch.save(saved, path, pickle_protocol=protocol)
        loaded = read_checkpoint(path)
        arrays = {name: loaded.pop(name) for name in ('big_endian', 'fortran')}
        for name, array in arrays.items():
            assert np.array_equal(array, saved[name]) and array.dtype.kind == 'f'
            assert array.flags.writeable
        assert loaded == {name: value for name, value in saved.items() if name not in arrays}
        assert loaded['ordered']._metadata == {'version': 1}
        assert type(loaded['config'].a) is ConfigDict and loaded['config'].a.b[1].c == 2


def test_tensors_with_attributes_load(tmp_path):
    """As ``nn.Buffer`` is."""
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(2))
    tensor.persistent = parameter.note = True
    torch.save([tensor, parameter], tmp_path / 'buffer.pth')
    loaded = read_checkpoint(str(tmp_path / 'buffer.pth'))
    assert torch.equal(loaded[0], tensor) and type(loaded[0]) is torch.Tensor
    assert torch.equal(loaded[1], parameter) and type(loaded[1]) is torch.nn.Parameter


SCHEDULERS = dict(
    Constant={},
    CosineAnnealing=dict(T_max=4),
    CosineRestart=dict(periods=[1, 2], restart_weights=[1, 1], eta_min=0),
    Exponential=dict(gamma=0.9),
    Linear={},
    MultiStep=dict(milestones=[1, 2, 2]),
    OneCycle=dict(eta_max=0.1, total_steps=5),
    Poly=dict(power=2),
    ReduceOnPlateau=dict(monitor='loss'),
    Step=dict(step_size=2),
)


@pytest.mark.parametrize(
    'name', sorted(k for k, v in PARAM_SCHEDULERS.module_dict.items() if 'mmengine' in v.__module__)
)
def test_every_scheduler_resumes(tmp_path, name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    kind = re.match('(.*)(LR|Momentum|ParamScheduler)$', name)
    cfg = dict(type=name, optimizer=optimizer, **SCHEDULERS[kind.group(1)])
    if kind.group(2) == 'ParamScheduler':
        cfg['param_name'] = 'lr'
    saved = PARAM_SCHEDULERS.build(cfg).state_dict()
    torch.save(saved, tmp_path / 'scheduler.pth')
    assert read_checkpoint(str(tmp_path / 'scheduler.pth')) == saved


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, *inputs, mode='loss'):
        return dict(loss=self.norm(self.layer(torch.stack(inputs))).sum())


def test_what_a_runner_saves_resumes(tmp_path):
    def runner(**kwargs):
        return Runner(
            Toy(),
            str(tmp_path),
            train_dataloader=dict(
                dataset=[torch.randn(2) for _ in range(4)],
                sampler=dict(type='DefaultSampler', shuffle=True),
                batch_size=2,
                collate_fn=dict(type='pseudo_collate'),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=kwargs.pop('epochs')),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1)),
            param_scheduler=[
                dict(type='MultiStepLR', milestones=[1]),
                dict(type='OneCycleLR', eta_max=0.1, total_steps=9, by_epoch=False),
            ],
            custom_hooks=[dict(type='EMAHook')],
            default_scope='mmengine',
            experiment_name=f'toy{len(kwargs)}_{tmp_path.name}',
            **kwargs,
        )

    runner(epochs=1).train()
    path = str(tmp_path / 'epoch_1.pth')
    assert read_checkpoint(path).keys() >= {'message_hub', 'param_schedulers', 'ema_state_dict'}
    resumed = runner(epochs=2, load_from=path, resume=True)
    resumed.train()
    assert resumed.epoch == 2


@pytest.fixture
def cached_bomb(tmp_path, monkeypatch):
    """Puts a bomb where torch.hub keeps its downloads."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setattr(checkpoint_io, 'download', lambda *_, **__: pytest.fail('network'))
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)

    def put(url):
        torch.save(dict(state_dict={}, x=Bomb(tmp_path / 'it_ran')), folder / file_name(url))

    yield put
    assert not (tmp_path / 'it_ran').exists()


def load_refused(url, match='asks for .*system.*refused'):
    with pytest.raises(CheckpointError, match=match) as error:
        CheckpointLoader.load_checkpoint(url)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'url',
    [
        'https://example.org/bomb.pth',
        'torchvision://resnet18',
        'modelzoo://resnet18',
        'mmcls://resnet50',
        'open-mmlab://detectron2/resnet50_caffe',
        'openmmlab://detectron2/resnet50_caffe',
    ],
)
def test_code_is_refused_under_every_scheme(url, cached_bomb):
    scheme, name = url.split('://')
    models = {
        'https': lambda: {name: url},
        'mmcls': mmengine_checkpoint.get_mmcls_models,
        'torchvision': mmengine_checkpoint.get_torchvision_models,
        'modelzoo': mmengine_checkpoint.get_torchvision_models,
    }.get(scheme, mmengine_checkpoint.get_external_models)()
    cached_bomb(models[name])
    load_refused(url)


def test_code_is_refused_in_model_homes(tmp_path, cached_bomb, monkeypatch):
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    (tmp_path / 'open_mmlab.json').write_text('{"own": "bomb.pth"}')
    torch.save(dict(x=Bomb(tmp_path / 'it_ran')), tmp_path / 'bomb.pth')
    load_refused('openmmlab://own')


@pytest.mark.parametrize(
    'url', ['s3://bucket/bomb.pth', 'petrel://b/bomb.pth', 'a:s3://b/bomb.pth']
)
def test_code_is_refused_from_object_storage(url, tmp_path, cached_bomb, monkeypatch):
    torch.save(dict(x=Bomb(tmp_path / 'it_ran')), tmp_path / 'bomb.pth')
    backend = SimpleNamespace(get=lambda url: (tmp_path / 'bomb.pth').read_bytes())
    monkeypatch.setattr(checkpoint_io, 'get_file_backend', lambda *_, **__: backend)
    load_refused(url, f'{url} asks for .*system.*refused')


def test_code_is_refused_from_pavi(tmp_path, cached_bomb, monkeypatch):
    torch.save(dict(x=Bomb(tmp_path / 'it_ran')), tmp_path / 'bomb.pth')
    model = SimpleNamespace(
        name='bomb.pth', download=lambda to: shutil.copy(tmp_path / 'bomb.pth', to)
    )
    modelcloud = SimpleNamespace(get=lambda path: model)
    monkeypatch.setitem(sys.modules, 'pavi', SimpleNamespace(modelcloud=modelcloud))
    load_refused('pavi://bomb.pth')


URL = 'https://example.org/files/weights.pth?download=1'


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web of one file; ``web.events`` is what happened, in order."""
    web = SimpleNamespace(content=b'', rank=0, events=[], path=tmp_path / file_name(URL))

    def download(url, path, progress):
        web.events.append('download')
        if web.content is None:
            raise CheckpointError('404')
        Path(path).write_bytes(web.content)

    monkeypatch.setattr(checkpoint_io, 'download', download)
    monkeypatch.setattr(checkpoint_io, 'get_rank', lambda: web.rank)
    monkeypatch.setattr(checkpoint_io, 'barrier', lambda: web.events.append('barrier'))
    buffer = io.BytesIO()
    torch.save({'a': torch.ones(1)}, buffer)
    web.good = buffer.getvalue()
    web.load = lambda: load_from_http(URL, model_dir=str(tmp_path))
    return web


def test_each_node_downloads_once(web):
    web.content = web.good
    assert web.load()['a'] == 1 and web.load()['a'] == 1
    assert web.events == ['download', 'barrier', 'barrier', 'barrier', 'barrier']
    web.path.unlink()
    web.rank, web.events[:] = 8, []  # the first of another node
    assert web.load()['a'] == 1
    assert web.events == ['barrier', 'download', 'barrier']


def test_a_failed_download_leaves_no_rank_waiting(web):
    web.content = None
    with pytest.raises(CheckpointError, match='404'):
        web.load()
    assert web.events == ['download', 'barrier', 'barrier']


@pytest.mark.parametrize('bad', [b'<html>404</html>', b'', b'{}', 'cut'])
def test_what_is_no_checkpoint_does_not_stay_in_the_cache(web, bad):
    web.content = web.good[:-100] if bad == 'cut' else bad
    with pytest.raises(CheckpointError, match='the copy is deleted') as error:
        web.load()
    assert URL in str(error.value) and '\n' not in str(error.value)
    assert not web.path.exists() and web.events[-1] == 'barrier'
    web.content = web.good
    assert web.load()['a'] == 1


def test_init_cfg_takes_urls(server, tmp_path, monkeypatch):
    """Over real HTTP, and once."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    buffer = io.BytesIO()
    torch.save({'a': torch.ones(1)}, buffer)
    url = server.put('weights.pth', buffer.getvalue(), cuts=[100])
    for _ in range(2):
        assert CheckpointLoader.load_checkpoint(url)['a'] == 1
    assert len(server.asked) == 2  # the second for the rest of the file
    assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == [file_name(url)]


@pytest.mark.parametrize(
    'key', ['encoder_q.conv1.weight', 'queue', 'neck.0.weight', 'head.w', 'projector.0', 'center']
)
def test_unknown_sources_are_refused(key):
    tensors = {'conv1.weight': torch.ones(1), key: torch.ones(1)}
    with pytest.raises(CheckpointError, match='f.pth .*format is not known yet.*prefix=') as error:
        recognise(dict(state_dict=tensors), name='f.pth')
    assert '\n' not in str(error.value)
    assert recognise(tensors, prefix='').backbone.keys() == tensors.keys()
    moco = {'module.encoder_q.conv1.weight': torch.ones(1), 'module.queue': torch.ones(1)}
    assert recognise(dict(state_dict=moco), prefix='encoder_q').backbone.keys() == {'conv1.weight'}


@pytest.mark.parametrize('meta', [None, 'a', ['a'], dict(mmdense='a')])
def test_extracted_backbones_are_taken(meta):
    tensors = {'conv1.weight': torch.ones(1), 'fc.weight': torch.ones(1)}
    found = recognise(dict(state_dict=tensors, author='somebody', meta=meta))
    assert found.backbone.keys() == {'conv1.weight'} and found.dropped == ['fc.weight']


# ---------------------------------------------------------------- folders of the Hugging Face hub


@pytest.fixture
def hub_folder(tmp_path):
    """A folder with a config, a ResNet in two shards and their index; and the ResNet's tensors."""
    from mmpretrain.models import ResNet
    from safetensors.torch import save_file

    tensors = ResNet(18).state_dict()
    names = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
    places = {key: names['layer3' in key or 'layer4' in key] for key in tensors}
    folder = tmp_path / 'hub'
    folder.mkdir()
    for name in names:
        save_file({k: v for k, v in tensors.items() if places[k] == name}, folder / name)
    (folder / 'config.json').write_text('{"architecture": "resnet18"}')
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps(dict(metadata={}, weight_map=places)))
    return folder, tensors


def test_shards(hub_folder):
    folder, tensors = hub_folder
    for path in (folder, folder / 'model.safetensors.index.json'):
        found = recognise(read_checkpoint(str(path))).backbone
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_folders_of_one_file(hub_folder):
    folder, tensors = hub_folder
    for path in folder.glob('model*'):
        path.unlink()
    torch.save(tensors, folder / 'pytorch_model.bin')
    assert read_checkpoint(str(folder)).keys() == tensors.keys()
    (folder / 'pytorch_model.bin').unlink()
    with pytest.raises(CheckpointError, match='config.json, but no model.safetensors or pytorch'):
        read_checkpoint(str(folder))


def test_incomplete_shards(hub_folder):
    folder, tensors = hub_folder
    index = folder / 'model.safetensors.index.json'
    places = json.loads(index.read_text())['weight_map']
    for text in ('', '{}', '[1]', '{"weight_map": {}}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match='is no index of shards.*Download it again'):
            read_checkpoint(str(folder))
    index.write_text(json.dumps(dict(weight_map={'a': '../secret.safetensors'})))
    with pytest.raises(CheckpointError, match='is no index of shards'):
        read_checkpoint(str(folder))
    index.write_text(json.dumps(dict(weight_map=dict(places, a=places['conv1.weight']))))
    with pytest.raises(CheckpointError, match='lists 1 tensors that .* do not hold, a first'):
        read_checkpoint(str(folder))
    index.write_text(json.dumps(dict(weight_map=places)))
    (folder / 'model-00002-of-00002.safetensors').unlink()
    with pytest.raises(CheckpointError, match='00002.safetensors does not exist, which .* lists'):
        read_checkpoint(str(folder))
    (folder / 'config.json').unlink()
    with pytest.raises(CheckpointError, match='is a directory: take .*safetensors.index.json'):
        read_checkpoint(str(folder))
