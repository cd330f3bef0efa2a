# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Files that are complete or not there, and locks."""

import errno
import os
import shutil
from contextlib import contextmanager, suppress
from typing import Iterator, Optional, Type

from filelock import FileLock, Timeout

from .errors import InUseError, MMDenseError

PART = '.part'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: str) -> Iterator[str]:
    """Yield the path of a file to write, which replaces ``path`` at the end of the block.

    A reader of ``path`` finds the old file or the new one, whenever the process is killed.

    Args:
        path (str): The file, on a local disk. Its folder is made if there is none.

    Yields:
        str: A hidden file in the same folder; removed if the block raises.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    part = os.path.join(folder, f'.{name}{PART}')
    try:
        yield part
        move_into_place(part, path)
    except BaseException:
        with suppress(OSError):
            os.remove(part)
        raise


def move_into_place(part: str, path: str) -> None:
    """Give a complete file its name, once its content is on the disk.

    Args:
        part (str): The file, in the folder of ``path``.
        path (str): The name; a file that has it is replaced.
    """
    _flush(part)
    os.replace(part, path)
    _flush(os.path.dirname(os.path.abspath(path)))  # the name


def remove_parts(folder: str) -> None:
    """Remove the parts that killed processes left in a folder by :func:`atomic_write`."""
    for name in os.listdir(folder):
        if name.startswith('.') and name.endswith(PART):
            with suppress(OSError):
                os.remove(os.path.join(folder, name))


def write_text(path: str, text: str) -> None:
    """Write a text, in UTF-8, by :func:`atomic_write`."""
    with atomic_write(path) as part, open(part, 'w', encoding='utf-8') as file:
        file.write(text)


@contextmanager
def report_write_errors(path: str, kind: Type[MMDenseError] = MMDenseError) -> Iterator[None]:
    """Turn an ``OSError`` of a block into one line: which file cannot be written, and why.

    Args:
        path (str): The file, as the user knows it.
        kind (type): Class of the error. Defaults to :class:`MMDenseError`.

    Raises:
        MMDenseError: For an ``OSError`` within the block.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, FileExistsError):  # where its folder should be
            reason = f'{error.filename} is no folder'
        if error.errno in _FULL:
            with suppress(OSError):
                free = shutil.disk_usage(os.path.dirname(path) or os.curdir).free
                reason = f'{reason}; {free / 1e6:,.0f} MB are free'
        raise kind(f'cannot write {path}: {reason}') from error


@contextmanager
def locked(path: str, message: Optional[str] = None, wait: bool = False) -> Iterator[None]:
    """Hold a lock that one process at a time can have.

    Args:
        path (str): The lock's file. Its folder is made if there is none; the file stays.
        message (str, optional): Text for the error, or for the log if ``wait``. Defaults to
            'FOLDER is in use by another process'.
        wait (bool): Wait for the other process instead of raising. Defaults to False.

    Raises:
        InUseError: Another process holds the lock, and ``wait`` is False.
    """
    folder = os.path.dirname(path)
    message = message or f'{folder} is in use by another process'
    os.makedirs(folder or os.curdir, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise InUseError(message) from None
        from mmengine.logging import print_log  # imports PyTorch

        print_log(message, 'current')
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
