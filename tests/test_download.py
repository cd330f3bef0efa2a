# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Downloads from a server on this machine that behaves as badly as real ones."""

import hashlib
import subprocess
import sys
import threading

import pytest

from mmdense.utils import download as module
from mmdense.utils.download import download, file_name, hash_in_name
from mmdense.utils.errors import CheckpointError

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f'model_20220825-{SHA256[:8]}.pth'
DATE = 'Sat, 21 Nov 2026 10:00:00 GMT'


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(module, 'PAUSE', 0.01)
    monkeypatch.setattr(module, 'TIMEOUT', 5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'folder' / 'file.pth'


def arrived(path):
    """Whole, and nothing lies beside it."""
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def ranges(server):
    return [headers.get('Range') for _, headers in server.asked]


def refused(url, path, match, **kwargs):
    with pytest.raises(CheckpointError, match=match) as error:
        download(url, str(path), **kwargs)
    assert '\n' not in str(error.value) and url in str(error.value)
    assert not path.exists()


@pytest.mark.parametrize('name', [NAME, 'no_hash.pth'])
def test_arrives_once(server, path, name):
    url = server.put(name, CONTENT)
    download(url, str(path))
    arrived(path)
    download(url, str(path))
    assert len(server.asked) == 1


@pytest.mark.parametrize('same', [dict(), dict(etag=None, modified=DATE),
                                  dict(etag='W/"1"', modified=DATE)])  # fmt: skip
def test_goes_on_after_lost_connections(server, path, same):
    url = server.put(NAME, CONTENT, cuts=[1000, 500, 1, 0, 0, 7], **same)
    download(url, str(path))
    arrived(path)
    starts = (0, 1000, 1500, 1501, 1501, 1501, 1508)
    assert ranges(server) == [f'bytes={n}-' if n else None for n in starts]


@pytest.mark.parametrize('behaviour', [dict(ranges=False), dict(etag=None), dict(etag='W/"1"')])
def test_starts_again_where_it_cannot_go_on(server, path, behaviour):
    url = server.put('no_hash.pth', CONTENT, cuts=[1000, 500], **behaviour)
    download(url, str(path))
    arrived(path)
    assert len(server.asked) == 3


def test_gives_up(server, path):
    refused(server.put(NAME, CONTENT, cuts=[1000] + [0] * 99), path, 'lost after 1,000 of 256,000')
    assert len(server.asked) == 1 + module.TRIES
    # the next try goes on
    server.put(NAME, CONTENT)
    server.asked.clear()
    download(f'http://127.0.0.1:{server.server_port}/{NAME}', str(path))
    arrived(path)
    assert ranges(server) == ['bytes=1000-']


@pytest.mark.parametrize(
    'newer', [dict(etag='"2"'), dict(etag='"2"', lax=True), dict(etag=None, lax=True)]
)
def test_part_of_an_older_file_is_not_gone_on_with(server, path, newer):
    url = server.put('model.pth', b'old' * 1000, cuts=[1000] + [0] * 99)
    refused(url, path, 'lost')
    server.put('model.pth', CONTENT, **newer)
    download(url, str(path))
    arrived(path)


def test_part_of_another_url_is_not_gone_on_with(server, path):
    refused(server.put('other.pth', b'other' * 1000, cuts=[1000] + [0] * 99), path, 'lost')
    server.asked.clear()
    download(server.put('model.pth', CONTENT), str(path))
    arrived(path)
    assert ranges(server) == [None]


def test_part_that_is_whole_or_longer(server, path):
    """Stopped between the last byte and the new name; or written by something else."""
    url = server.put('model.pth', CONTENT, cuts=[1000] + [0] * 99)
    part = path.with_name('file.pth.part')
    for content, asked in ((CONTENT, 0), (CONTENT + b'more', 2)):
        server.put('model.pth', CONTENT, cuts=[1000] + [0] * 99)
        refused(url, path, 'lost')
        part.write_bytes(content)
        server.put('model.pth', CONTENT)
        server.asked.clear()
        download(url, str(path))
        arrived(path)
        assert len(server.asked) == asked
        path.unlink()


def test_another_content_than_published(server, path):
    bad = b'x' * len(CONTENT)
    refused(server.put(NAME, bad), path, f'is not the file.*not {SHA256[:8]}')
    refused(server.put('model.pth', bad), path, f'not {SHA256}', sha256=SHA256)
    assert list(path.parent.glob('*.part*')) == []
    download(server.put('model.pth', CONTENT), str(path), sha256=SHA256.upper())
    arrived(path)


def test_a_wrong_file_in_its_place_is_replaced(server, path):
    """As an interrupted download of another tool leaves one."""
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    download(server.put(NAME, CONTENT), str(path))
    arrived(path)


@pytest.mark.parametrize('page', [b'<!DOCTYPE html>', b'\xef\xbb\xbf\n <html>', b'<?xml?>'])
def test_a_page_is_no_file(server, path, page):
    """With status 200, as shares answer that want a login."""
    refused(server.put('download', page), path, 'answers with a web page')
    assert len(server.asked) == 1 and list(path.parent.glob('*.part')) == []


def test_an_empty_answer(server, path):
    refused(server.put('model.pth', b''), path, 'is empty')


@pytest.mark.parametrize('status, asked', [(404, 1), (403, 1), (503, 4), (429, 4)])
def test_errors_of_the_server(server, path, status, asked):
    refused(server.put('model.pth', b'', status=status), path, f'HTTP Error {status}')
    assert len(server.asked) == asked


def test_nobody_listens(path, free_port):
    refused(f'http://127.0.0.1:{free_port}/model.pth', path, 'could not be downloaded')
    refused('no url', path, 'unknown url type')


def test_folder_cannot_be_made(server, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    url = server.put(NAME, CONTENT)
    with pytest.raises(CheckpointError, match='could not be downloaded'):
        download(url, str(tmp_path / 'file' / 'below' / 'model.pth'))


def test_one_of_several_processes_downloads(server, path):
    url = server.put('model.pth', CONTENT, cuts=[1000, 1000])
    code = f'from mmdense.utils.download import download; download({url!r}, {str(path)!r})'
    processes = [subprocess.Popen([sys.executable, '-c', code]) for _ in range(3)]
    threads = [threading.Thread(target=download, args=(url, str(path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0, 0]
    arrived(path)
    assert len(server.asked) == 3


def test_progress_is_for_terminals(server, path, capfd):
    download(server.put(NAME, CONTENT), str(path))
    assert capfd.readouterr().err == ''
    path.unlink()
    download(server.put(NAME, CONTENT), str(path), progress=True)
    assert 'file.pth' in capfd.readouterr().err


@pytest.mark.parametrize('name, found', [
    ('resnet50-0676ba61.pth', '0676ba61'),
    ('a_20220825-3078723b.pth?download=1', '3078723b'),
    ('a-3078723b.tar.gz', '3078723b'),
    ('a-20220825.pth', None),
    ('a-800e.pth', None),
    ('a-0123abcg.pth', None),
    ('a-0676ba61/model.pth', None),
    ('download?id=x-0676ba61.pth', None),
])  # fmt: skip
def test_hashes_in_names(name, found):
    assert hash_in_name(f'https://example.org/{name}') == found


def test_names_in_the_cache():
    """torch.hub's where they can be told apart; different ones for different sites."""
    assert file_name('https://a.org/b/resnet50-0676ba61.pth') == 'resnet50-0676ba61.pth'
    names = {file_name(f'https://{site}/download?id={i}') for site in 'ab' for i in (1, 2)}
    assert len(names) == 4
    assert file_name('https://a.org/b/weights.pth').startswith('weights_')
    assert file_name('https://a.org/b/weights.pth').endswith('.pth')
