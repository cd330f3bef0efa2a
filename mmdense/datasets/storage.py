# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Images in one file instead of a folder: a zip, or an LMDB.

A file system on a cluster gives a large file's parts away fast and a million
small files slowly.
"""

import os
import os.path as osp
import shutil
import struct
import zipfile
import zlib
from contextlib import contextmanager, suppress
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

from filelock import FileLock, Timeout  # which PyTorch requires

from mmdense.utils.errors import DataError

from .transforms.loading import UnreadableImageError

_LMDB_MAGIC = struct.pack('=I', 0xBEEFC0DE)
_LMDB_MAX_KEY = 511  # bytes; LMDB's own, fixed when it is compiled
_LMDB_BATCH = 64 << 20  # bytes of a transaction
_LMDB_MAP = 1 << 28  # bytes that one can have at first; doubled when it is full


def open_storage(path: str) -> Optional[Tuple[Union['ZipStorage', 'LmdbStorage'], str]]:
    """Recognise a zip or an LMDB, by its content.

    Args:
        path (str): Of an archive, or of a folder in one (``coco.zip/train2017``).

    Returns:
        tuple, optional: The archive, and the folder in it ('' for all of it).
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
    """The files in a zip.

    Its directory is read once, with the standard library. What one read needs
    of it, some twenty bytes, goes with the image's path into the list that the
    workers share, so that they neither read nor keep a directory.

    Args:
        path (str): The zip.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: Optional[int] = None

    def entries(self) -> Dict[str, tuple]:
        """Where each file is.

        Returns:
            dict[str, tuple]: For its name what :meth:`read` takes: offset of its
            local header, compressed size, size (bytes), CRC, and the method of
            compression, -1 where it is encrypted.

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
        # what zipfile raises where the directory is not one
        except (OSError, zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as e:
            raise DataError(f'cannot read the zip {self.path}, it may be damaged: {e}') from None

    def read(self, name: str, location: Optional[tuple]) -> bytes:
        """The content of a file.

        Args:
            name (str): For messages.
            location (tuple, optional): What :meth:`entries` has for it.

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
            # One read for the local header, of which only the rest of the file tells the exact
            # length, and the content.
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
        # Forked workers read through the same one: pread() moves no common position.
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY)
        return self._fd

    def __getstate__(self) -> dict:
        return dict(self.__dict__, _fd=None)

    def __del__(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


class LmdbStorage:
    """The values of an LMDB, the bytes of image files, under their paths.

    Args:
        path (str): The LMDB: its folder, or its file.
    """

    # Of the data files (device, inode): the process, and its environment. LMDB opens one only once
    # in a process, and none through a fork. Kept until the process ends.
    _environments: Dict[Tuple[int, int], Tuple[int, Any]] = {}

    def __init__(self, path: str) -> None:
        self.path = path
        self._pid: Optional[int] = None
        self._environment: Any = None

    def entries(self) -> Dict[str, tuple]:
        """Its keys, in UTF-8.

        Returns:
            dict[str, tuple]: For each what :meth:`read` takes: ().

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
        """The value of a key.

        Args:
            name (str): The key.
            location (tuple, optional): What :meth:`entries` has for it.

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
                if environment is not None:  # of the process that this one was forked from
                    environment.close()
                environment = _import_lmdb(self.path).open(
                    self.path,
                    subdir=is_folder,
                    readonly=True,
                    lock=False,  # needs no place to write, and nothing that a fork could break
                    readahead=True,  # an image is many pages, each an access of its own without
                    create=False,
                    max_spare_txns=1,
                )
                # What is not there would be a bus error.
                whole = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
                if status.st_size < whole:
                    environment.close()
                    raise OSError(f'it ends at byte {status.st_size:,} of {whole:,}')
                self._environments[key] = os.getpid(), environment
            self._pid, self._environment = os.getpid(), environment
        return self._environment

    def __getstate__(self) -> dict:
        return dict(path=self.path, _pid=None, _environment=None)


@contextmanager
def write_storage(path: str, overwrite: bool = False) -> Iterator[Callable[[str, bytes], None]]:
    """Writes a zip, or an LMDB of one file, which is there whole or not at all.

    Until the block ends well it is ``path.part``, and removed if it ends in an
    error.

    Args:
        path (str): The file, ``.zip``, ``.lmdb`` or ``.mdb``.
        overwrite (bool): Whether it may take the place of another. Defaults to
            False.

    Yields:
        Callable: Adds a file of a name to it; its content is stored unchanged.

    Raises:
        DataError: It is there already, or cannot be written.
    """
    kind = osp.splitext(path)[1].lower()
    if kind not in ('.zip', '.lmdb', '.mdb'):
        raise DataError(f'{path} must end in .zip or .lmdb')
    if osp.isdir(path):
        raise DataError(f'{path} is a folder: give another name')
    if osp.exists(path) and not overwrite:
        raise DataError(f'{path} is there already: give another name, or overwrite it')
    part = f'{path}.part'
    lock = FileLock(f'{part}.lock')
    with _one_line(path):
        os.makedirs(osp.dirname(path) or os.curdir, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f'{path} is being written by another process') from None
    try:
        with (_write_zip if kind == '.zip' else _write_lmdb)(part) as add:
            yield add
        with _one_line(path):
            os.replace(part, path)
            _sync(osp.dirname(path) or os.curdir)
    finally:
        for leftover in (part, f'{part}.lock'):
            with suppress(OSError):
                os.remove(leftover)
        lock.release()


def check_names(path: str, names: List[str]) -> None:
    """Whether an archive can have files of these names.

    Args:
        path (str): The archive that is to be written.
        names (list[str]): The names.

    Raises:
        DataError: It cannot; with the first such name.
    """
    is_zip = path.lower().endswith('.zip')
    for name in names:
        try:
            size = len(name.encode('utf-8', 'strict' if is_zip else 'surrogateescape'))
        except UnicodeEncodeError:
            raise DataError(
                f'{path}: {name!a} is not UTF-8, as names in a zip are: rename it'
            ) from None
        if not is_zip and size > _LMDB_MAX_KEY:
            raise DataError(
                f'{path}: {name:.60}… has {size} bytes, keys of an LMDB at most {_LMDB_MAX_KEY}: '
                'write a zip'
            )


@contextmanager
def _write_zip(path: str) -> Iterator[Callable[[str, bytes], None]]:
    with _one_line(path), open(path, 'wb') as f:
        with zipfile.ZipFile(f, 'w', zipfile.ZIP_STORED) as z:
            # the same content gives the same file: ZipInfo's date is that of no clock
            yield lambda name, content: z.writestr(zipfile.ZipInfo(name), content)
        f.flush()
        os.fsync(f.fileno())


@contextmanager
def _write_lmdb(path: str) -> Iterator[Callable[[str, bytes], None]]:
    lmdb = _import_lmdb(path[: -len('.part')])
    with suppress(FileNotFoundError):  # of a run that was killed
        os.remove(path)
    batch: List[Tuple[bytes, bytes]] = []
    size = 0

    def commit() -> None:
        nonlocal size
        while batch:
            try:
                with environment.begin(write=True) as txn:
                    for item in batch:
                        txn.put(*item)
                batch.clear()
            except lmdb.MapFullError:
                environment.set_mapsize(2 * environment.info()['map_size'])
        size = 0

    def add(name: str, content: bytes) -> None:
        nonlocal size
        batch.append((name.encode('utf-8', 'surrogateescape'), content))
        size += len(content)
        if size > _LMDB_BATCH:
            commit()

    with _one_line(path, lmdb.Error):
        # no lock file and no flush after each transaction: nobody else knows of it yet
        environment = lmdb.open(path, subdir=False, map_size=_LMDB_MAP, lock=False, sync=False)
        try:
            yield add
            commit()
            environment.sync(True)
        finally:
            environment.close()


@contextmanager
def _one_line(path: str, *errors: type) -> Iterator[None]:
    """What writing raises, a full disk above all."""
    try:
        yield
    except (OSError, *errors) as e:
        line = f'cannot write {path}: {getattr(e, "strerror", None) or e}'
        with suppress(OSError):  # LMDB calls a full disk an input/output error
            free = shutil.disk_usage(osp.dirname(path) or os.curdir).free
            line += f'; {free / 1e6:,.0f} MB are free'
        raise DataError(line) from None


def _sync(folder: str) -> None:
    """Of the new name, after that of the content."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _import_lmdb(path: str):
    try:
        import lmdb
    except ImportError:
        raise DataError(f'{path} is an LMDB, which needs a package: pip install lmdb') from None
    return lmdb
