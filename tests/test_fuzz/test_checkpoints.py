# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""No checkpoint file runs code or fills the memory, whoever loads it once mmdense is imported."""

import collections
import copy
import functools
import importlib
import io
import operator
import os
import pickle
import shutil
import struct
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner import load_checkpoint as mmengine_load_checkpoint
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from mmdense.checkpoints import SelfSupPretrained, read_checkpoint, restricted_pickle
from mmdense.utils.errors import CheckpointError


@pytest.mark.parametrize('cases, seed', [(150, 0), pytest.param(1000, 1, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_mutated_files(fuzz, cases, seed):
    figures = fuzz('checkpoints', cases, seed)
    assert figures['cases'] >= cases
    assert figures['outcomes']['read'] and figures['outcomes']['refused'] > cases / 2
    assert figures['slowest'][0] < 10 and figures['grown_mb'] < 500


# ---------------------------------------------------------------- code


class Call:
    """Pickled, it is a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call

    def __call__(self):
        """What is called may be the result of another call."""


class Item:
    """Fills what ``kind`` makes; a call hides in what is filled in."""

    def __init__(self, kind, state):
        self.made = kind, (), state

    def __reduce__(self):
        return self.made


def _inner(value) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


# Ways to write a file; each is tried with an ordinary pickle too, which has to write it.
GADGETS = dict(
    os_system=lambda path: Call(os.system, f'touch {path}'),
    eval=lambda path: Call(eval, f'open({str(path)!r}, "w")'),
    exec=lambda path: Call(exec, f'open({str(path)!r}, "w")'),
    open=lambda path: Call(open, str(path), 'w'),
    importlib=lambda path: Call(
        Call(getattr, Call(importlib.import_module, 'os'), 'mkdir'), str(path)
    ),
    getattr=lambda path: Call(Call(getattr, Call(__import__, 'os'), 'mkdir'), str(path)),
    partial=lambda path: Call(functools.partial(os.mkdir, str(path))),
    reduce=lambda path: Call(functools.reduce, os.open, [str(path), os.O_CREAT]),
    methodcaller=lambda path: Call(operator.methodcaller('touch'), Path(path)),
    attrgetter=lambda path: Call(
        Call(operator.attrgetter('mkdir'), Call(__import__, 'os')), str(path)
    ),
    map=lambda path: Call(list, Call(map, os.mkdir, [str(path)])),
    function_type=lambda path: Call(
        Call(
            Call(getattr, Call(importlib.import_module, 'types'), 'FunctionType'),
            Call(compile, f'open({str(path)!r}, "w")', 'x', 'exec'),
            Call(vars, Call(importlib.import_module, 'builtins')),
        )
    ),
    subprocess=lambda path: Call(importlib.import_module('subprocess').call, ['touch', str(path)]),
    pickle_loads=lambda path: Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(path)))),
    torch_storage=lambda path: Call(
        torch.storage._load_from_bytes, _inner(Call(os.mkdir, str(path)))
    ),
    torch_load=lambda path: Call(
        functools.partial(torch.load, weights_only=False),
        Call(io.BytesIO, _inner(Call(os.mkdir, str(path)))),
    ),
    torch_save=lambda path: Call(torch.save, 1, str(path)),
    numpy_load=lambda path: Call(
        functools.partial(np.load, allow_pickle=True), _numpy_file(Call(os.mkdir, str(path)))
    ),
    numpy_tofile=lambda path: Call(np.savetxt, str(path), [1]),
    shutil=lambda path: Call(shutil.copy, __file__, str(path)),
    hook_of_a_tensor=lambda path: Call(
        torch._utils._rebuild_parameter, torch.ones(1), True, Call(os.mkdir, str(path))
    ),
    default_factory=lambda path: collections.defaultdict(int, a=Call(os.mkdir, str(path))),
    state=lambda path: Item(collections.OrderedDict, dict(a=Call(os.mkdir, str(path)))),
)


def _numpy_file(value):
    stream = io.BytesIO()
    np.save(stream, np.array([value], object), allow_pickle=True)
    return Call(io.BytesIO, stream.getvalue())


WEIGHTS = {'conv1.weight': torch.ones(2, 3, 1, 1)}

# Where a pickle is in a checkpoint, or a checkpoint in another.
PLACES = dict(
    state_dict=lambda bomb: dict(state_dict=dict(WEIGHTS, x=bomb)),
    meta=lambda bomb: dict(state_dict=WEIGHTS, meta=dict(cfg=bomb)),
    optimizer=lambda bomb: dict(state_dict=WEIGHTS, optimizer=dict(state={0: dict(step=bomb)})),
    param_schedulers=lambda bomb: dict(state_dict=WEIGHTS, param_schedulers=[dict(f=bomb)]),
    message_hub=lambda bomb: dict(
        state_dict=WEIGHTS,
        message_hub=dict(log_scalars=dict(a=HistoryBuffer([1.0], [1])), runtime_info=dict(a=bomb)),
    ),
    array=lambda bomb: dict(state_dict=WEIGHTS, a=np.array([bomb], object)),
    key=lambda bomb: dict(state_dict=WEIGHTS, pairs=[(bomb, 1), {1: (2, [bomb])}]),
    top=lambda bomb: bomb,
)


def write_zip(path, content):
    torch.save(content, path)


def write_legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(path, content):
    """As detectron2's, a pickle of arrays alone."""
    if isinstance(content, dict):
        tensors = content['state_dict']
        arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in tensors.items()}
        content = dict(content, state_dict=arrays)
    with open(path, 'wb') as file:
        pickle.dump(content, file, 4)


def _write_header(path, position, bomb):
    """Of the legacy format, whose main pickle is between others."""
    parts = [MAGIC_NUMBER, PROTOCOL_VERSION, dict(little_endian=True), WEIGHTS, []]
    parts[position] = bomb
    with open(path, 'wb') as file:
        for part in parts:
            pickle.dump(part, file, 2)


FORMATS = dict(zip=write_zip, legacy=write_legacy, pickle=write_pickle)


@pytest.fixture
def planted(tmp_path):
    """Where code would leave a trace, and whether nothing did."""
    proof = tmp_path / 'it_ran'
    yield proof
    assert not proof.exists()


@pytest.mark.parametrize('gadget', GADGETS)
def test_gadgets_work(gadget, tmp_path):
    """Else that nothing happens would mean nothing."""
    proof = tmp_path / 'it_ran'
    content = pickle.dumps(GADGETS[gadget](proof))
    try:
        pickle.loads(content)
    except Exception as error:
        print(error)
    assert proof.exists()


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('gadget', GADGETS)
def test_gadgets_are_refused(gadget, kind, planted, tmp_path):
    path = str(tmp_path / 'given.pth')
    FORMATS[kind](path, dict(state_dict=WEIGHTS, x=GADGETS[gadget](planted)))
    refused(path)


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('place', PLACES)
def test_code_is_refused_everywhere(place, kind, planted, tmp_path):
    path = str(tmp_path / 'given.pth')
    FORMATS[kind](path, PLACES[place](Call(os.mkdir, str(planted))))
    refused(path)


@pytest.mark.parametrize('position', range(5))
def test_code_is_refused_around_the_legacy_pickle(position, planted, tmp_path):
    path = str(tmp_path / 'given.pth')
    _write_header(path, position, Call(os.mkdir, str(planted)))
    refused(path)


@pytest.mark.parametrize('name', ['data.pkl', 'constants.pkl', 'code/x.py', 'data/0', 'version'])
def test_code_is_refused_in_every_record(name, planted, tmp_path):
    path, bomb = tmp_path / 'given.pth', pickle.dumps(Call(os.mkdir, str(planted)), 2)
    torch.save(dict(state_dict=WEIGHTS), path)
    rewrite(path, lambda record, body: bomb if record == name else body, [(name, bomb)])
    if name in ('data.pkl', 'constants.pkl'):
        refused(str(path))
    else:  # has no meaning, or another than a pickle's
        with suppress(CheckpointError):
            read_checkpoint(str(path))


def refused(path):
    with pytest.raises(CheckpointError, match='refused') as error:
        read_checkpoint(path)
    assert path in str(error.value) and str(error.value).isprintable()


def rewrite(path, change, extra=(), compression=zipfile.ZIP_STORED):
    """The zip with other records."""
    with zipfile.ZipFile(path) as old:
        records = {info.filename: old.read(info) for info in old.infolist()}
    top = next(iter(records)).partition('/')[0]
    for name, body in extra:
        records.setdefault(f'{top}/{name}', body)
    with zipfile.ZipFile(path, 'w', compression) as new:
        for name, body in records.items():
            new.writestr(name, change(name.partition('/')[2], body))


# ---------------------------------------------------------------- every loader


def by_runner(path, tmp_path, resume):
    class Toy(BaseModel):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 2, 1)

        def forward(self, inputs, mode='loss'):
            return dict(loss=self.conv1(inputs).sum())

    runner = Runner(
        Toy(),
        str(tmp_path / 'work'),
        train_dataloader=dict(
            dataset=[torch.ones(3, 2, 2)] * 2,
            sampler=dict(type='DefaultSampler'),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_scope='mmengine',
        experiment_name=tmp_path.name,
        load_from=str(path),
        resume=resume,
    )
    runner.train()


def by_last_checkpoint(path, tmp_path):
    """``--resume auto``."""
    work = tmp_path / 'work'
    work.mkdir()
    (work / 'last_checkpoint').write_text(str(path))
    from mmengine.runner import find_latest_checkpoint

    by_runner(find_latest_checkpoint(str(work)), tmp_path, resume=True)


def by_init_cfg(path, tmp_path, init, scope, kind):
    with DefaultScope.overwrite_default_scope(scope):
        module = MODELS.build(dict(type=kind, depth=18, init_cfg=dict(type=init, checkpoint=path)))
    module.init_weights()


class Plain(BaseModule):
    def __init__(self, checkpoint):
        super().__init__(dict(type='Pretrained', checkpoint=checkpoint))
        self.conv1 = torch.nn.Conv2d(3, 2, 1)


LOADERS = dict(
    read_checkpoint=lambda path, _: read_checkpoint(path),
    buffer=lambda path, _: read_checkpoint(io.BytesIO(Path(path).read_bytes())),
    load_checkpoint=lambda path, _: mmengine_load_checkpoint(torch.nn.Conv2d(3, 2, 1), path),
    checkpoint_loader=lambda path, _: CheckpointLoader.load_checkpoint(path),
    init_cfg=lambda path, _: Plain(path).init_weights(),
    self_sup_pretrained=lambda path, _: SelfSupPretrained(path)(torch.nn.Conv2d(3, 2, 1)),
    load_from=lambda path, tmp: by_runner(path, tmp, resume=False),
    resume=lambda path, tmp: by_runner(path, tmp, resume=True),
    resume_auto=by_last_checkpoint,
    mmpretrain=lambda path, tmp: by_init_cfg(path, tmp, 'Pretrained', 'mmpretrain', 'ResNet'),
    mmdet=lambda path, tmp: by_init_cfg(path, tmp, 'Pretrained', 'mmdet', 'ResNet'),
    mmdet_ours=lambda path, tmp: by_init_cfg(path, tmp, 'mmdense.Pretrained', 'mmdet', 'ResNet'),
    mmseg=lambda path, tmp: by_init_cfg(path, tmp, 'Pretrained', 'mmseg', 'ResNetV1c'),
)


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('loader', LOADERS)
def test_every_loader_refuses_code(loader, kind, planted, tmp_path):
    package = loader.partition('_')[0]
    if package in ('mmdet', 'mmseg'):
        pytest.importorskip(f'{package}.models')
    path = str(tmp_path / 'given.pth')
    FORMATS[kind](path, dict(state_dict=WEIGHTS, meta=Call(os.mkdir, str(planted))))
    with pytest.raises(CheckpointError, match='asks for posix.mkdir .*refused'):
        LOADERS[loader](path, tmp_path)


def test_a_custom_import_is_enough(run, planted, tmp_path):
    """In a process of another project."""
    path = str(tmp_path / 'given.pth')
    write_zip(path, dict(state_dict=WEIGHTS, meta=Call(os.mkdir, str(planted))))
    code = (
        'from mmengine.utils import import_modules_from_strings as load;'
        'from mmengine.runner import load_state_dict, load_checkpoint;'
        f'load(["mmdense.checkpoints"]); load_checkpoint(None, {path!r})'
    )
    done = run(sys.executable, '-c', code)
    assert 'CheckpointError' in done.stdout and 'refused' in done.stdout


# ---------------------------------------------------------------- memory


def greedy(path, match):
    assert Path(path).stat().st_size < 3 << 20
    start = time.process_time()
    with pytest.raises(CheckpointError, match=match) as error:
        read_checkpoint(str(path))
    assert str(path) in str(error.value) and str(error.value).isprintable()
    assert time.process_time() - start < 20


def write_body(path, body, legacy=False):
    """A checkpoint whose pickle is written by hand, by protocol 2."""
    body = b'\x80\x05' + body + b'.'
    if legacy:
        head = [pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {})]
        path.write_bytes(b''.join(head) + body + pickle.dumps([], 2))
    else:
        torch.save({'a': torch.ones(4)}, path)
        rewrite(path, lambda name, old: body if name == 'data.pkl' else old)


def inner(value) -> bytes:
    """The opcodes of a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def storage(count, key='0', kind=b'ctorch\nFloatStorage\n', tail=b'') -> bytes:
    body = b'(' + inner('storage') + kind + inner(key) + inner('cpu') + inner(count) + tail
    return body + b'tQ'


def tensor(size, stride, offset=0, legacy=False) -> bytes:
    made = storage(4, tail=b'N' if legacy else b'')
    body = b'ctorch._utils\n_rebuild_tensor_v2\n(' + made + inner(offset) + inner(size)
    return body + inner(stride) + b'\x89}tR'


MANY = b'(' + b'K\x01' * 100_000 + b'l'  # a list of 200 kB
ONCE = b'h\x00\x85'  # a tuple of it
TWICE = b'h\x00h\x00\x86'


def repeated(call: bytes, times=2000) -> bytes:
    """``call`` takes what is in memo 0 and is as long as that each time."""
    return b'](' + call * times + b'e'


def nested(opcode: bytes, depth: int) -> bytes:
    """Each of ten times the one before."""
    return b'K\x01' + b''.join(b'q%c' % i + b'0(' + b'h%c' % i * 10 + opcode for i in range(depth))


COPY = dict(
    set=b'cbuiltins\nset\n',
    frozenset=b'cbuiltins\nfrozenset\n',
    deque=b'ccollections\ndeque\n',
    size=b'ctorch\nSize\n',
    history=b'cmmengine.logging.history_buffer\nHistoryBuffer\n',
)
GREED = dict(
    {
        name: MANY
        + b'q\x000'
        + repeated(call + (TWICE if name == 'history' else b'h\x00\x85') + b'R')
        for name, call in COPY.items()
    },
    zeros=b'cbuiltins\nbytearray\n' + inner(2**33) + b'\x85R',
    zeros_new=b'cbuiltins\nbytes\n' + inner(2**33) + b'\x85\x81',
    range=b'ccollections\ndeque\ncbuiltins\nrange\n' + inner((2**33,)) + b'R\x85R',
    bytes=inner(bytes(1 << 20)) + b'q\x000' + repeated(b'cbuiltins\nbytearray\nh\x00\x85R'),
    text=b'X'
    + struct.pack('<I', 1 << 20)
    + b'a' * (1 << 20)
    + b'q\x000'
    + repeated(b'c_codecs\nencode\nh\x00\x85R'),
    config=b'cmmengine.config.config\nConfigDict\n}' + inner('a') + nested(b'l', 12) + b's\x85R',
    hash=b'}' + nested(b't', 12) + b'K\x01s',
    hash_in_a_set=b'cbuiltins\nset\n(' + nested(b't', 12) + b'l\x85R',
    expanded=tensor((2**33,), (0,)),
)


@pytest.mark.parametrize('name', GREED)
def test_small_pickles_stay_small(name, tmp_path, grown):
    path = tmp_path / 'greedy.pth'
    write_body(path, GREED[name])
    greedy(path, 'asks for more memory than there is')
    assert grown() < 1000


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize(
    'opcode', [b'\x96', b'\x8e', b'\x8d', b'\x95'], ids=['bytearray', 'bytes', 'str', 'frame']
)
def test_lengths_are_not_believed(opcode, legacy, tmp_path, grown):
    path = tmp_path / 'greedy.pth'
    write_body(path, opcode + struct.pack('<Q', 2**33), legacy)
    greedy(path, 'is damaged or cut short|asks for more memory than there is')
    assert grown() < 100


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize(
    'size, stride, offset',
    [((2**33,), (1,), 0), ((5,), (1,), 0), ((2, 2), (3, 1), 0), ((4,), (1,), 1), ((1,), (1,), -1)],
)
def test_tensors_are_inside_their_storage(size, stride, offset, legacy, tmp_path, grown):
    """PyTorch would enlarge it, by what was in memory."""
    path = tmp_path / 'greedy.pth'
    write_body(path, tensor(size, stride, offset, legacy), legacy)
    greedy(path, 'a tensor of another size than its storage')
    assert grown() < 100


@pytest.mark.parametrize('number', [2, 3])
def test_storages_are_not_longer_than_the_file(number):
    """Together; each could be. PyTorch makes them before it reads their data."""
    parts = [storage(100, key=str(i), tail=b'N') for i in range(number)]
    body = b'\x80\x02](' + b''.join(parts) + b'e.'
    unpickler = restricted_pickle.module(1000, None).Unpickler(io.BytesIO(body))
    made = []
    unpickler.persistent_load = made.append
    unpickler.find_class = lambda *_: torch.FloatStorage
    if number == 2:
        unpickler.load()
    else:
        with pytest.raises(EOFError):
            unpickler.load()
    assert len(made) == 2


@pytest.mark.parametrize('count', [2**40, 2**33, 2000, -1])
def test_the_old_format_holds_what_it_says(count, tmp_path, grown):
    path = tmp_path / 'greedy.pth'
    write_body(path, storage(count, tail=b'N'), legacy=True)
    greedy(path, 'is damaged or cut short')
    assert grown() < 100


def test_the_old_format_gives_every_storage_its_data(tmp_path):
    """Else it would be what lay in memory."""
    path = tmp_path / 'greedy.pth'
    write_body(path, tensor((4,), (1,), legacy=True), legacy=True)
    greedy(path, 'is damaged or cut short')


@pytest.fixture
def packed(tmp_path):
    """Half a megabyte that is half a gigabyte."""
    path = tmp_path / 'packed.pth'
    torch.save({'a': torch.ones(4)}, path)
    rewrite(path, lambda name, body: body, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive:
        top = archive.namelist()[0].partition('/')[0]
        with archive.open(f'{top}/data/1', 'w', force_zip64=True) as record:
            for _ in range(512):
                record.write(bytes(1 << 20))
    return path


def test_compressed_files_are_refused(packed, grown):
    greedy(packed, 'is a compressed zip.*refused')
    assert grown() < 100


def test_parts_that_overlap_are_refused(tmp_path, grown):
    """A thousand entries for the same megabyte."""
    path = tmp_path / 'overlapping.pth'
    torch.save({'a': torch.ones(1 << 18)}, path)
    with zipfile.ZipFile(path, 'a') as archive:
        (info,) = (i for i in archive.infolist() if i.filename.endswith('data/0'))
        for i in range(1, 1000):
            entry = copy.copy(info)
            entry.filename = f'{info.filename[:-1]}{i}'
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive._didModify = True
    greedy(path, 'is damaged or cut short')
    assert grown() < 100


def test_large_files_stay_loadable(tmp_path):
    """What is counted is far below what a file of that size may."""
    saved = dict(
        state_dict={f'layer{i}.weight': torch.ones(1000) for i in range(300)},
        arrays=[np.ones(1 << 20) for _ in range(4)],
        histories=[HistoryBuffer(list(range(1, 20_001)), [1] * 20_000) for _ in range(20)],
        view=torch.ones(1000).expand(1000, 1000),
        meta=dict(cfg=ConfigDict({f'a{i}': dict(b=[i] * 10) for i in range(1000)})),
    )
    for kind in ('zip', 'legacy'):
        FORMATS[kind](tmp_path / 'large.pth', saved)
        loaded = read_checkpoint(str(tmp_path / 'large.pth'))
        assert loaded['view'].shape == (1000, 1000) and len(loaded['arrays']) == 4
