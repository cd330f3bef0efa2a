# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A zip or an LMDB gives what the folder that it was made from gives."""

import importlib
import json
import multiprocessing
import os
import pickle
import struct
import sys
import tempfile
import tracemalloc
import zipfile
from operator import itemgetter
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mmdense.datasets import UnlabeledDataset, UnreadableImageError
from mmdense.datasets.storage import ZipStorage, open_storage
from mmdense.utils.errors import DataError

FILES = ('b.jpg', 'a/z.PNG', 'a/B.JpEg', 'a/c/x.webp', 'd.e/1.TIF', 'a-b/2.bmp', 'ü/é ß.jpg')
HIDDEN = ('.hidden.jpg', 'a/._b.jpg', '.git/c.jpg', 'a/.cache/d.jpg')
OTHER = ('notes.txt', 'a/jpg')


def make_zip(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', method) as z:
        for name, content in files.items():
            z.writestr(name, content)


def make_lmdb(path, files, subdir=False):
    environment = lmdb.open(str(path), subdir=subdir, map_size=1 << 26, sync=False)
    with environment.begin(write=True) as txn:
        for name, content in files.items():
            txn.put(name.encode(), content)
    environment.close()


MAKE = dict(
    zip=make_zip,
    deflated=lambda path, files: make_zip(path, files, zipfile.ZIP_DEFLATED),
    lmdb=make_lmdb,
    lmdb_folder=lambda path, files: make_lmdb(path, files, subdir=True),
)


def make_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def contents(names):
    return {name: name.encode() * 50 for name in names}


def listed(dataset):
    """Path and content of every image, through the data set's items."""
    items = [dataset[i] for i in range(len(dataset))]
    return [(item['img_path'], item['img_bytes']) for item in items]


def one_line(error):
    assert '\n' not in str(error.value)


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


# ---------------------------------------------------------------- as the folder


@pytest.mark.parametrize('kwargs', [{}, dict(recursive=False), dict(extensions=['.png', '.TIF'])])
def test_gives_what_the_folder_gives(tmp_path, make, kwargs):
    files = contents((*OTHER, *reversed(FILES), *HIDDEN))
    make_folder(tmp_path / 'folder', files)
    make(tmp_path / 'archive', dict(files, **{'__MACOSX/a/z.png': b''}))
    folder = UnlabeledDataset(data_root=tmp_path / 'folder', **kwargs)
    archive = UnlabeledDataset(data_root=tmp_path, data_prefix='archive', **kwargs)
    paths = [folder[i]['img_path'] for i in range(len(folder))]
    root = f'{tmp_path}/archive'
    assert listed(archive) == [
        (path.replace(f'{tmp_path}/folder', root), Path(path).read_bytes()) for path in paths
    ]
    for i in range(len(archive)):
        assert archive.read(i) == listed(archive)[i]
        assert folder.read(i)[1] == archive.read(i)[1]
        assert 'stored' not in archive[i]
    assert archive.source.startswith(f'{root} (with')


@settings(max_examples=12, deadline=None)
@given(
    st.sets(
        st.lists(st.text('aB.-é ', min_size=1, max_size=4), min_size=1, max_size=4).map(
            lambda parts: '/'.join('d' * (not p.startswith('.')) + p + 'd' for p in parts) + '.jpg'
        ),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_any_nesting_in_any_order_gives_the_folders_list(tmp_path_factory, names, rnd):
    root = Path(tempfile.mkdtemp(dir=str(tmp_path_factory.getbasetemp())))
    names = sorted(names)
    rnd.shuffle(names)
    make_folder(root / 'folder', contents(names))
    found = []
    for name, make_this in dict(MAKE, folder=None).items():
        if make_this:
            make_this(root / name, contents(names))
        try:
            dataset = UnlabeledDataset(data_root=root / name)
            paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
            found.append([os.path.relpath(path, str(root / name)) for path in paths])
        except DataError as e:
            found.append(str(e).replace(str(root / name), ''))
    assert all(one == found[0] for one in found[1:])


def test_a_folder_in_an_archive(tmp_path, make):
    names = ('train/1.jpg', 'train/a/2.jpg', 'train.jpg', 'training/3.jpg', '.val/4.jpg')
    make(tmp_path / 'coco', contents(names))
    expected = [(f'{tmp_path}/coco/{name}', name.encode() * 50) for name in names[:2]]
    for root, prefix in (('', 'coco//train/'), ('coco', 'train'), ('coco/train/', '')):
        dataset = UnlabeledDataset(data_root=tmp_path / root, data_prefix=prefix)
        assert listed(dataset) == expected
    # what is hidden is so below the folder that was asked for
    assert len(UnlabeledDataset(data_root=tmp_path / 'coco', data_prefix='.val')) == 1
    only = UnlabeledDataset(data_root=tmp_path / 'coco', data_prefix='train', recursive=False)
    assert listed(only) == expected[:1]
    for prefix in ('coco/none', 'coco/train/1', 'coco/1.jpg/x'):
        with pytest.raises(DataError, match=f'folder .*{prefix} does not exist in .*/coco;') as e:
            UnlabeledDataset(data_root=tmp_path, data_prefix=prefix)
        one_line(e)


def test_several_of_all_kinds_are_one_data_set(tmp_path):
    for kind, make_this in MAKE.items():
        make_this(tmp_path / kind, contents(['sub/2.jpg', '1.jpg']))
    make_folder(tmp_path / 'folder', contents(['2.jpg']))
    prefixes = ['zip', 'folder', *sorted(MAKE, reverse=True), 'zip/sub', 'lmdb_folder/sub']
    dataset = UnlabeledDataset(data_root=tmp_path, data_prefix=prefixes)
    paths = [f'{kind}/{name}' for kind in sorted(MAKE) for name in ('1.jpg', 'sub/2.jpg')]
    paths = sorted([*paths, 'folder/2.jpg'])
    results = [dataset[i] for i in range(len(dataset))]
    assert [r['img_path'] for r in results] == [f'{tmp_path}/{path}' for path in paths]
    for path, result in zip(paths, results):
        expected = None if path == 'folder/2.jpg' else path.split('/', 1)[1].encode() * 50
        assert result.get('img_bytes') == expected
    for subset in (
        UnlabeledDataset(data_root=tmp_path, data_prefix=prefixes, indices=[8, 0]),
        dataset.get_subset([8, 0]),
    ):
        assert listed(subset) == [(results[i]['img_path'], results[i]['img_bytes']) for i in (8, 0)]


def test_known_by_content(tmp_path):
    make_zip(tmp_path / 'a.lmdb', contents(['1.jpg']))
    make_lmdb(tmp_path / 'b.zip', contents(['2.jpg']))
    make_folder(tmp_path / 'c.zip', contents(['3.jpg', 'data.mdb']))
    (tmp_path / 'prefixed').write_bytes(b'#!/bin/sh\n' * 99 + (tmp_path / 'a.lmdb').read_bytes())
    (tmp_path / 'link').symlink_to('b.zip')
    prefixes = ['a.lmdb', 'b.zip', 'c.zip', 'prefixed', 'link']
    dataset = UnlabeledDataset(data_root=tmp_path, data_prefix=prefixes)
    paths = [os.path.relpath(dataset.read(i)[0], str(tmp_path)) for i in range(5)]
    assert paths == ['a.lmdb/1.jpg', 'b.zip/2.jpg', 'c.zip/3.jpg', 'link/2.jpg', 'prefixed/1.jpg']
    assert all(dataset.read(i)[1] == path[-5:].encode() * 50 for i, path in enumerate(paths))


# ---------------------------------------------------------------- a list, a json


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('kind', ['txt', 'json'])
def test_annotations(tmp_path, make, kind, inside):
    names = ['img/z', 'img/é.jpg', './img//a.jpg', 'img/missing.jpg', 'img/../.b.jpg']
    if kind == 'txt':
        annotations = '\ufeff' + '\r\n'.join(names)
    else:
        annotations = json.dumps(dict(images=[dict(file_name=name) for name in names]))
    files = contents(['img/a.jpg', 'img/é.jpg', 'img/z', '.b.jpg', 'img/other.jpg'])
    files[f'lists/list.{kind}'] = annotations.encode()
    make_folder(tmp_path, dict([files.popitem()] if not inside else []))
    make(tmp_path / 'archive', files)
    ann_file = f'lists/list.{kind}'
    dataset = UnlabeledDataset(
        data_root=tmp_path,
        data_prefix='archive',
        ann_file=f'archive/{ann_file}' if inside else ann_file,
    )
    root = f'{tmp_path}/archive'
    found = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    expected = ['img/z', 'img/é.jpg', 'img/a.jpg', 'img/missing.jpg', '.b.jpg']
    assert found == [f'{root}/{name}' for name in expected]
    for i in (0, 1, 2, 4):
        assert dataset.read(i) == (found[i], expected[i].encode() * 50)
    with pytest.raises(UnreadableImageError, match='missing.jpg: there is no such (file|key) in'):
        dataset.read(3)
    assert dataset[3]['img_path'] != found[3]
    if inside:
        with pytest.raises(DataError, match=r'(list|json) .*/none\.\w+: there is no such') as e:
            UnlabeledDataset(data_root=tmp_path, ann_file=f'archive/none.{kind}')
        one_line(e)


def test_annotations_of_a_folder_in_an_archive(tmp_path, make):
    make(tmp_path / 'coco', contents(['train/1.jpg', 'val/1.jpg']))
    make_folder(tmp_path, {'list.txt': f'1.jpg\n{tmp_path}/2.jpg'.encode(), '2.jpg': b'two'})
    dataset = UnlabeledDataset(data_root=tmp_path, data_prefix='coco/train', ann_file='list.txt')
    assert dataset.read(0) == (f'{tmp_path}/coco/train/1.jpg', b'train/1.jpg' * 50)
    assert dataset.read(1) == (f'{tmp_path}/2.jpg', b'two')  # as with a folder
    with pytest.raises(DataError, match='none of the 1 images in .* for at .*coco/none/1.jpg') as e:
        (tmp_path / 'list.txt').write_text('1.jpg')
        UnlabeledDataset(data_root=tmp_path, data_prefix='coco/none', ann_file='list.txt')
    one_line(e)


# ---------------------------------------------------------------- wrong input


def fails(tmp_path, match, name='x'):
    with pytest.raises(DataError, match=match) as e:
        UnlabeledDataset(data_root=tmp_path, data_prefix=name)
    one_line(e)


@pytest.mark.parametrize('kept', [4, 60, 2000, -1, -30])
def test_truncated_zip(tmp_path, kept):
    make_zip(tmp_path / 'whole', contents(FILES))
    (tmp_path / 'x').write_bytes((tmp_path / 'whole').read_bytes()[:kept])
    fails(tmp_path, '/x, it may be damaged')


def test_zip_with_a_damaged_directory(tmp_path):
    make_zip(tmp_path / 'x', contents(FILES))
    content = (tmp_path / 'x').read_bytes()
    at = content.rindex(b'PK\1\2')
    for damaged in (
        content[:at] + b'\xff' + content[at + 1 :],
        content[: at + 20] + content[at + 24 :],
    ):
        (tmp_path / 'x').write_bytes(damaged)
        fails(tmp_path, '/x, it may be damaged')


@pytest.mark.parametrize('subdir', [False, True])
def test_truncated_lmdb(tmp_path, subdir):
    files = {f'{i:04}.jpg': os.urandom(1000) for i in range(1000)}
    make_lmdb(tmp_path / 'x', files, subdir=subdir)
    file = tmp_path / 'x' / 'data.mdb' if subdir else tmp_path / 'x'
    size = file.stat().st_size
    for kept in (size - 4096, 100_000, 8192, 100):
        os.truncate(str(file), kept)
        fails(tmp_path, '/x, it may be damaged')


def test_lmdb_is_optional(tmp_path, monkeypatch):
    make_lmdb(tmp_path / 'x', contents(FILES))
    monkeypatch.setitem(sys.modules, 'lmdb', None)
    fails(tmp_path, '/x is an LMDB, which needs a package: pip install lmdb')


def test_neither_folder_nor_archive(tmp_path):
    make_folder(tmp_path, {'x': b'', 'y.zip': b'not a zip', 'z': b'PK'})
    for name in ('x', 'y.zip', 'z'):
        fails(tmp_path, f'image folder .*/{name} is not a folder, nor a zip or an LMDB;', name)
        fails(tmp_path, f'image folder .*/{name}/a does not exist;', f'{name}/a')


def test_no_image_in_it(tmp_path, make):
    make(tmp_path / 'x', contents([*OTHER, *HIDDEN]))
    fails(tmp_path, r'no image found in .*/x \(with sub-folders, files ending in .jpg')
    make(tmp_path / 'y', {})
    fails(tmp_path, 'no image found in .*/y', 'y')


# ---------------------------------------------------------------- what cannot be read


def reason(path, name='1.jpg'):
    storage, _ = open_storage(str(path))
    with pytest.raises(UnreadableImageError) as e:
        storage.read(name, storage.entries().get(name))
    one_line(e)
    assert e.value.path == f'{path}/{name}'
    return e.value.reason


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_content_of_a_zip(tmp_path, method):
    original = bytes(range(256)) * 8
    make_zip(tmp_path / 'x', {'1.jpg': original, '2.jpg': b'good'}, method)
    content = bytearray((tmp_path / 'x').read_bytes())
    for at in (35, 60, 250):
        damaged = content[:]
        damaged[at] ^= 8
        (tmp_path / 'x').write_bytes(damaged)
        assert 'it is damaged in the zip' in reason(tmp_path / 'x')
    content[0] = 0
    (tmp_path / 'x').write_bytes(content)
    assert 'there is no file at byte 0 of' in reason(tmp_path / 'x')
    dataset = UnlabeledDataset(data_root=tmp_path, data_prefix='x')
    assert dataset[0]['img_bytes'] == b'good'  # takes its place
    with pytest.raises(DataError, match='cannot read image .*x/1.jpg .there is no file.* 0 others'):
        UnlabeledDataset(data_root=tmp_path, data_prefix='x', indices=1)[0]


def test_a_deflated_file_does_not_outgrow_its_size(tmp_path):
    size = 32 << 20
    make_zip(tmp_path / 'x', {'1.jpg': bytes(size)}, zipfile.ZIP_DEFLATED)
    content = (tmp_path / 'x').read_bytes()
    assert content.count(struct.pack('<I', size)) == 2
    (tmp_path / 'x').write_bytes(content.replace(struct.pack('<I', size), b'\x10\0\0\0'))
    tracemalloc.start()
    try:
        assert 'it is damaged in the zip' in reason(tmp_path / 'x')
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_encrypted_and_other_methods(tmp_path):
    make_zip(tmp_path / 'x', contents(['1.jpg']))
    content = bytearray((tmp_path / 'x').read_bytes())
    content[content.rindex(b'PK\1\2') + 8] |= 1  # zipfile cannot write one
    (tmp_path / 'x').write_bytes(content)
    assert 'it is encrypted in the zip; it can be stored or deflated' in reason(tmp_path / 'x')
    make_zip(tmp_path / 'y', contents(['1.jpg']), zipfile.ZIP_LZMA)
    assert 'it is compressed by method 14 in the zip' in reason(tmp_path / 'y')


def test_a_key_that_is_gone(tmp_path):
    make_lmdb(tmp_path / 'x', contents(['1.jpg', '2.jpg']))
    dataset = UnlabeledDataset(data_root=tmp_path, data_prefix='x')
    storage = dataset._storages[0]
    with pytest.raises(UnreadableImageError, match='x/3.jpg: there is no such key in .*/x'):
        storage.read('3.jpg')


# ---------------------------------------------------------------- zips of other writers


class Unseekable:
    """A pipe: sizes and checksums come after the content."""

    def __init__(self, file):
        self.write, self.flush = file.write, file.flush


def test_streamed_zip(tmp_path):
    with open(tmp_path / 'x', 'wb') as f, zipfile.ZipFile(Unseekable(f), 'w') as z:
        for name in ('1.jpg', '2.jpg'):
            z.writestr(name, name.encode() * 9, zipfile.ZIP_DEFLATED)
    assert z.infolist()[0].flag_bits & 8
    contents_ = listed(UnlabeledDataset(data_root=tmp_path / 'x'))
    assert [content for _, content in contents_] == [b'1.jpg' * 9, b'2.jpg' * 9]


def test_zip64_and_long_extra_fields(tmp_path):
    with open(tmp_path / 'x', 'wb') as f:
        f.truncate(5 << 30)  # sparse: takes no room
        f.seek(5 << 30)
        with zipfile.ZipFile(f, 'w') as z:
            with z.open('1.jpg', 'w', force_zip64=True) as entry:
                entry.write(b'one' * 99)
            info = zipfile.ZipInfo('2.jpg')
            info.extra = struct.pack('<HH', 0xCAFE, 3000) + bytes(3000)
            z.writestr(info, b'two' * 99)
    storage = ZipStorage(str(tmp_path / 'x'))
    assert storage.entries()['2.jpg'][0] > 5 << 30
    assert [storage.read(name, at) for name, at in storage.entries().items()] == [
        b'one' * 99,
        b'two' * 99,
    ]


def test_a_later_file_of_the_same_name_counts(tmp_path):
    with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(tmp_path / 'x', 'w') as z:
        z.writestr('1.jpg', b'old')
        z.writestr('1.jpg', b'new')
        z.writestr(zipfile.ZipInfo('folder.jpg/'), b'')
    assert listed(UnlabeledDataset(data_root=tmp_path / 'x')) == [(f'{tmp_path}/x/1.jpg', b'new')]


# ---------------------------------------------------------------- processes


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_open_their_own(tmp_path, method):
    files = {f'{i:02}.jpg': os.urandom(5000) for i in range(20)}
    for kind, make_this in MAKE.items():
        make_this(tmp_path / kind, files)
    dataset = UnlabeledDataset(data_root=tmp_path, data_prefix=list(MAKE))
    # two data sets read one LMDB, in the main process, too, before and after
    again = UnlabeledDataset(data_root=tmp_path, data_prefix='lmdb')
    before = listed(dataset)
    assert listed(again) == [item for item in before if '/lmdb/' in item[0]]
    loader = DataLoader(
        dataset, num_workers=2, batch_size=None, multiprocessing_context=method,
        persistent_workers=True, collate_fn=itemgetter('img_path', 'img_bytes'),
    )  # fmt: skip
    for _ in range(2):
        assert list(loader) == before
        assert listed(dataset) == before
    assert listed(again) == [item for item in before if '/lmdb/' in item[0]]


def test_what_workers_are_given_holds_no_directory(tmp_path, make):
    make(tmp_path / 'x', {f'{i:05}.jpg': b'x' for i in range(2000)})
    dataset = UnlabeledDataset(data_root=tmp_path, data_prefix='x', indices=1)
    dataset[0]
    assert len(pickle.dumps(dataset)) < 5000
    assert pickle.loads(pickle.dumps(dataset))[0] == dataset[0]


def test_forked_child_of_a_reader(tmp_path, make):
    """Also without a data loader, and the child's end closes nothing of its parent's."""
    make(tmp_path / 'x', contents(FILES))
    dataset = UnlabeledDataset(data_root=tmp_path, data_prefix='x')
    expected = listed(dataset)
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe()
    child = context.Process(target=lambda: there.send(listed(dataset)))  # a pool has threads
    child.start()
    assert here.poll(60) and here.recv() == expected
    child.join(60)
    assert child.exitcode == 0
    assert listed(dataset) == expected


# ---------------------------------------------------------------- images


def test_the_same_pixels_as_from_files(images, tmp_path, make):
    files = {file.name: file.read_bytes() for file in sorted(Path(images).iterdir())}
    files['03.jpg'] = files['03.jpg'][:-100]
    make_folder(tmp_path / 'folder', files)
    make(tmp_path / 'archive', files)
    pipeline = [dict(type='mmdense.LoadImage'), dict(type='mmpretrain.PackInputs')]
    folder = UnlabeledDataset(data_root=tmp_path / 'folder', pipeline=pipeline)
    archive = UnlabeledDataset(data_root=tmp_path / 'archive', pipeline=pipeline)
    for i in range(len(files)):
        one, other = folder[i], archive[i]
        assert (one['inputs'] == other['inputs']).all()
        (of_one, of_other) = one['data_samples'].unreadable, other['data_samples'].unreadable
        assert len(of_one) == len(of_other) == (i == 3)
        for (path, reason), (other_path, other_reason) in zip(of_one, of_other):
            assert other_path == path.replace('/folder/', '/archive/') and reason == other_reason
    archive = UnlabeledDataset(data_root=tmp_path / 'archive', pipeline=pipeline[:1])
    assert not {'img_bytes', 'stored'} & set(archive[0])


def test_benchmark(repo, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(repo / 'benchmarks'))
    options = '--entries 300 --most-files 100 --images 20 --reads 50 --rounds 1 --list-rounds 1'
    monkeypatch.setattr(sys, 'argv', ['storage', *options.split(), '--folder', str(tmp_path)])
    importlib.import_module('storage').main()
    rows = [line.split(' | ')[:2] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[-1] == '300'] == [['| zip', '300'], ['| LMDB', '300']]
    assert [row[0] for row in rows[-3:]] == ['| folder', '| zip', '| LMDB']
    assert os.listdir(tmp_path) == []
