# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Nothing that a config, an archive or a web server says reaches a shell, leaves its folder or
comes unchecked."""

import ast
import hashlib
import io
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.request import Request

import numpy as np
import pytest
from PIL import Image

from mmdense.datasets import UnlabeledDataset
from mmdense.utils import download as download_module
from mmdense.utils.download import download
from mmdense.utils.errors import CheckpointError, MMDenseError

# ---------------------------------------------------------------- shells

NASTY = [
    'with space',
    '$(touch ran)',
    '`touch ran`',
    '; touch ran',
    '"; touch ran; "',
    "'; touch ran; '",
    '| touch ran',
    '&& touch ran',
    'new\nline',
    '* ?',
    '-rf',
    '\\',
    '${IFS}',
]


def recorder(path: Path) -> Path:
    """A program that writes down its arguments."""
    path.write_text(
        f'#!{sys.executable}\nimport sys\n'
        f'open({str(path)!r} + ".args", "w").write(repr(sys.argv))\n'
    )
    path.chmod(0o755)
    return path


def recorded(path: Path) -> list:
    return ast.literal_eval(Path(f'{path}.args').read_text())[1:]


@pytest.mark.parametrize('text', NASTY)
@pytest.mark.parametrize(
    'tool, arguments',
    [
        ('dist_train.sh', ('{}', '1', '--work-dir', '{}', '--cfg-options', 'a.b={}')),
        ('dist_test.sh', ('{}', '{}', '1', '--work-dir', '{}')),
        ('slurm_train.sh', ('{}', '{}', '{}', '{}', '--cfg-options', 'a.b={}')),
    ],
)
def test_scripts_pass_arguments_as_they_are(tool, arguments, text, repo, tmp_path):
    program = recorder(tmp_path / 'srun')
    given = [argument.format(text) for argument in arguments]
    path = os.pathsep.join([str(tmp_path), os.environ['PATH']])
    done = subprocess.run(
        ['bash', str(repo / 'tools' / tool), *given],
        cwd=tmp_path,
        env=dict(os.environ, PATH=path, PYTHON=str(program)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / 'ran').exists()
    found = recorded(program)
    for argument in given[:4]:  # a number of processes is the value of another option
        options = [f'{option}{argument}' for option in ('', '--job-name=', '--work-dir=')]
        assert argument == '1' or any(option in found for option in options), (argument, found)
    rest = given[given.index('--cfg-options') - 2 if 'dist_train' in tool else -2 :]
    assert found[-len(rest) :] == rest


def test_no_code_is_built_from_strings(repo):
    """No shell, eval or unpickler in the package and its tools; each program is a list of words."""
    found = set()
    for path in [*(repo / 'mmdense').rglob('*.py'), *(repo / 'tools').rglob('*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            calls = {'eval', 'exec', 'compile', 'os.system', 'os.popen', 'pickle.load'}
            calls |= {'pickle.loads', 'subprocess.getoutput', 'yaml.load', 'np.load', 'mktemp'}
            shell = any(word.arg == 'shell' for word in node.keywords)
            if name == 'np.load' and 'allow_pickle=False' in map(ast.unparse, node.keywords):
                continue
            if name in calls or shell or name.endswith(('.mktemp', '.extractall', '.extract')):
                found.add(f'{path.relative_to(repo)}: {name}')
    # the version.py of an installed package
    assert found == {'mmdense/compat.py: exec'}


# ---------------------------------------------------------------- archives


def image(colour) -> bytes:
    stream = io.BytesIO()
    Image.new('RGB', (8, 8), colour).save(stream, 'png')
    return stream.getvalue()


@pytest.fixture(params=['zip', 'lmdb'])
def archive(request, tmp_path):
    """Writes an archive of such names; beside it is what they name in the file system."""
    folder = tmp_path / 'data'
    folder.mkdir()
    for path in (tmp_path / 'secret.png', folder / 'secret.png'):
        path.write_bytes(image('red'))
    path = str(folder / f'images.{request.param}')

    def write(*names):
        if request.param == 'zip':
            with zipfile.ZipFile(path, 'w') as file:
                for name in names:
                    file.writestr(zipfile.ZipInfo(name), image('lime'))
        else:
            lmdb = pytest.importorskip('lmdb')
            environment = lmdb.open(path, subdir=False, lock=False)
            with environment.begin(write=True) as transaction:
                for name in names:
                    transaction.put(name.encode(), image('lime'))
            environment.close()
        return path

    return write


def everything(folder: Path) -> dict:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob('*')}


@pytest.mark.parametrize(
    'name', ['../secret.png', '../../secret.png', '/{}/secret.png', 'a/../../secret.png', './a.png']
)
def test_names_in_archives_lead_nowhere(name, archive, tmp_path):
    """An entry is what the archive holds, never a file of that name; nothing is unpacked."""
    path = archive(name.format(str(tmp_path).lstrip('/')), 'good.png')
    before = everything(tmp_path)
    try:
        dataset = UnlabeledDataset(data_root=path, pipeline=[dict(type='mmdense.LoadImage')])
        seen = [dataset[i]['img'][0, 0].tolist() for i in range(len(dataset))]
    except MMDenseError as error:
        assert str(error).isprintable()
    else:
        assert seen and all(pixel == [0, 255, 0] for pixel in seen)
    assert everything(tmp_path) == before


@pytest.mark.parametrize('name', ['../secret.png', '../../secret.png'])
def test_a_list_reaches_archived_files_alone(name, archive, tmp_path):
    path, names = archive('good.png'), tmp_path / 'names.txt'
    names.write_text(f'{name}\ngood.png\n')
    dataset = UnlabeledDataset(
        data_root=path, ann_file=str(names), pipeline=[dict(type='mmdense.LoadImage')]
    )
    for i in range(len(dataset)):
        assert dataset[i]['img'][0, 0].tolist() == [0, 255, 0]


def test_links_in_a_zip_are_not_followed(tmp_path):
    (tmp_path / 'secret.png').write_bytes(image('red'))
    path = tmp_path / 'images.zip'
    with zipfile.ZipFile(path, 'w') as file:
        link = zipfile.ZipInfo('link.png')
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, str(tmp_path / 'secret.png'))
        file.writestr('good.png', image('lime'))
    dataset = UnlabeledDataset(data_root=str(path), pipeline=[dict(type='mmdense.LoadImage')])
    seen = np.stack([dataset[i]['img'] for i in range(len(dataset))])
    assert (seen == [0, 255, 0]).all()  # the link is no image, and replaced by one


# ---------------------------------------------------------------- downloads


def refused(url, path, match, **kwargs):
    with pytest.raises(CheckpointError, match=match) as error:
        download(url, str(path), **kwargs)
    assert str(error.value).isprintable() and not path.exists()


@pytest.mark.parametrize('url', ['http://example.org/a.pth', 'http://example.org/a-0123456789.pth'])
def test_plain_http_is_refused(url, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, 'build_opener', lambda *_: pytest.fail('it was asked'))
    refused(url, tmp_path / 'a.pth', 'is not downloaded: without https')
    refused(url, tmp_path / 'a.pth', 'is not downloaded: without https', sha256='0' * 63)


@pytest.mark.parametrize('url', ['file:///etc/passwd', 'ftp://example.org/a.pth', '/etc/passwd'])
def test_other_schemes_are_refused(url, tmp_path):
    refused(url, tmp_path / 'a.pth', 'unknown url type')


def test_plain_http_with_the_whole_hash(tmp_path, monkeypatch):
    asked = []

    def build_opener(*_):
        asked.append(1)
        raise OSError('no network')

    monkeypatch.setattr(download_module, 'build_opener', build_opener)
    monkeypatch.setattr(download_module, 'PAUSE', 0)
    sha256 = hashlib.sha256(b'a').hexdigest()
    refused('http://example.org/a.pth', tmp_path / 'a.pth', 'no network', sha256=sha256)
    assert asked


@pytest.mark.parametrize(
    'url, match',
    [
        ('http://example.org/a.pth', 'without https'),
        ('ftp://example.org/a.pth', 'unknown url type'),
        ('https://example.org/a.pth', None),
        ('http://localhost/a.pth', None),
    ],
)
def test_redirects_stay_secure(url, match):
    handler = download_module._SecureRedirects('')
    redirect = lambda: handler.redirect_request(  # noqa: E731
        Request('https://example.org/b.pth'), io.BytesIO(), 302, 'Found', {}, url
    )
    if match is None:
        assert redirect().full_url == url
    else:
        with pytest.raises(CheckpointError, match=match):
            redirect()


def test_a_redirect_over_the_network(server, tmp_path):
    """From a server to another address, as the first says."""
    target = server.put('weights.pth', b'content')
    url = server.put('moved.pth', b'', status=302)
    server.RequestHandlerClass.send_error = moved_to(
        server.RequestHandlerClass.send_error, 'http://example.org/weights.pth'
    )
    try:
        refused(url, tmp_path / 'a.pth', 'http://example.org/weights.pth is not downloaded')
        server.RequestHandlerClass.send_error = moved_to(None, target)
        download(url, str(tmp_path / 'b.pth'))
        assert (tmp_path / 'b.pth').read_bytes() == b'content'
    finally:
        del server.RequestHandlerClass.send_error


def moved_to(_, target):
    def send(self, code, *_):
        self.send_response(code)
        self.send_header('Location', target)
        self.send_header('Content-Length', '0')
        self.end_headers()

    return send
