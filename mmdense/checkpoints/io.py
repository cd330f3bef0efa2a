# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
import pickle
import zipfile
from typing import Any, Optional
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader

from mmdense.utils.errors import CheckpointError

from . import restricted_pickle


def read_checkpoint(path: str, map_location: Any = 'cpu') -> Any:
    """Loads a checkpoint file without running code that is in it.

    Every load of a local or downloaded file goes through here once mmdense is
    in use: it takes the place of MMEngine's loaders, so that ``load_from``,
    ``--resume`` and ``init_cfg`` are covered too.

    Args:
        path (str): A file that ``torch.save`` wrote, in either of its formats.
        map_location: As in ``torch.load``.

    Returns:
        Any: What was saved.

    Raises:
        CheckpointError: One line, when the file is missing, empty, cut short,
            something else (a web page), or asks to run code.
    """
    path = os.path.expanduser(str(path))
    if not os.path.isfile(path):
        what = 'is a directory' if os.path.isdir(path) else 'does not exist'
        raise CheckpointError(f'checkpoint {path} {what}')
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        start = file.read(256)
    if size == 0:
        raise CheckpointError(f'checkpoint {path} is empty: copy or download it again')
    if start.lstrip().startswith((b'<', b'version https://git-lfs')):
        what = 'a web page or XML' if start.lstrip()[:1] == b'<' else 'a Git LFS pointer'
        raise CheckpointError(
            f'checkpoint {path} is {what}, not weights: download the file itself and try again'
        )
    damaged = CheckpointError(
        f'checkpoint {path} is damaged or cut short ({size:,} bytes): copy or download it again, '
        'or use an earlier one'
    )
    if start.startswith(b'PK') and not zipfile.is_zipfile(path):
        raise damaged
    try:
        return torch.load(
            path, map_location=map_location, pickle_module=restricted_pickle, weights_only=False
        )
    except restricted_pickle.ForbiddenGlobalError as error:
        raise CheckpointError(
            f'checkpoint {path} asks for {error} when it is loaded, which weights never need and '
            'which can run any code: refused. Ask its author for a file of tensors only'
        ) from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        AssertionError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        if not start.startswith((b'PK', b'\x80')):
            raise CheckpointError(
                f'checkpoint {path} is not a PyTorch file (it begins with {start[:12]!r})'
            ) from error
        raise damaged from error


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Optional[Any] = None) -> Any:
    """MMEngine's loader of local files, restricted."""
    return read_checkpoint(filename, map_location)


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: Optional[Any] = None) -> Any:
    """MMEngine's loader of URLs, restricted; kept in torch.hub's cache."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(urlparse(filename).path))
    if get_rank() == 0 and not os.path.isfile(path):
        os.makedirs(folder, exist_ok=True)
        try:
            torch.hub.download_url_to_file(filename, path, progress=False)
        except OSError as error:
            raise CheckpointError(
                f'checkpoint {filename} could not be downloaded: {error}'
            ) from error
    barrier()
    return read_checkpoint(path, map_location)
