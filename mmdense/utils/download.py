# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Downloads that are complete or not there.

torch.hub, mim and pooch start again after a lost connection, and mim takes a web page for weights.
"""

import hashlib
import json
import os
import re
import sys
import time
from contextlib import suppress
from http.client import HTTPException
from typing import Any, Callable, Optional, Tuple
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import HTTPRedirectHandler, Request, build_opener

from torch.hub import tqdm  # or its stand-in

from .errors import CheckpointError
from .files import locked, move_into_place

TRIES = 4  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second of them; twice as many before each further one
TIMEOUT = 30.0  # seconds of silence
_CHUNK = 1 << 20

# resnet50-0676ba61.pth, …_20220825-3078723b.pth: the start of the file's SHA256. Not a date.
_HASH_IN_NAME = re.compile(r'-(?!20\d{6}\.)([0-9a-f]{8,64})\.[^/]+$')


def hash_in_name(url: str) -> Optional[str]:
    """Return the start of the SHA256 that a file's name carries by convention, or None."""
    match = _HASH_IN_NAME.search(urlparse(url).path)
    return match and match.group(1)


def file_name(url: str) -> str:
    """Return the name to keep a URL's file under, unique among URLs.

    A name with a hash is kept, as in torch.hub. Otherwise another site may have another file of
    that name, and the URL's hash is added.
    """
    name = os.path.basename(urlparse(url).path)
    if hash_in_name(url):
        return name
    stem, suffix = os.path.splitext(name)
    return f'{stem}_{hashlib.sha256(url.encode()).hexdigest()[:8]}{suffix}'


def sha256_of(path: str) -> str:
    """Return the SHA256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for chunk in iter(lambda: file.read(_CHUNK), b''):
            digest.update(chunk)
    return digest.hexdigest()


def download(
    url: str,
    path: str,
    sha256: Optional[str] = None,
    check: Optional[Callable[[str], Any]] = None,
    progress: Optional[bool] = None,
) -> None:
    """Download a file, unless it is there.

    Until it is complete, the file is ``path.part``; a partial download is resumed if the server
    says that the file is still the same. Several processes can ask for one path: the first
    downloads, the others wait.

    Args:
        url (str): An https URL; http only from this machine, or with ``sha256`` in full.
        path (str): The file to write. Its folder is made.
        sha256 (str, optional): SHA256 of the file, or the start of it, in hexadecimal. Defaults to
            that in the URL's file name. An existing file with another one is downloaded again.
        check (callable, optional): Function that is called with the path of the downloaded file. If
            it raises, nothing is kept.
        progress (bool, optional): Whether to show a bar. Defaults to None, on a terminal.

    Raises:
        CheckpointError: With the reason, in one line.
    """
    sha256 = (sha256 or hash_in_name(url) or '').lower()
    if _is_there(path, sha256):
        return
    _check_secure(url, sha256)
    try:
        waits = f'{path}: waiting for another process that downloads it'
        with locked(f'{path}.lock', waits, wait=True):
            if not _is_there(path, sha256):
                _fetch(url, f'{path}.part', sha256, progress)
                _check(url, f'{path}.part', sha256, check)
                move_into_place(f'{path}.part', path)
                _forget(f'{path}.part')
        with suppress(OSError):  # a process that waits for it will find the file
            os.remove(f'{path}.lock')
    except CheckpointError:
        raise
    except (OSError, HTTPException, ValueError, NotImplementedError) as error:
        line = ' '.join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f'checkpoint {url} could not be downloaded to {path}: {line}'
        ) from error


def _check_secure(url: str, sha256: str = '') -> None:
    """Check that nobody on the way can give another file.

    Args:
        url (str): URL of the file.
        sha256 (str): SHA256 of the file, or its start. The eight digits of a file's name protect
            from accidents, not from intent.

    Raises:
        CheckpointError: The URL is neither https nor protected by a complete SHA256.
    """
    parts = urlparse(url)
    if parts.scheme not in ('https', 'http'):
        raise CheckpointError(f'checkpoint {url} has an unknown url type: give an https URL')
    known = parts.hostname in ('localhost', '127.0.0.1', '::1') or len(sha256) == 64
    if parts.scheme == 'http' and not known:
        raise CheckpointError(
            f'checkpoint {url} is not downloaded: without https anybody on the way could give '
            'another file. Use https, or fetch it yourself and give its path'
        )


class _SecureRedirects(HTTPRedirectHandler):
    """Follow redirects to secure URLs only; Python's class follows https to http and ftp."""

    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256

    def redirect_request(self, request, reply, code, message, headers, url):
        _check_secure(url, self.sha256)
        return super().redirect_request(request, reply, code, message, headers, url)


def _is_there(path: str, sha256: str) -> bool:
    return os.path.isfile(path) and (not sha256 or sha256_of(path).startswith(sha256))


def _fetch(url: str, part: str, sha256: str, progress: Optional[bool]) -> None:
    """Request the file until it is complete, or no further bytes come."""
    most = tries = 0
    while True:
        try:
            return _ask(url, part, sha256, progress)
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and _is_refusal(error, part):
                raise
            tries = 0 if _size(part) > most else tries + 1
            most = max(most, _size(part))
            if tries >= TRIES:
                raise
            time.sleep(PAUSE * 2 ** max(tries - 1, 0))


def _is_refusal(error: HTTPError, part: str) -> bool:
    """Return whether another request would fail too; forget a part that is none of the file."""
    error.close()
    if error.code == 416:
        _forget(part)
        return False
    return error.code < 500 and error.code not in (408, 425, 429)


def _ask(url: str, part: str, sha256: str, progress: Optional[bool]) -> None:
    """Request the missing part once; raise ConnectionError if it does not come."""
    start, total, same = _resume_at(url, part)
    if start == total:
        return
    headers = {'User-Agent': 'mmdense', 'Accept-Encoding': 'identity'}
    if start:
        headers.update({'Range': f'bytes={start}-', 'If-Range': same})
    opener = build_opener(_SecureRedirects(sha256))
    with opener.open(Request(url, headers=headers), timeout=TIMEOUT) as reply:
        if reply.status != 206:  # no ranges here, or another file by now
            _forget(part)
            total, start = reply.headers.get('Content-Length'), 0
            note = dict(url=url, total=total and int(total), same=_validator(reply.headers))
            with open(f'{part}.json', 'w', encoding='utf-8') as file:
                json.dump(note, file)
            total = note['total']
        elif not _continues(reply.headers, start, total, same):
            _forget(part)
            raise ConnectionError('the server sent another part than it was asked for')
        chunk = reply.read1(_CHUNK)
        if not start and chunk.lstrip(b'\xef\xbb\xbf \t\r\n')[:1] == b'<':
            _forget(part)
            raise CheckpointError(
                f'{url} answers with a web page, not with a file: open it in a browser to see what '
                'it wants (a login, a confirmation), and give the path of the file'
            )
        show = sys.stderr.isatty() if progress is None else progress
        bar = tqdm(
            total=total, initial=start, unit='B', unit_scale=True, unit_divisor=1024,
            disable=not show, desc=os.path.basename(part)[: -len('.part')],
        )  # fmt: skip
        with open(part, 'ab') as file, bar:
            while chunk:
                file.write(chunk)
                bar.update(len(chunk))
                chunk = reply.read1(_CHUNK)
    if total is not None and _size(part) != total:
        raise ConnectionError(f'the connection was lost after {_size(part):,} of {total:,} bytes')


def _resume_at(url: str, part: str) -> Tuple[int, Optional[int], Optional[str]]:
    """Return (bytes of the part, bytes of the file, validator of the file for the server).

    It is (0, None, None) if the part may be of another file.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        with open(f'{part}.json', encoding='utf-8') as file:
            note = json.load(file)
        if note['url'] == url and note['same']:
            return _size(part), note['total'], note['same']
    return 0, None, None


def _continues(headers, start: int, total: Optional[int], same: str) -> bool:
    """Return whether a reply continues the part: some servers ignore If-Range."""
    found = re.match(r'bytes (\d+)-\d+/(\d+|\*)$', headers.get('Content-Range', ''))
    if found is None or _validator(headers) not in (None, same):
        return False
    return int(found.group(1)) == start and found.group(2) in ('*', str(total or '*'))


def _validator(headers) -> Optional[str]:
    """Return the value for If-Range, which takes no weak ETag."""
    etag = headers.get('ETag')
    return etag if etag and not etag.startswith('W/') else headers.get('Last-Modified')


def _check(url: str, part: str, sha256: str, check: Optional[Callable[[str], Any]]) -> None:
    try:
        if _size(part) == 0:
            raise CheckpointError(f'checkpoint {url} is empty')
        found = sha256_of(part)
        if not found.startswith(sha256):
            raise CheckpointError(
                f'checkpoint {url} is not the file that was published: its SHA256 begins with '
                f'{found[: len(sha256)]}, not {sha256}. Nothing was kept; try again, or ask its '
                'author'
            )
        if check is not None:
            check(part)
    except CheckpointError:
        _forget(part)
        raise


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _forget(part: str) -> None:
    for path in (part, f'{part}.json'):
        with suppress(FileNotFoundError):
            os.remove(path)
