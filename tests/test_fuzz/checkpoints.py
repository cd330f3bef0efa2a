# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The checkpoint path as a fuzz target: any bytes are loaded, or an error of one line; nothing
that they name is called."""

import collections
import io
import os
import pickle
import sys
import zipfile

import numpy as np
import torch
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mutate import mutated

from mmdense.checkpoints import read_checkpoint, recognise
from mmdense.utils.errors import CheckpointError

# What Python tells its auditors when something is run, written, removed or sent.
_EVENTS = ('os.', 'subprocess.', 'shutil.', 'socket.', 'ctypes.', 'pty.', 'webbrowser.')
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def training_checkpoint() -> dict:
    """Small, with all that MMEngine saves."""
    weights = torch.arange(12.0).reshape(4, 3)
    model = collections.OrderedDict({'backbone.conv1.weight': weights, 'neck.b': torch.ones(2)})
    model._metadata = {'': dict(version=1)}
    return dict(
        meta=dict(epoch=3, iter=12, cfg='a = 1', seed=np.int64(7), own=ConfigDict(a=[1, (2, 3)])),
        state_dict=model,
        optimizer=dict(state={0: dict(exp_avg=weights.half())}, param_groups=[dict(lr=0.1)]),
        message_hub=dict(
            log_scalars={'train/loss': HistoryBuffer([1.0, 2.0], [1, 1])},
            runtime_info=dict(iter=12, lr=np.float64(0.1)),
        ),
        param_schedulers=[dict(last_step=3, base_values=[0.1])],
    )


def samples() -> dict:
    """Files as mmdense, mmpretrain and detectron2 write them, in all of PyTorch's formats."""
    ours = training_checkpoint()
    theirs = dict(state_dict={'backbone.conv1.weight': torch.ones(2, 3, 1, 1)}, meta={})
    arrays = {'stem.conv1.weight': np.ones((2, 3), np.float32), 'res2.0.norm.bias': np.zeros(2)}

    def save(content, **kwargs):
        stream = io.BytesIO()
        torch.save(content, stream, **kwargs)
        return stream.getvalue()

    legacy = dict(_use_new_zipfile_serialization=False)
    return dict(
        zip_ours=save(ours),
        zip_protocol_4=save(ours, pickle_protocol=4),
        zip_theirs=save(theirs),
        legacy_ours=save(ours, **legacy),
        legacy_theirs=save(theirs, **legacy),
        detectron2=pickle.dumps(dict(model=arrays, __author__='someone'), 2),
        detectron2_protocol_5=pickle.dumps(dict(model=arrays), 5),
    )


def zip_fields(content: bytes) -> list:
    """(offset, bytes, order) of the sizes and offsets in a zip."""
    fields = []
    for start, at in ((b'PK\x03\x04', (18, 22)), (b'PK\x01\x02', (10, 20, 24, 28, 30, 42))):
        position = content.find(start)
        while position >= 0:
            fields += [(position + i, 4 if i >= 18 and i not in (28, 30) else 2) for i in at]
            position = content.find(start, position + 1)
    end = content.rfind(b'PK\x05\x06')
    fields += [(end + i, n) for i, n in ((8, 2), (10, 2), (12, 4), (16, 4))] if end >= 0 else []
    return [(at, size, 'little') for at, size in fields]


def with_pickle(content: bytes, change) -> bytes:
    """The zip with another pickle, and with the checksum of that."""
    old, stream = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with old, zipfile.ZipFile(stream, 'w') as new:
        for info in old.infolist():
            body = old.read(info)
            new.writestr(info, change(body) if info.filename.endswith('data.pkl') else body)
    return stream.getvalue()


def prepare(folder):
    files = samples()
    fields = {name: zip_fields(content) for name, content in files.items()}
    pickles = [c for name, c in files.items() if not name.startswith('zip')]
    pickles += [
        zipfile.ZipFile(io.BytesIO(c)).read('archive/data.pkl')
        for name, c in files.items()
        if name.startswith('zip')
    ]
    calls = [pickle.dumps(call, 2)[2:-1] for call in (eval, print, open, np.load, torch.load)]

    @st.composite
    def cases(draw):
        name = draw(st.sampled_from(sorted(files)))
        if name.startswith('zip') and draw(st.booleans()):

            def change(body):
                return draw(mutated(body, pickles + calls, header=256))

            return name, with_pickle(files[name], change)
        return name, draw(mutated(files[name], pickles + calls, fields[name], header=256))

    path = folder / 'checkpoint.pth'
    loading = False

    def watch(event, args):
        if not loading:
            return
        ran = event.startswith(_EVENTS) and event not in ('os.listdir', 'os.scandir')
        ran |= event == 'exec' and args[0].co_filename.startswith('<')  # no module's import
        ran |= event == 'open' and bool((args[2] or 0) & _WRITE)
        if ran:
            print(f'code ran: {event}{args}', file=sys.stderr, flush=True)
            os._exit(3)  # an exception would be taken for one of the file

    sys.addaudithook(watch)

    def check(name, content):
        nonlocal loading
        path.write_bytes(content)
        loading = True
        try:
            loaded = read_checkpoint(str(path))
            found = recognise(loaded, name=str(path))
        except CheckpointError as error:
            text = str(error)
            assert str(path) in text and text.isprintable() and len(text) < 600, text
            return 'refused'
        finally:
            loading = False
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.backbone.values())
        return 'read'

    return cases, check, ('zip_ours', files['zip_ours'])
