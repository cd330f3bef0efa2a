# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Check paths before anything slow is imported or computed."""

import glob
import os.path as osp
import re
from tempfile import TemporaryFile

from .errors import CheckpointError, DataError, InputError, MMDenseError

# Files of the Hugging Face hub: weights, or the index of their shards.
WEIGHTS = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
_IN_FOLDERS = ('backbone.pth', *WEIGHTS)  # of a run too


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint is a file, or a folder of the Hugging Face hub; a URL passes.

    Raises:
        CheckpointError: There is no such file, with the file to take where the path is the folder
            of a run.
    """
    path = osp.expanduser(path)
    if is_of_tensorflow(path):
        raise CheckpointError(f'checkpoint {path} {not_of_pytorch("TensorFlow")}')
    if '://' in path or osp.isfile(path) or osp.isfile(osp.join(path, 'config.json')):
        return
    what = 'is a directory' if osp.isdir(path) else 'does not exist'
    for inner in _IN_FOLDERS:
        if osp.isfile(osp.join(path, inner)):
            what += f': take {osp.join(path, inner)}'
            break
    raise CheckpointError(f'checkpoint {path} {what}')


def is_file_name(name: str) -> bool:
    """Return whether what may also be the name of published weights is a path."""
    return '://' not in name and bool(osp.dirname(name) or osp.splitext(name)[1])


def not_of_pytorch(framework: str) -> str:
    """Return the end of a message about a checkpoint of another framework."""
    return (
        f'is of {framework}, which mmdense does not read. Take weights that were converted to '
        'PyTorch: `mmdense list` names what can be downloaded, "full" is complete'
    )


def is_of_tensorflow(path: str) -> bool:
    """Return whether a path, or a name in an archive, is of a checkpoint or a saved model of
    TensorFlow."""
    if re.search(r'(\.(index|meta|data-\d{5}-of-\d{5})|saved_model\.pb)$', path):
        return '://' not in path
    # a folder of checkpoints has a text file with this name that says which is the newest
    folder = osp.dirname(path) if osp.basename(path) == 'checkpoint' else path
    return (
        osp.isfile(f'{path}.index')
        or osp.isfile(osp.join(path, 'saved_model.pb'))
        or bool(glob.glob(osp.join(glob.escape(folder), '*.ckpt*.index')))
    )


_KINDS = 'a folder, images, a zip, an LMDB or a COCO json'


def check_images(path: str, kinds: str = _KINDS) -> None:
    """Check that a path of images exists; a folder in an archive passes, and a pattern.

    Args:
        path (str): The path.
        kinds (str): What it may be, for the message.

    Raises:
        DataError: It does not exist, or nothing fits the pattern.
    """
    path = osp.abspath(osp.expanduser(path))
    inside = '.zip/' in path or '.lmdb/' in path
    if not (osp.exists(path) or inside or glob.has_magic(path)):
        raise DataError(f'{path} does not exist: give {kinds}')
    if not (osp.exists(path) or inside) and next(glob.iglob(path, recursive=True), None) is None:
        raise DataError(f'no file or folder fits the pattern {path}')


def check_config(path: str) -> None:
    """Check that a config is a file; a name in a package, such as ``mmdet::NAME``, passes.

    Raises:
        InputError: There is no such file.
    """
    if '::' not in path and not osp.isfile(osp.expanduser(path)):
        raise InputError(f'there is no config {path}: give its path, mmdet::NAME or mmseg::NAME')


def check_run(directory: str) -> None:
    """Check that the work directory of a run is a directory.

    Raises:
        InputError: It is none.
    """
    if not osp.isdir(directory):
        problem = 'is no directory' if osp.exists(directory) else 'does not exist'
        raise InputError(f'{directory} {problem}: give the work directory of a run')


def check_writable(path: str) -> None:
    """Check that a file can be written, by a temporary file in its folder.

    Args:
        path (str): The file. Its folder need not exist.

    Raises:
        MMDenseError: The file is a directory or read-only, or its folder cannot be written to or
            made.
    """
    if osp.isdir(osp.expanduser(path)):
        raise MMDenseError(f'cannot write {path}: it is a directory')
    folder = osp.dirname(osp.abspath(osp.expanduser(path)))
    while not osp.lexists(folder):
        folder = osp.dirname(folder)
    if not osp.isdir(folder):
        raise MMDenseError(f'cannot write {path}: {folder} is no folder')
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MMDenseError(
            f'cannot write {path}: {error.strerror} ({folder}); give another --out'
        ) from error
