# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""tools/convert_dataset.py copies every byte into a zip, or says in one line why not."""

import json
import multiprocessing
import os
import resource
import shutil
import sys

import lmdb
import pytest
from filelock import FileLock

from mmdense.datasets import UnlabeledDataset
from mmdense.datasets.storage import write_zip
from mmdense.utils.errors import DataError

NAMES = ('b.jpg', 'a/z.PNG', 'a-b/2.bmp', 'ü/é ß.jpg')


@pytest.fixture
def convert(run_here, monkeypatch, tmp_path):
    """The tool with one process, in the test's folder: exit code, out, err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMDENSE_TRACEBACK', raising=False)

    def call(*arguments, workers=0):
        code, printed = run_here('convert_dataset.py', *arguments, '--num-workers', workers)
        return code, printed.out, printed.err

    return call


@pytest.fixture
def folder(tmp_path):
    for name in (*NAMES, 'notes.txt', '.hidden.jpg'):
        file = tmp_path / 'images' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(3000))
    return tmp_path / 'images'


def content(**kwargs):
    """Of a data set: name below its folder → bytes, in its order."""
    dataset = UnlabeledDataset(**kwargs)
    root = dataset.data_prefix['img_path']
    return {path[len(root) + 1 :]: data for path, data in map(dataset.read, range(len(dataset)))}


def printed_config(out):
    namespace = {}
    exec(out.splitlines()[-1], namespace)
    return namespace['train_dataloader']['dataset']


def refused(result, message):
    code, _, err = result
    assert code == 1 and message in err.splitlines()[-1], err
    assert 'Traceback' not in err and len(err.splitlines()) == 1, err


def left_beside(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(('.part', '.lock')))


def test_every_kind_to_every_kind(convert, folder, tmp_path):
    expected = content(data_root=folder)
    assert list(expected) == sorted(NAMES)
    (tmp_path / 'new').mkdir()
    environment = lmdb.open('1.lmdb', subdir=False, lock=False)
    with environment, environment.begin(write=True) as transaction:
        for name, data in expected.items():
            transaction.put(name.encode(), data)
    for source in ('images', 'new/1.zip', '1.lmdb'):
        for target in ('new/1.zip', '3.zip'):
            code, out, err = convert(source, target, '--overwrite')
            assert (code, err) == (0, '')
            assert f'{target}: 4 images, 12,000 bytes; 0 left out' in out
            assert list(content(**printed_config(out)).items()) == list(expected.items())
    assert not left_beside(tmp_path / 'new')
    assert sorted(os.listdir(tmp_path / 'new')) == ['1.zip']
    # stored, and the same file whenever it is written
    assert (tmp_path / '3.zip').read_bytes() == (tmp_path / 'new/1.zip').read_bytes()
    assert all(data in (tmp_path / '3.zip').read_bytes() for data in expected.values())


@pytest.mark.parametrize('workers', [0, 2])
def test_check_leaves_out_what_is_broken(convert, images, tmp_path, workers):
    target = 'new.zip'
    shutil.copytree(images, str(tmp_path / 'images'))
    (tmp_path / 'images' / '03.jpg').write_bytes(b'')
    data = (tmp_path / 'images' / '07.jpg').read_bytes()
    (tmp_path / 'images' / '07.jpg').write_bytes(data[:-200])
    (tmp_path / 'images' / '11.jpg').unlink()
    (tmp_path / 'images' / '11.jpg').symlink_to('nowhere')
    whole = {f'{i:02}.jpg' for i in range(16)} - {'11.jpg'}
    for flags, missing in (([], set()), (['--check'], {'03.jpg', '07.jpg'})):
        code, out, err = convert('images', target, '--overwrite', *flags, workers=workers)
        assert code == 0
        assert set(content(data_root=target)) == whole - missing
        assert f'{len(whole - missing)} images, ' in out
        assert f'; {len(missing) + 1} left out' in out
        named = [line.split(': ')[:2] for line in err.splitlines()]
        left_out = sorted(missing | {'11.jpg'})
        assert named == [['left out', f'images/{name}'] for name in left_out]
        assert err.endswith('images/11.jpg: No such file or directory\n')
    assert 'left out: images/03.jpg: the file is empty\n' in err
    for i in range(16):
        (tmp_path / 'images' / f'{i:02}.jpg').unlink()
        (tmp_path / 'images' / f'{i:02}.jpg').write_bytes(b'')
    code, _, err = convert('images', target, '--overwrite', '--check', workers=workers)
    assert code == 1 and 'none of the 16 images of images (with' in err.splitlines()[-1]
    assert set(content(data_root=target)) == whole - missing  # the earlier one stays
    assert not left_beside(tmp_path)


@pytest.mark.parametrize('kind', ['txt', 'json'])
def test_annotations(convert, folder, tmp_path, kind):
    names = ['b.jpg', './a//z.PNG', 'b.jpg', 'gone.jpg', f'{folder}/a-b/2.bmp']
    (tmp_path / 'lists').mkdir()
    ann_file = tmp_path / 'lists' / f'list.{kind}'
    as_json = json.dumps(dict(images=[dict(file_name=name) for name in names]))
    ann_file.write_text('\n'.join(names) if kind == 'txt' else as_json)
    expected = content(data_root=folder)
    del expected['ü/é ß.jpg']
    code, out, err = convert(str(folder), 'lists/new.zip', '--ann-file', f'lists/list.{kind}')
    assert code == 0 and '3 images' in out and '1 left out' in out and 'gone.jpg: No such' in err
    assert 'ann_file' not in printed_config(out)
    assert content(**printed_config(out)) == expected


def test_a_list_of_what_a_search_does_not_find(convert, folder, tmp_path):
    (tmp_path / 'list.txt').write_text('notes.txt\n.hidden.jpg\nb.jpg\n')
    (tmp_path / 'new').mkdir()
    for target in ('new/1.zip', '1.zip'):
        code, out, _ = convert('images', target, '--ann-file', 'list.txt')
        assert code == 0
        assert printed_config(out)['ann_file'] == os.path.relpath('list.txt', target[:-5] or None)
        data = content(data_root=target, ann_file=str(tmp_path / 'list.txt'))
        assert list(data) == ['notes.txt', '.hidden.jpg', 'b.jpg']


def test_overwrites_only_when_told(convert, folder, tmp_path):
    target = 'new.zip'
    (tmp_path / target).write_bytes(b'precious')
    refused(convert('images', target), f'{target} is there already: give another name, or overwri')
    assert (tmp_path / target).read_bytes() == b'precious'
    assert convert('images', target, '--overwrite')[0] == 0
    assert len(content(data_root=target)) == 4
    (tmp_path / f'folder{target}').mkdir()
    refused(convert('images', f'folder{target}', '--overwrite'), 'is a folder: give another name')


def test_refusals(convert, folder, tmp_path):
    refused(convert('images', 'x.tar'), 'x.tar must end in .zip')
    for target in ('x.lmdb', 'x.mdb'):
        refused(
            convert('images', target), f'{target}: LMDB can be read but not written: write a .z'
        )
    refused(convert('none', 'x.zip'), 'image folder none does not exist')
    refused(convert('images/notes.txt', 'x.zip'), 'is not a folder, nor a zip or an LMDB')
    refused(convert('images', 'x.zip', '--ann-file', 'none.txt'), 'cannot read the image list')
    refused(convert('images', 'images/b.jpg/x.zip'), 'cannot write images/b.jpg/x.zip: ')
    (tmp_path / 'list.txt').write_text('../other/b.jpg\nb.jpg')
    refused(
        convert('images', 'x.zip', '--ann-file', 'list.txt'),
        'images/../other/b.jpg is not below images, which names are relative to',
    )
    with FileLock(str(tmp_path / 'x.zip.part.lock')):
        refused(convert('images', 'x.zip'), 'x.zip is being written by another process')
    os.remove('x.zip.part.lock')
    assert not left_beside(tmp_path) and not (tmp_path / 'x.zip').exists()


def test_names_that_do_not_fit(convert, tmp_path):
    long = 'a' * 200 + '/' + 'b' * 200 + '/' + 'c' * 200 + '.jpg'
    (tmp_path / 'images' / long).parent.mkdir(parents=True)
    (tmp_path / 'images' / long).write_bytes(b'x')
    assert convert('images', 'x.zip')[0] == 0
    assert content(data_root='x.zip') == {long: b'x'}
    with open(os.fsencode(str(tmp_path / 'images')) + b'/\xff.jpg', 'wb'):
        pass
    os.remove(str(tmp_path / 'images' / long))
    refused(convert('images', 'y.zip'), 'is not UTF-8, as names in a zip are: rename it')


def write_and(then, path, sender):
    try:
        with write_zip(path) as add:
            for i in range(3):
                add(f'{i}.jpg', os.urandom(100_000))
            then()
    except Exception as e:
        sender.send(e)


def child(then, path):
    """Another process that writes three images, and then; its exit code and the error."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=write_and, args=(then, str(path), sender))
    process.start()
    sender.close()
    process.join()
    return process.exitcode, receiver.recv() if process.exitcode == 0 else None


def test_a_kill_leaves_nothing_under_the_name(convert, folder, tmp_path):
    target = 'x.zip'
    assert child(lambda: os.kill(os.getpid(), 9), tmp_path / target) == (-9, None)
    assert not (tmp_path / target).exists() and left_beside(tmp_path)
    assert convert('images', target)[0] == 0
    assert content(data_root=target) == content(data_root='images')
    assert not left_beside(tmp_path)


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_zip(str(tmp_path / 'x.zip')) as add:
        add('1.jpg', b'x')
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files fails the same calls, with another number."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    code, error = child(limit, tmp_path / 'x.zip')
    assert code == 0 and isinstance(error, DataError)
    assert f'cannot write {tmp_path / "x.zip"}: ' in str(error)
    assert str(error).endswith(' MB are free') and '\n' not in str(error)
    assert os.listdir(tmp_path) == []


def test_progress(convert, folder, monkeypatch):
    ticks = iter(range(0, 10_000, 7))
    monkeypatch.setattr('time.monotonic', lambda: next(ticks))
    code, _, err = convert('images', 'x.zip')
    assert code == 0 and '2 of 4 images, 0.00 GB, ' in err and 's left' in err
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    code, _, err = convert('images', 'y.zip')
    assert code == 0 and '4/4' in err and 'images/s' in err
