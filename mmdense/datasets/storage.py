# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Images in one file instead of a folder: a zip, or an LMDB.

The file system of a cluster reads parts of a large file fast, and a million small files slowly.
"""

import os
import os.path as osp
import struct
import zipfile
import zlib
from contextlib import contextmanager, suppress
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

from mmdense.utils.errors import DataError
from mmdense.utils.files import atomic_write, locked, report_write_errors

from .transforms.loading import UnreadableImageError

_LMDB_MAGIC = struct.pack('=I', 0xBEEFC0DE)


def open_storage(path: str) -> Optional[Tuple[Union['ZipStorage', 'LmdbStorage'], str]]:
    """Recognize a zip or an LMDB by its content.

    Args:
        path (str): An archive, or a folder in one (``coco.zip/train2017``).

    Returns:
        tuple, optional: The archive, and the folder in it ('' for the root).
        None where ``path`` is anything else, or nothing.

    Raises:
        DataError: A zip or an LMDB that cannot be read.
    """
    head, folder = path, ''
    while head and '://' not in path and not osp.exists(head):
        head, name = osp.split(head)
        folder = osp.join(name, folder)
    folder = osp.normpath(folder) if folder else ''
    head = head.rstrip('/')
    is_file = osp.isfile(head)
    file = head if is_file else osp.join(head, 'data.mdb')
    if not (head and osp.isfile(file)):
        return None
    try:
        with open(file, 'rb') as f:
            start = f.read(64)
    except OSError as e:
        raise DataError(f'cannot read {file}: {e.strerror}') from None
    if _LMDB_MAGIC in start:
        return LmdbStorage(head), folder
    if is_file and (start[:4] in (b'PK\x03\x04', b'PK\x05\x06') or zipfile.is_zipfile(head)):
        return ZipStorage(head), folder
    return None


class ZipStorage:
    """Read the files in a zip.

    The standard library reads the zip's directory once. An entry of about twenty bytes goes with
    the image's path into the list that the workers share: workers read and keep no directory.

    Args:
        path (str): The zip.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: Optional[int] = None

    def entries(self) -> Dict[str, tuple]:
        """Return the location of each file.

        Returns:
            dict[str, tuple]: Name → location for :meth:`read`: offset of the local header,
            compressed size, size (bytes), CRC, and method of compression, -1 if encrypted.

        Raises:
            DataError: The zip is damaged, or cannot be read.
        """
        try:
            with open(self._file(), 'rb', closefd=False) as f, zipfile.ZipFile(f) as z:
                return {
                    info.filename: (
                        info.header_offset,
                        info.compress_size,
                        info.file_size,
                        info.CRC,
                        -1 if info.flag_bits & 1 else info.compress_type,
                    )
                    for info in z.infolist()
                    if not info.is_dir()
                }
        # zipfile raises all of these for a damaged directory
        except (OSError, zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as e:
            raise DataError(f'cannot read the zip {self.path}, it may be damaged: {e}') from None

    def read(self, name: str, location: Optional[tuple]) -> bytes:
        """Return the content of a file.

        Args:
            name (str): Name of the file, for messages.
            location (tuple, optional): Location from :meth:`entries`, None if it has none.

        Raises:
            UnreadableImageError: It is not there, damaged, or encrypted.
        """

        def fail(reason: str) -> None:
            raise UnreadableImageError(osp.join(self.path, name), reason) from None

        if location is None:
            fail(f'there is no such file in {self.path}')
        offset, compressed_size, size, crc, method = location
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = 'encrypted' if method == -1 else f'compressed by method {method}'
            fail(f'it is {how} in the zip; it can be stored or deflated')
        try:
            # One read for the local header and the content; the header says its own length.
            block = os.pread(self._file(), 30 + 512 + compressed_size, offset)
            if block[:4] != b'PK\x03\x04' or len(block) < 30:
                fail(f'there is no file at byte {offset} of {self.path}, which may be damaged')
            start = 30 + sum(struct.unpack_from('<HH', block, 26))  # its name, and extra fields
            content = block[start : start + compressed_size]
            if len(content) < compressed_size:
                content = os.pread(self._file(), compressed_size, offset + start)
            if method == zipfile.ZIP_DEFLATED:
                content = zlib.decompressobj(-15).decompress(content, size + 1)  # and no more
        except OSError as e:
            fail(f'{e.strerror} ({self.path})')
        except zlib.error as e:
            fail(f'it is damaged in the zip: {e}')
        if len(content) != size or zlib.crc32(content) != crc:
            fail('it is damaged in the zip: its checksum differs')
        return content

    def _file(self) -> int:
        # Forked workers share the descriptor: pread() moves no common position.
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY)
        return self._fd

    def __getstate__(self) -> dict:
        return dict(self.__dict__, _fd=None)

    def __del__(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


class LmdbStorage:
    """Read the values of an LMDB: its keys are paths, its values the bytes of image files.

    Args:
        path (str): The LMDB: its folder, or its file.
    """

    # (device, inode) of a data file → (process, its environment), until the process ends: LMDB
    # opens a file once in a process, and an environment does not survive a fork.
    _environments: Dict[Tuple[int, int], Tuple[int, Any]] = {}

    def __init__(self, path: str) -> None:
        self.path = path
        self._pid: Optional[int] = None
        self._environment: Any = None

    def entries(self) -> Dict[str, tuple]:
        """Return the keys, in UTF-8.

        Returns:
            dict[str, tuple]: Key → location for :meth:`read`, always ().

        Raises:
            DataError: The LMDB is damaged, or cannot be read.
        """
        lmdb = _import_lmdb(self.path)
        try:
            with self._open().begin() as txn:
                keys = txn.cursor().iternext(values=False)
                return {key.decode('utf-8', 'surrogateescape'): () for key in keys}
        except (OSError, lmdb.Error) as e:
            raise DataError(f'cannot read the LMDB {self.path}, it may be damaged: {e}') from None

    def read(self, name: str, location: Optional[tuple] = ()) -> bytes:
        """Return the value of a key.

        Args:
            name (str): The key.
            location (tuple, optional): Location from :meth:`entries`, None if it has none.

        Raises:
            UnreadableImageError: It is not there, or damaged.
        """
        lmdb = _import_lmdb(self.path)
        content, reason = None, f'there is no such key in {self.path}'
        if location is not None:
            try:
                with self._open().begin() as txn:
                    content = txn.get(name.encode('utf-8', 'surrogateescape'))
            except (OSError, lmdb.Error) as e:
                reason = str(e)
        if content is None:
            raise UnreadableImageError(osp.join(self.path, name), reason)
        return content

    def _open(self):
        if self._pid != os.getpid():
            is_folder = osp.isdir(self.path)
            status = os.stat(osp.join(self.path, 'data.mdb') if is_folder else self.path)
            key = status.st_dev, status.st_ino
            pid, environment = self._environments.get(key, (None, None))
            if pid != os.getpid():
                if environment is not None:  # the parent's, from before a fork
                    environment.close()
                environment = _import_lmdb(self.path).open(
                    self.path,
                    subdir=is_folder,
                    readonly=True,
                    lock=False,  # a read-only disk will do, and a fork breaks nothing
                    readahead=True,  # an image has many pages: without, each is one access
                    create=False,
                    max_spare_txns=1,
                )
                # Reading beyond the end of the file is a bus error.
                expected = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
                if status.st_size < expected:
                    environment.close()
                    raise OSError(f'it ends at byte {status.st_size:,} of {expected:,}')
                self._environments[key] = os.getpid(), environment
            self._pid, self._environment = os.getpid(), environment
        return self._environment

    def __getstate__(self) -> dict:
        return dict(path=self.path, _pid=None, _environment=None)


@contextmanager
def write_zip(path: str, overwrite: bool = False) -> Iterator[Callable[[str, bytes], None]]:
    """Write a zip, which is complete or not there.

    Args:
        path (str): The file, ``.zip``.
        overwrite (bool): Whether to replace an existing file. Defaults to False.

    Yields:
        Callable: Adds a file to the zip, from its name and its content, which is stored unchanged.

    Raises:
        DataError: It is there already, or cannot be written.
        InUseError: Another process is writing it.
    """
    kind = osp.splitext(path)[1].lower()
    if kind in ('.lmdb', '.mdb'):
        raise DataError(f'{path}: LMDB can be read but not written: write a .zip, which is as fast')
    if kind != '.zip':
        raise DataError(f'{path} must end in .zip')
    if osp.isdir(path):
        raise DataError(f'{path} is a folder: give another name')
    if osp.exists(path) and not overwrite:
        raise DataError(f'{path} is there already: give another name, or overwrite it')
    lock = f'{path}.part.lock'
    in_use = f'{path} is being written by another process'
    with report_write_errors(path, DataError), locked(lock, in_use):
        try:
            with atomic_write(path) as part, zipfile.ZipFile(part, 'w', zipfile.ZIP_STORED) as z:
                # the same content gives the same file: ZipInfo's date is constant
                yield lambda name, content: z.writestr(zipfile.ZipInfo(name), content)
        finally:
            with suppress(OSError):
                os.remove(lock)


def check_names(path: str, names: List[str]) -> None:
    """Check that a zip can have files of these names.

    Args:
        path (str): The zip that is to be written.
        names (list[str]): The names.

    Raises:
        DataError: It cannot; with the first such name.
    """
    for name in names:
        try:
            name.encode('utf-8')
        except UnicodeEncodeError:
            raise DataError(
                f'{path}: {name!a} is not UTF-8, as names in a zip are: rename it'
            ) from None


def _import_lmdb(path: str):
    try:
        import lmdb
    except ImportError:
        raise DataError(f'{path} is an LMDB, which needs a package: pip install lmdb') from None
    return lmdb
