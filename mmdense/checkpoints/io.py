# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Read checkpoint files without running code that is in them."""

import io
import json
import os
import struct
import tarfile
import zipfile
from contextlib import suppress
from typing import Any, BinaryIO, Optional, Union

import safetensors.torch
import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader

from mmdense.utils.download import download, file_name
from mmdense.utils.errors import CheckpointError
from mmdense.utils.mmengine_patches import replace_checkpoint_loaders
from mmdense.utils.paths import WEIGHTS, check_checkpoint, is_of_tensorflow, not_of_pytorch

from . import restricted_pickle


class _NotWholeError(CheckpointError):
    """Tell that a file is not the one that was asked for: another download may be."""


def read_checkpoint(
    path: Union[str, BinaryIO], map_location: Any = 'cpu', name: Optional[str] = None
) -> Any:
    """Load a checkpoint file without running code that is in it.

    Every load of a local or downloaded file goes through here once mmdense is
    in use: it takes the place of MMEngine's loaders, so that ``load_from``,
    ``--resume`` and ``init_cfg`` are covered too.

    Args:
        path (str | BinaryIO): A file that ``torch.save`` wrote, in either of
            its formats, the pickle of a dict of arrays (detectron2's), or a file of the format
            safetensors; or a folder of the Hugging Face hub, with a config.json and weights, or
            the index of its shards.
        map_location: As in ``torch.load``.
        name (str, optional): Of the file, for messages. Defaults to its path.

    Returns:
        Any: What was saved.

    Raises:
        CheckpointError: One line, when the file is missing, empty, cut short,
            something else (a web page), or asks to run code.
    """
    if hasattr(path, 'read'):
        return _read(path, name or '(a buffer)', map_location)
    path = os.path.expanduser(str(path))
    check_checkpoint(path)
    if os.path.isdir(path):
        path = _find_weights(path)
    if path.endswith('.index.json') and '://' not in path:
        return _read_shards(path, map_location)
    try:
        with open(path, 'rb') as file:
            return _read(file, name or path, map_location)
    except OSError as error:  # of open(): _read turns its own into CheckpointErrors
        raise CheckpointError(f'checkpoint {path} cannot be read: {error.strerror}') from error


def _find_weights(folder: str) -> str:
    """Return the file of weights, or their index, in a folder of the Hugging Face hub."""
    for name in WEIGHTS:
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise CheckpointError(
        f'{folder} has a config.json, but no {WEIGHTS[0]} or {WEIGHTS[2]}, nor an index of their '
        'shards: download the weights into it too, or give another file by its path'
    )


def _read_shards(index: str, map_location: Any) -> dict:
    """Read all files that an index of the Hugging Face hub lists, which lie next to it."""
    try:
        with open(index, encoding='utf-8') as file:
            places = json.load(file)['weight_map']
        names = sorted(set(places.values()))
        if not names or any(name != os.path.basename(name) for name in names):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{index} is no index of shards: it needs a weight_map from tensors to names of files '
            'next to it. Download it again'
        ) from error
    tensors: dict = {}
    for name in names:
        path = os.path.join(os.path.dirname(index), name)
        if not os.path.isfile(path):
            raise CheckpointError(f'{path} does not exist, which {index} lists: download it too')
        content = read_checkpoint(path, map_location)
        tensors.update(content.get('state_dict', content) if isinstance(content, dict) else {})
    lost = sorted(set(places) - set(tensors))
    if lost:
        raise CheckpointError(
            f'{index} lists {len(lost)} tensors that the files next to it do not hold, {lost[0]} '
            'first: download them again'
        )
    return dict(state_dict=tensors)


def _read(file: BinaryIO, name: str, map_location: Any) -> Any:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(256)
    file.seek(0)
    if size == 0:
        raise _NotWholeError(f'checkpoint {name} is empty: copy or download it again')
    if start.lstrip().startswith((b'<', b'version https://git-lfs')):
        what = 'a web page or XML' if start.lstrip()[:1] == b'<' else 'a Git LFS pointer'
        raise _NotWholeError(
            f'checkpoint {name} is {what}, not weights: download the file itself and try again'
        )
    if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') < size:
        return _read_safetensors(file, name, map_location)
    try:
        if start.startswith(b'PK'):
            pickle_module = restricted_pickle.module(size, _storage_sizes(file, size, name))
        else:
            _refuse_tar(file, name)
            pickle_module = restricted_pickle.module(size, None)
            file.seek(0)
            # torch.save begins with a number; detectron2's model zoo is the pickle of a dict
            if start.startswith(b'\x80'):
                if _is_of_jax(file):
                    raise CheckpointError(f'checkpoint {name} {not_of_pytorch("JAX")}')
                content = pickle_module.Unpickler(file, encoding='latin1').load()
                if isinstance(content, dict):
                    return content
        file.seek(0)
        return torch.load(
            file, map_location=map_location, pickle_module=pickle_module, weights_only=False
        )
    except CheckpointError:
        raise
    except restricted_pickle.RefusedError as error:
        raise CheckpointError(
            f'checkpoint {name} asks for {error} when it is loaded, which weights never need and '
            'which can run any code: refused. Ask its author for a file of tensors only; or load '
            'it by torch.load(FILE, weights_only=False), if you trust it, and save its state dict '
            'alone'
        ) from None
    except (MemoryError, RecursionError) as error:
        raise CheckpointError(
            f'checkpoint {name} asks for more memory than there is, or is nested too deeply: it is '
            'damaged, hostile or too large for this machine'
        ) from error
    except Exception as error:  # a damaged file can make torch raise any
        if not start.startswith((b'PK', b'\x80')):
            raise _NotWholeError(
                f'checkpoint {name} is not a PyTorch file (it begins with {start[:12]!r})'
            ) from error
        raise _NotWholeError(
            f'checkpoint {name} is damaged or cut short ({size:,} bytes): copy or download it '
            'again, or use an earlier one'
        ) from error


def _is_of_jax(file: BinaryIO) -> bool:
    """Return whether a pickle names JAX or Haiku at its beginning, or has Haiku's names of
    modules; the file is at its start again."""
    beginning = file.read(1 << 16)
    file.seek(0)
    return any(name in beginning for name in (b'haiku.', b'jaxlib.', b'jax._src', b'/~/'))


def _read_safetensors(file: BinaryIO, name: str, map_location: Any) -> dict:
    """Read a file of the format safetensors, which cannot hold code; ``meta`` is what
    :func:`~mmdense.checkpoints.save_backbone` has put into its header."""
    content = file.read()
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
        meta = json.loads(header.get('__metadata__', {}).get('mmdense', '{}'))
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise _NotWholeError(
            f'checkpoint {name} is damaged or cut short ({len(content):,} bytes): copy or download '
            'it again, or use an earlier one'
        ) from error
    if isinstance(map_location, (str, torch.device)):
        tensors = {key: value.to(map_location) for key, value in tensors.items()}
    return dict(state_dict=tensors, meta=meta if isinstance(meta, dict) else {})


def _storage_sizes(file: BinaryIO, size: int, name: str) -> dict:
    """Return the sizes of a zip file's storages by the reader that ``torch.load`` uses.

    It is certain by then that nothing grows when it is read: the file's parts are as long as in
    the file, and no part is in it twice.
    """
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        if any(map(is_of_tensorflow, archive.namelist())):
            raise CheckpointError(f'checkpoint {name} {not_of_pytorch("TensorFlow")}')
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    records = reader.get_all_records()
    if 'constants.pkl' in records:  # torch.load would hand it to torch.jit.load
        raise CheckpointError(
            f'checkpoint {name} is a TorchScript program, which runs when it is loaded: refused. '
            "Save the model's state_dict() with torch.save and use that file"
        )
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise CheckpointError(
            f'checkpoint {name} is a compressed zip, which torch.save never writes and which could '
            'fill the memory: refused. If you trust it, load it with torch.load and save it again'
        )
    places = {}
    for part in parts:
        file.seek(part.header_offset + 26)
        lengths = struct.unpack('<HH', file.read(4))  # of its name, and of extra fields
        places[part.filename.partition('/')[2]] = part.header_offset + 30 + sum(lengths)
    # A file can be made to look different to two readers.
    same = places == {record: reader.get_record_offset(record) for record in records}
    if not same or len(places) < len(parts) or sum(part.file_size for part in parts) > size:
        raise zipfile.BadZipFile
    return {key: len(reader.get_record(key)) for key in records if key.startswith('data/')}


def _refuse_tar(file: BinaryIO, name: str) -> None:
    """Refuse files of PyTorch's first releases, which it unpacks onto the disk."""
    with suppress(tarfile.TarError):
        tarfile.open(fileobj=file, mode='r:').close()
        raise CheckpointError(
            f'checkpoint {name} is a tar file, as PyTorch wrote before 2017: refused. Load it with '
            'torch.load where you trust it, and save it again'
        )


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Optional[Any] = None) -> Any:
    """Load a local file, restricted, in place of MMEngine's loader."""
    return read_checkpoint(filename, map_location)


def cached_path(url: str) -> str:
    """Return the path in torch.hub's cache that a URL's file is kept at."""
    return os.path.join(torch.hub.get_dir(), 'checkpoints', file_name(url))


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(
    filename: str,
    map_location: Optional[Any] = None,
    model_dir: Optional[str] = None,
    progress: Optional[bool] = None,
) -> Any:
    """Load a URL, restricted, in place of MMEngine's loader; see :func:`cached_path`."""
    path = os.path.join(model_dir, file_name(filename)) if model_dir else cached_path(filename)
    checkpoint = error = None
    # Nobody raises between the barriers, or the other ranks would wait for ever.
    if get_rank() == 0:
        error = _download(filename, path, progress)
    barrier()
    error = error or _download(filename, path, progress)  # on other nodes: their disk is another
    if error is None:
        try:
            checkpoint = read_checkpoint(path, map_location)
        except CheckpointError as caught:
            error = caught
    barrier()
    if isinstance(error, _NotWholeError):  # every rank has seen it: it can go
        with suppress(OSError):
            os.remove(path)
        raise CheckpointError(
            f'{error}. It came from {filename}; the copy is deleted, so the next try downloads anew'
        ) from error
    if error is not None:
        raise error
    return checkpoint


def _download(url: str, path: str, progress: Optional[bool]) -> Optional[CheckpointError]:
    """Download a file unless one is there; return the error, if any."""
    if os.path.isfile(path):
        return None
    try:
        download(url, path, progress=progress)
    except CheckpointError as error:
        return error
    return None


@CheckpointLoader.register_scheme(prefixes=[r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], force=True)
def load_from_ceph(
    filename: str, map_location: Optional[Any] = None, backend: str = 'petrel'
) -> Any:
    """Load from object storage, restricted, in place of MMEngine's loader."""
    content = get_file_backend(filename, backend_args={'backend': backend}).get(filename)
    return read_checkpoint(io.BytesIO(content), map_location, name=filename)


replace_checkpoint_loaders(read_checkpoint, load_from_http)
