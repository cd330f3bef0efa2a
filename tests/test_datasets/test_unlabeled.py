# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import inspect
import json
import os
import random
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader

from mmdense.apis.report import show
from mmdense.datasets import UnlabeledDataset
from mmdense.datasets.unlabeled import _PICTURES
from mmdense.utils.errors import DataError, InputError

LOAD = dict(type='mmdense.LoadImage')
PIPELINE = [
    LOAD,
    dict(
        type='mmpretrain.MultiView',
        num_views=2,
        transforms=[[dict(type='mmpretrain.RandomResizedCrop', scale=16)]],
    ),
    dict(type='mmpretrain.PackInputs', meta_keys=('img_path',)),
]


def write_image(path, value=0):
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    Image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(str(path))
    return str(path)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'')


def paths(dataset):
    return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]


def names(dataset, root):
    return [os.path.relpath(path, str(root)) for path in paths(dataset)]


@pytest.fixture
def folder(tmp_path):
    """30 images, of which numbers 3 and 17 cannot be read."""
    for i in range(30):
        write_image(tmp_path / 'images' / f'{i:02}.png', i)
    (tmp_path / 'images' / '03.png').write_bytes(b'')
    content = (tmp_path / 'images' / '17.png').read_bytes()
    (tmp_path / 'images' / '17.png').write_bytes(content[:-40])
    return tmp_path / 'images'


# ---------------------------------------------------------------- a folder


def test_folder(tmp_path):
    for name in ('b.jpg', 'a/z.PNG', 'a/B.JpEg', 'a/c/x.webp', 'd.e/1.TIF', 'a-b/2.bmp'):
        touch(tmp_path / name)
    for name in ('notes.txt', 'a/jpg', '.hidden.jpg', 'a/._b.jpg', '.git/c.jpg', 'a/.cache/d.jpg'):
        touch(tmp_path / name)
    (tmp_path / 'folder.jpg').mkdir()
    dataset = UnlabeledDataset(data_root=tmp_path)
    expected = ['a-b/2.bmp', 'a/B.JpEg', 'a/c/x.webp', 'a/z.PNG', 'b.jpg', 'd.e/1.TIF']
    assert names(dataset, tmp_path) == expected
    assert names(UnlabeledDataset(data_root=tmp_path, recursive=False), tmp_path) == ['b.jpg']


def test_extensions(tmp_path):
    for name in ('a.jpg', 'b.JP2', 'c.png'):
        touch(tmp_path / name)
    dataset = UnlabeledDataset(data_root=tmp_path, extensions=['.jp2', '.PNG'])
    assert names(dataset, tmp_path) == ['b.JP2', 'c.png']


NAMES = st.text('abAB01_-é ', min_size=1, max_size=6).map(str.strip).filter(bool)
SUFFIXES = st.sampled_from(['.jpg', '.JPG', '.jpeg', '.Png', '.webp', '.TIFF', '.txt', ''])


@settings(max_examples=40, deadline=None)
@given(
    st.sets(
        st.tuples(st.lists(NAMES.map('d{}'.format), max_size=4), NAMES, SUFFIXES).map(
            lambda t: '/'.join(t[0] + ['f' + t[1] + t[2]])
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_any_nesting_gives_the_sorted_set(tmp_path_factory, files, rnd):
    root = Path(tempfile.mkdtemp(dir=str(tmp_path_factory.getbasetemp())))
    files = sorted(files)
    rnd.shuffle(files)  # the order in which they are made, and so that of most file systems
    for file in files:
        touch(root / file)
    images = sorted(
        str(root / file)
        for file in files
        if file.lower().endswith(('.jpg', '.jpeg', '.png', '.webp', '.tiff'))
    )
    if images:
        assert paths(UnlabeledDataset(data_root=root, serialize_data=False)) == images
    else:
        with pytest.raises(DataError, match='no image found'):
            UnlabeledDataset(data_root=root)


def test_symlinks(tmp_path):
    root, elsewhere = tmp_path / 'root', tmp_path / 'elsewhere'
    touch(root / 'a/1.jpg')
    touch(elsewhere / '2.jpg')
    touch(elsewhere / 'deep/3.jpg')
    (root / 'link').symlink_to(elsewhere)
    (root / '4.jpg').symlink_to(elsewhere / '2.jpg')
    (root / 'broken.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    (root / 'lost').symlink_to(tmp_path / 'nowhere')
    expected = ['4.jpg', 'a/1.jpg', 'broken.jpg', 'link/2.jpg', 'link/deep/3.jpg']
    assert names(UnlabeledDataset(data_root=root), root) == expected
    (tmp_path / 'root link').symlink_to(root)
    assert len(UnlabeledDataset(data_root=tmp_path / 'root link')) == 5


def test_symlink_cycles(tmp_path):
    for a in 'abcd':
        touch(tmp_path / a / '1.jpg')
        (tmp_path / a / 'up').symlink_to(tmp_path)
        for b in 'abcd':
            (tmp_path / a / f'to_{b}').symlink_to(tmp_path / b)
    (tmp_path / 'self').symlink_to(tmp_path)
    assert names(UnlabeledDataset(data_root=tmp_path), tmp_path) == [f'{a}/1.jpg' for a in 'abcd']


def test_data_prefix(tmp_path):
    touch(tmp_path / 'train' / '1.jpg')
    touch(tmp_path / 'val' / '2.jpg')
    for prefix in ('train', dict(img_path='train'), tmp_path / 'train'):
        dataset = UnlabeledDataset(data_root=str(tmp_path), data_prefix=prefix)
        assert names(dataset, tmp_path) == ['train/1.jpg']


@pytest.mark.parametrize('wrap', [list, tuple, lambda folders: dict(img_path=folders)])
def test_several_folders(tmp_path, wrap):
    for name in ('unlabeled/2.jpg', 'train/3.jpg', 'train/a/1.jpg', 'val/4.jpg', 'empty/5.txt'):
        touch(tmp_path / name)
    build = dict(type='mmdense.UnlabeledDataset', data_root=str(tmp_path))

    def dataset(*folders):
        return DATASETS.build(dict(build, data_prefix=wrap(list(folders))))

    expected = ['train/3.jpg', 'train/a/1.jpg', 'unlabeled/2.jpg']
    both = dataset('unlabeled', 'train')
    assert names(both, tmp_path) == expected
    assert f'{tmp_path}/unlabeled and {tmp_path}/train (with sub-folders' in both.source
    assert names(dataset('train', 'unlabeled/', 'train/', 'train/a'), tmp_path) == expected
    assert names(dataset(str(tmp_path / 'val')), tmp_path) == ['val/4.jpg']
    with pytest.raises(DataError, match='image folder .*/none does not exist; looked for'):
        dataset('train', 'none')
    with pytest.raises(DataError, match='no image found in .*/empty .with'):
        dataset('train', 'empty')


def test_several_folders_do_not_go_with_a_list(tmp_path):
    for kwargs in (dict(ann_file='a.txt', data_prefix=['a', 'b']), dict(data_prefix=[])):
        with pytest.raises(
            DataError, match='a list of folders only without ann_file, and not'
        ) as e:
            UnlabeledDataset(data_root=tmp_path, **kwargs)
        assert '\n' not in str(e.value)


def test_several_folders_are_one_data_set_to_the_hook(tmp_path):
    from mmdense.engine.hooks.unreadable_images import check_enough_images

    for name in ('a', 'b'):
        write_image(tmp_path / name / '1.png')
    dataset = UnlabeledDataset(data_root=tmp_path, data_prefix=['a', 'b'], pipeline=PIPELINE)
    check_enough_images(DataLoader(dataset, batch_size=2))
    with pytest.raises(DataError, match='2 images are fewer .* of 3 .*/a and .*/b .with sub'):
        check_enough_images(DataLoader(dataset, batch_size=3))
    (tmp_path / 'b' / '1.png').write_bytes(b'')  # replaced from the other folder
    sample = dataset[1]['data_samples']
    assert sample.img_path == str(tmp_path / 'a' / '1.png')
    assert sample.unreadable == [(str(tmp_path / 'b' / '1.png'), 'the file is empty')]


@pytest.mark.parametrize('serialize_data', [True, False])
def test_indices(tmp_path, serialize_data):
    for i in range(5):
        touch(tmp_path / f'{i}.jpg')
    build = dict(type='mmdense.UnlabeledDataset', data_root=tmp_path, serialize_data=serialize_data)
    assert names(DATASETS.build(dict(build, indices=2)), tmp_path) == ['0.jpg', '1.jpg']
    assert names(DATASETS.build(dict(build, indices=[4, 1])), tmp_path) == ['4.jpg', '1.jpg']
    with pytest.raises(DataError, match='no image left of .* with indices=0'):
        DATASETS.build(dict(build, indices=0))
    with pytest.raises(DataError, match='indices go beyond the 5 images of'):
        DATASETS.build(dict(build, indices=[1, 5]))


def test_lazy_init(tmp_path):
    dataset = UnlabeledDataset(data_root=tmp_path / 'later', lazy_init=True)
    touch(tmp_path / 'later' / '1.jpg')
    dataset.full_init()
    assert len(dataset) == 1


# ---------------------------------------------------------------- a list, a json


def test_list(tmp_path):
    other = write_image(tmp_path / 'other' / '3.png')
    for name in ('z.png', 'a b/é.png'):
        write_image(tmp_path / 'images' / name)
    (tmp_path / 'list.txt').write_bytes(
        f'\ufeffz.png\r\n\r\n  a b/é.png  \nmissing.png\n{other}'.encode()
    )
    dataset = UnlabeledDataset(data_root=tmp_path, ann_file='list.txt', data_prefix='images')
    images = str(tmp_path / 'images')
    assert paths(dataset) == [
        f'{images}/z.png',
        f'{images}/a b/é.png',
        f'{images}/missing.png',
        other,
    ]


def test_list_of_file_urls(tmp_path):
    touch(tmp_path / 'x.jpg')
    (tmp_path / 'list.txt').write_text(f'file://{tmp_path}/x.jpg\n')
    dataset = UnlabeledDataset(ann_file=str(tmp_path / 'list.txt'))
    assert paths(dataset) == [f'{tmp_path}/x.jpg']


def test_list_on_an_unknown_backend(tmp_path):
    (tmp_path / 'list.txt').write_text('gs://bucket/a.jpg\n')
    with pytest.raises(DataError, match='MMEngine knows no storage gs://, of gs://bucket/a.jpg'):
        UnlabeledDataset(ann_file=str(tmp_path / 'list.txt'))


def test_list_on_another_backend_is_not_looked_up(tmp_path):
    (tmp_path / 'list.txt').write_text('a.jpg\nb.jpg\n')
    dataset = UnlabeledDataset(ann_file=str(tmp_path / 'list.txt'), data_prefix='s3://bucket/x')
    assert paths(dataset) == ['s3://bucket/x/a.jpg', 's3://bucket/x/b.jpg']


def test_coco_json(data_root):
    dataset = UnlabeledDataset(
        data_root=data_root / 'coco',
        ann_file='annotations/instances_train2017.json',
        data_prefix='train2017',
        pipeline=[LOAD],
    )
    content = json.loads((data_root / 'coco/annotations/instances_train2017.json').read_text())
    assert len(dataset) == len(content['images'])
    for i, image in enumerate(content['images'][:5]):
        results = dataset[i]
        assert os.path.basename(results['img_path']) == image['file_name']
        assert results['img_shape'] == (image['height'], image['width'])


def test_coco_folder(data_root):
    dataset = UnlabeledDataset(data_root=data_root / 'coco', data_prefix='val2017', pipeline=[LOAD])
    assert len(dataset) == 128
    assert all(dataset[i]['img'].ndim == 3 for i in range(0, 128, 16))


# ---------------------------------------------------------------- wrong input


def test_missing_and_empty_folders(tmp_path):
    (tmp_path / 'empty').mkdir()
    touch(tmp_path / 'labels/a.txt')
    touch(tmp_path / 'file.jpg')
    with pytest.raises(DataError, match='image folder .*/none does not exist; looked for'):
        UnlabeledDataset(data_root=tmp_path / 'none')
    with pytest.raises(DataError, match='image folder .*/a.txt is not a folder, nor a zip'):
        UnlabeledDataset(data_root=tmp_path / 'labels/a.txt')
    for name in ('empty', 'labels'):
        pattern = f'no image found in .*/{name} .with sub-folders, files ending in .jpg .jpeg'
        with pytest.raises(DataError, match=pattern) as e:
            UnlabeledDataset(data_root=tmp_path, data_prefix=name)
        assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('a.txt', '', 'image list .*a.txt is empty; looked for one path on each line'),
        ('a.txt', ' \n\n', 'image list .*a.txt is empty'),
        ('a.txt', 'x.jpg\ny.jpg', 'none of the 2 images in .* exists; .* looked for at .*x.jpg'),
        ('a.txt', b'\xff\xfe\x00', 'cannot read the image list .*a.txt'),
        ('a.json', '', 'cannot read the json .*a.json'),
        ('a.json', '{"images": [', 'cannot read the json .*a.json'),
        ('a.json', '3', 'a.json names no images: .* found int'),
        ('a.json', '[1]', r'a.json: \[0\] has no "file_name" or other path of an image: 1'),
        ('a.json', '[]', 'a.json is empty: its list has no entry'),
        ('a.json', '{"items": []}', r"looked for a list \"images\".*found \['items'\]"),
        ('a.json', '{"data_list": []}', 'a.json is empty: its list "data_list" has no entry'),
        ('a.json', '{"images": []}', 'a.json is empty: its list "images" has no entry'),
        ('a.json', '{"images": {"a": 1}}', 'looked for a list "images"'),
        (
            'a.json',
            '{"images": [{"file_name": "a"}, {"id": 1}]}',
            r'images\[1\] has no "file_name"',
        ),
        ('a.json', '{"images": [[1]]}', r'images\[0\] has no "file_name"'),
        ('a.csv', 'x.jpg', 'ann_file must be a .txt list or a COCO .json, got .*a.csv'),
    ],
)
def test_wrong_annotation_files(tmp_path, name, content, message):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as e:
        UnlabeledDataset(data_root=tmp_path, ann_file=name)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'name, content',
    [
        ('mmpretrain.txt', 'b/2.jpg 0\na/1.png 12\n'),
        ('csv.txt', 'b/2.jpg,0\na/1.png,1\n'),
        ('comment.txt', '# of Monday\nb/2.jpg\n\na/1.png\n'),
        ('voc.txt', 'b/2\na/1\n'),
        ('voc_main.txt', 'b/2  1\na/1 -1\n'),
        ('mmseg.txt', 'b/2.jpg b/2.png\na/1.png a/1_mask.png\n'),
        ('classes.txt', 'b/2.jpg\tbig cat\na/1.png\tdog\n'),
        ('classes_csv.txt', 'b/2.jpg,cat\na/1.png,dog\n'),
        ('places365.txt', '/b/2.jpg 0\n/a/1.png 7\n'),
        ('windows.txt', 'b\\2.jpg\r\na\\1.png\r\n'),
        ('windows.json', {'images': [{'file_name': 'b\\2.jpg'}, {'file_name': 'a\\1.png'}]}),
        ('bdd100k.json', [{'name': 'b/2.jpg', 'labels': []}, {'name': 'a/1.png'}]),
        ('yolo.txt', './b/2.jpg\n./a/1.png\n'),
        ('coco.json', {'images': [{'file_name': 'b/2.jpg'}, {'file_name': 'a/1.png'}]}),
        (
            'lvis.json',
            {'images': [{'coco_url': 'http://x/y/b/2.jpg'}, {'coco_url': 'http://x/a/1.png'}]},
        ),
        (
            'mmengine.json',
            {'metainfo': {}, 'data_list': [{'img_path': 'b/2.jpg'}, {'img_path': 'a/1.png'}]},
        ),
        ('paths.json', ['b/2.jpg', 'a/1.png']),
        ('detectron2.json', [{'file_name': 'b/2.jpg', 'height': 3}, {'file_name': 'a/1.png'}]),
        ('filename.json', [{'filename': 'b/2.jpg'}, {'filename': 'a/1.png'}]),
    ],
)
def test_lists_of_other_packages(tmp_path, name, content):
    touch(tmp_path / 'a/1.png')
    touch(tmp_path / 'b/2.jpg')
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    dataset = UnlabeledDataset(data_root=tmp_path, ann_file=name)
    found = [os.path.relpath(path, tmp_path) for path in paths(dataset)]
    assert found == ['b/2.jpg', 'a/1.png']
    dataset = UnlabeledDataset(data_root=tmp_path, ann_file=name, exclude=['a'])
    assert [os.path.relpath(path, tmp_path) for path in paths(dataset)][:1] == ['b/2.jpg']


@pytest.mark.parametrize(
    'exclude, left',
    [
        (['ann_dir'], ['a_mask.png', 'img_dir/train/1.jpg', 'img_dir/val/2.jpg', 'x/masks/3.png']),
        (['ann_dir/*', 'x'], ['a_mask.png', 'img_dir/train/1.jpg', 'img_dir/val/2.jpg']),
        (['img_dir/val/', 'ann_dir/'], ['a_mask.png', 'img_dir/train/1.jpg', 'x/masks/3.png']),
        (['*.png'], ['img_dir/train/1.jpg', 'img_dir/val/2.jpg']),
        (['**/masks/**', 'ann_dir', '*_mask.png'], ['img_dir/train/1.jpg', 'img_dir/val/2.jpg']),
        (['train'], ['a_mask.png', 'img_dir/val/2.jpg', 'x/masks/3.png']),
        (['masks*'], None),
        (['nothing'], None),
    ],
)
def test_exclude(tmp_path, exclude, left):
    names = ['img_dir/train/1.jpg', 'img_dir/val/2.jpg', 'ann_dir/train/1.png', 'x/masks/3.png']
    names.append('a_mask.png')
    for name in names:
        touch(tmp_path / 'photos' / name)
    if left is None:
        left = [name for name in sorted(names) if exclude == ['nothing'] or 'masks' not in name]
    with zipfile.ZipFile(tmp_path / 'photos.zip', 'w') as z:
        for name in names:
            z.writestr(name, b'x')
    for root in ('photos', 'photos.zip'):
        dataset = UnlabeledDataset(data_root=tmp_path / root, exclude=exclude)
        assert [os.path.relpath(path, tmp_path / root) for path in paths(dataset)] == left


def test_what_runs_wrote_is_left_out(tmp_path):
    for name in (
        *('1.jpg', 'night/2.jpg', 'work_dirs/show/features.png', 'out/3/epoch.png'),
        *('out/last_checkpoint', '20260101_000000/vis_data/vis_image/x.png', 'features.png'),
        *(
            'pages/features.png',
            'pages/correspondence_12.png',
            'pages/regions.png',
            'pages/photo.png',
            'docs/index.html',
        ),
    ):
        touch(tmp_path / name)
    (tmp_path / 'docs/features.png').write_bytes(b'')  # of somebody else's page
    (tmp_path / 'pages/index.html').write_text('<meta name="generator" content="mmdense 9">')
    dataset = UnlabeledDataset(data_root=tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in paths(dataset)] == [
        *('1.jpg', 'docs/features.png', 'features.png', 'night/2.jpg', 'pages/photo.png'),
    ]
    found = {os.path.relpath(path, tmp_path) for path in dataset.own_folders}
    assert found == {'work_dirs', 'out', '20260101_000000'}
    # `mmdense show` writes no other pictures
    drawn = re.findall(r"f?'([\w{}]+\.png)'", inspect.getsource(show))
    assert len(drawn) > 6
    assert all(_PICTURES.fullmatch(name.replace('{i}', '12')) for name in drawn)
    # the folder that is named is searched, whatever it is called
    assert len(UnlabeledDataset(data_root=tmp_path / 'work_dirs')) == 1
    assert len(UnlabeledDataset(data_root=tmp_path / 'out')) == 1


def test_files_and_patterns(tmp_path):
    for name in ('a/rgb/1.jpg', 'a/depth/1.png', 'b/rgb/2.jpg', 'b/notes.txt', 'c.png'):
        touch(tmp_path / name)

    def found(*prefixes):
        dataset = UnlabeledDataset(data_root=tmp_path, data_prefix=list(prefixes))
        return [os.path.relpath(path, tmp_path) for path in paths(dataset)]

    assert found('*/rgb') == ['a/rgb/1.jpg', 'b/rgb/2.jpg']
    assert found('c.png', 'a/rgb/1.jpg') == ['a/rgb/1.jpg', 'c.png']
    assert found('**/*.png') == ['a/depth/1.png', 'c.png']
    assert found('b/*', 'c.png') == ['b/rgb/2.jpg', 'c.png']
    with pytest.raises(DataError, match=r'no file or folder fits the pattern .*/x\*'):
        found('x*')
    touch(tmp_path / '[x]/3.jpg')  # the name of a folder, and no pattern
    assert found('[x]') == ['[x]/3.jpg']


def test_formats_that_are_not_read_are_counted(tmp_path):
    for name in ('1.jp2', '2.JP2', 'raw/3.dng', 'labels/4.txt'):
        touch(tmp_path / name)
    with pytest.raises(DataError, match='no image found .*; it has 2 .jp2, 1 .dng, which are not'):
        UnlabeledDataset(data_root=tmp_path)
    touch(tmp_path / '4.jpg')
    assert UnlabeledDataset(data_root=tmp_path).unread == {'.jp2': 2, '.dng': 1}
    assert UnlabeledDataset(data_root=tmp_path, extensions=['.jp2']).unread == {
        '.dng': 1,
        '.jpg': 1,
    }


def test_missing_annotation_file(tmp_path):
    for name in ('none.txt', 'none.json'):
        with pytest.raises(DataError, match=f'cannot read the .*{name}'):
            UnlabeledDataset(data_root=tmp_path, ann_file=name)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(data_root=None), 'data_root must be a path, got None'),
        (dict(data_root=3), 'data_root must be a path, got 3'),
        (dict(ann_file=['a.txt']), 'ann_file must be a path'),
        (dict(data_prefix=dict(img='a')), r"dict\(img_path=folder\), got the keys \['img'\]"),
        (dict(data_prefix=['a', 1]), 'data_prefix must be a path, got 1'),
        (dict(data_prefix=dict(img_path=1)), 'data_prefix must be a path, got 1'),
        (dict(extensions='.jpg'), "extensions must be like .*, got '.jpg'"),
        (dict(extensions=()), 'extensions must be like'),
        (dict(extensions=['jpg']), 'extensions must be like'),
        (dict(extensions=[1]), 'extensions must be like'),
        (dict(indices=1.5), 'indices should be a int or sequence of int'),
        (dict(with_label=False), "unexpected keyword argument 'with_label'"),
    ],
)
def test_wrong_arguments(tmp_path, kwargs, message):
    touch(tmp_path / '1.jpg')
    with pytest.raises(TypeError, match=message):
        UnlabeledDataset(**dict(dict(data_root=tmp_path), **kwargs))


@pytest.mark.parametrize('value', [-1, 2.5, True])
def test_wrong_max_refetch(tmp_path, value):
    touch(tmp_path / '1.jpg')
    message = f'max_refetch must be a whole number of at least 0, got {value}'
    with pytest.raises(InputError, match=message):
        UnlabeledDataset(data_root=tmp_path, max_refetch=value)


def test_no_source():
    with pytest.raises(DataError, match='needs data_root, data_prefix or ann_file'):
        UnlabeledDataset()


# ---------------------------------------------------------------- unreadable images


def test_replacement_depends_on_the_index_alone(folder):
    first = UnlabeledDataset(data_root=folder, pipeline=PIPELINE)
    second = UnlabeledDataset(data_root=folder, pipeline=PIPELINE)
    taken = {}
    for i in range(30):
        sample = first[i]['data_samples']
        if i in (3, 17):
            (path, reason), *more = sample.unreadable
            assert path == str(folder / f'{i:02}.png') and not more
            assert sample.img_path != path
            taken[i] = sample.img_path
        else:
            assert sample.unreadable == []
            assert sample.img_path == str(folder / f'{i:02}.png')
    np.random.seed(1)
    for i in (17, 3):  # in another order, and after other random numbers
        assert second[i]['data_samples'].img_path == taken[i]
    assert first[3]['data_samples'].unreadable == [(str(folder / '03.png'), 'the file is empty')]


def test_replacement_leaves_the_global_random_state_alone(folder):
    dataset = UnlabeledDataset(data_root=folder, pipeline=[LOAD])
    random.seed(0), np.random.seed(0)
    expected = random.random(), np.random.rand()
    random.seed(0), np.random.seed(0)
    dataset[3]
    assert (random.random(), np.random.rand()) == expected


@pytest.mark.parametrize('good', range(6))
def test_one_good_image_is_found(tmp_path, good):
    for i in range(6):
        touch(tmp_path / f'{i}.png')
    path = write_image(tmp_path / f'{good}.png')
    dataset = UnlabeledDataset(data_root=tmp_path, pipeline=PIPELINE)
    for i in range(6):
        sample = dataset[i]['data_samples']
        assert sample.img_path == path
        assert len({p for p, _ in sample.unreadable}) == len(sample.unreadable)
        assert path not in [p for p, _ in sample.unreadable]


@pytest.mark.parametrize('max_refetch, others', [(0, 0), (2, 2), (100, 5)])
def test_gives_up_in_one_line(tmp_path, max_refetch, others):
    for i in range(6):
        touch(tmp_path / f'{i}.png')
    dataset = UnlabeledDataset(data_root=tmp_path, pipeline=PIPELINE, max_refetch=max_refetch)
    message = (
        f'image .*2.png .the file is empty., nor any of {others} others .* of 6 from {tmp_path}'
    )
    with pytest.raises(DataError, match=message) as e:
        dataset[2]
    assert '\n' not in str(e.value)


def test_iteration_stops(folder):
    assert len(list(UnlabeledDataset(data_root=folder, pipeline=[LOAD]))) == 30


def test_other_errors_are_not_swallowed(folder):
    def broken(results):
        raise ValueError('a mistake in the pipeline')

    with pytest.raises(ValueError, match='a mistake in the pipeline'):
        UnlabeledDataset(data_root=folder, pipeline=[broken])[0]


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('serialize_data', [True, False])
def test_full_batches_through_a_data_loader(folder, num_workers, serialize_data):
    dataloader = Runner.build_dataloader(
        dict(
            batch_size=10,
            num_workers=num_workers,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='mmdense.default_collate'),
            dataset=dict(
                type='mmdense.UnlabeledDataset',
                data_root=str(folder),
                pipeline=PIPELINE,
                serialize_data=serialize_data,
            ),
        ),
        seed=0,
    )
    unreadable = []
    for batch in dataloader:
        assert [view.shape for view in batch['inputs']] == [(10, 3, 16, 16)] * 2
        assert len(batch['data_samples']) == 10
        for view, sample in zip(batch['inputs'][0], batch['data_samples']):
            assert (view == int(os.path.basename(sample.img_path)[:2])).all()
            unreadable += [path for path, _ in sample.unreadable]
    assert unreadable == [str(folder / '03.png'), str(folder / '17.png')]
