# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
from contextlib import contextmanager, suppress
from typing import Iterator

from .errors import InUseError, MMDenseError


@contextmanager
def atomic_write(path: str) -> Iterator[str]:
    """The path of a file to write in place of ``path``, which gets its name
    once it is whole and on the disk: whoever reads ``path`` finds the old file
    or the new one, whenever the process is killed.

    Args:
        path (str): The file, on a local disk. Its folder is made where there
            is none.

    Yields:
        str: A file beside it, hidden; removed where the block raises.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    part = os.path.join(folder, f'.{name}{PART}')
    try:
        yield part
        _flush(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.remove(part)
        raise
    _flush(folder)  # the name


@contextmanager
def report_write_errors(path: str) -> Iterator[None]:
    """Says in one line that a file that the user asked for cannot be written.

    Args:
        path (str): The file, as the user knows it.

    Raises:
        MMDenseError: For an ``OSError`` within the block.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, FileExistsError):  # where its folder should be
            reason = f'{error.filename} is no folder'
        raise MMDenseError(f'cannot write {path}: {reason}') from error


def write_text(path: str, text: str) -> None:
    """Writes a text, in UTF-8, by :func:`atomic_write`."""
    with atomic_write(path) as part, open(part, 'w', encoding='utf-8') as file:
        file.write(text)


@contextmanager
def locked(path: str) -> Iterator[int]:
    """Holds a lock, and so do processes that the descriptor is handed to: should
    this program be killed, they go on without it.

    Args:
        path (str): The lock's file, in the folder that it is for.

    Yields:
        int: Its descriptor.

    Raises:
        InUseError: Another process holds it.
    """
    import fcntl  # of POSIX

    with open(path, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InUseError(f'{os.path.dirname(path)} is in use by another process') from None
        yield file.fileno()


PART = '.part'


def remove_parts(folder: str) -> None:
    """Removes what :func:`atomic_write` left in a folder when it was killed."""
    for name in os.listdir(folder):
        if name.startswith('.') and name.endswith(PART):
            with suppress(OSError):
                os.remove(os.path.join(folder, name))


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
