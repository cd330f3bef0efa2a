# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What of the files that users name are images: label maps, patterns, values and bands."""

import json
import os

import cv2
import numpy as np
import pytest
from tiny_algorithms import tiny_form

from mmdense.apis import planning
from mmdense.apis.planning import Options, survey
from mmdense.apis.planning.label_maps import looks_like_labels
from mmdense.apis.planning.survey import shorten_paths
from mmdense.datasets import UnlabeledDataset
from mmdense.utils.errors import DataError

RNG = np.random.RandomState(0)


def photo():
    return cv2.resize(
        RNG.randint(0, 256, (6, 8, 3), np.uint8), (96, 72), interpolation=cv2.INTER_CUBIC
    )


def label_map(classes=11):
    small = RNG.randint(0, classes, (6, 8), np.uint8)
    return cv2.resize(small, (96, 72), interpolation=cv2.INTER_NEAREST)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if path.suffix == '.webp' else []  # lossless
    if options and pixels.dtype == np.uint16:  # which a WebP does not hold
        pixels = np.dstack([pixels >> 8, pixels & 255, pixels & 0]).astype(np.uint8)
    assert cv2.imwrite(str(path), pixels, options)


def names(found):
    dataset = UnlabeledDataset(**found.dataset)
    root = found.dataset['data_root']
    return [
        os.path.relpath(dataset.get_data_info(i)['img_path'], root) for i in range(len(dataset))
    ]


# Of each layout: the path of an image, that of its label map, and the pattern that leaves it out.
LAYOUTS = dict(
    mmseg=('img_dir/train/{}.jpg', 'ann_dir/train/{}.png', ['ann_dir']),
    voc=('JPEGImages/{}.jpg', 'SegmentationClass/{}.png', ['SegmentationClass']),
    cityscapes=(
        'leftImg8bit/aachen/aachen_{:06}_leftImg8bit.png',
        'gtFine/aachen/aachen_{:06}_gtFine_labelIds.png',
        ['gtFine'],
    ),
    one_folder=('{}.jpg', '{}.png', ['*.png']),
    kaggle=('{}.png', '{}_mask.png', ['*_mask.png']),
    beginnings=('img_{}.png', 'mask_{}.png', ['mask_*.png']),
    beginning=('{}.jpg', 'gt_{}.bmp', ['gt_*.bmp']),
    webp=('images/{}.webp', 'masks/{}.webp', ['masks']),
    photos=('a/photos/{}.tif', 'a/masks/{}.gif.png', ['a/masks']),
    loveda=('Rural/images_png/{}.png', 'Rural/masks_png/{}.png', ['Rural/masks_png']),
    brackets=('[1]/img/{}.jpg', '[1]/gt/{}.png', ['[[]1]/gt']),
)


KINDS = ['classes', 'binary', 'colors', 'instances', 'noise']
PAIRS = {(layout, KINDS[i % len(KINDS)]) for i, layout in enumerate(LAYOUTS)}


@pytest.mark.parametrize(
    'layout, kind',
    [
        pytest.param(layout, kind, marks=[pytest.mark.slow] * ((layout, kind) not in PAIRS))
        for layout in LAYOUTS
        for kind in KINDS
    ],
)
def test_label_maps_are_left_out(tmp_path, layout, kind):
    image, label, exclude = LAYOUTS[layout]
    palette = RNG.randint(0, 256, (256, 3), np.uint8)
    for i in range(6):
        write(tmp_path / image.format(i), photo())
        pixels = dict(
            classes=label_map(),
            binary=label_map(2) * 255,
            colors=palette[label_map()],
            instances=label_map().astype(np.uint16) * 1000 + 26000,
            noise=RNG.randint(0, 11, (72, 96), np.uint8),
        )[kind]
        write(tmp_path / label.format(i), pixels)
    found = planning.survey_images(str(tmp_path))
    assert found.count == 6 and found.dataset['exclude'] == exclude
    assert names(found) == sorted(image.format(i) for i in range(6))
    assert f'6 label maps are left out: {exclude[0]}' in found.messages


@pytest.mark.parametrize(
    'image, label, exclude',
    [
        ('{}/image.png', '{}/mask.png', ['mask.png']),
        ('train/{}/images/a{}.png', 'train/{}/masks/b{}.png', ['masks']),
        ('train/{}/img.jpg', 'train/{}/label.jpg', None),
    ],
)
def test_a_folder_for_each_image(tmp_path, image, label, exclude):
    for i in range(8):
        write(tmp_path / image.format(i, i), photo())
        write(tmp_path / label.format(i, i), label_map(2) * 255)
    found = planning.survey_images(str(tmp_path))
    if exclude is None:  # JPEGs of other names are not read
        assert found.count == 16
    else:
        assert found.count == 8 and found.dataset['exclude'] == exclude
        assert f'8 label maps are left out: {exclude[0]}' in found.messages


def test_masks_in_jpegs(tmp_path):
    """Of two values; photographs of the same names in two folders stay."""
    for i in range(6):
        write(tmp_path / f'images/{i}.jpg', photo())
        write(tmp_path / f'night/{i}.jpg', photo() // 20)
        write(tmp_path / f'masks/{i}.jpg', label_map(2) * 255)
    found = planning.survey_images(str(tmp_path))
    assert found.count == 12 and found.dataset['exclude'] == ['masks']
    for path in (tmp_path / 'masks').iterdir():
        path.rename(path.with_name(f'x{path.name}'))
    assert planning.survey_images(str(tmp_path)).count == 18  # nothing says that they are masks


def test_what_is_no_label_map(tmp_path):
    for i in range(6):
        write(tmp_path / f'rgb/{i}.png', photo())
        write(tmp_path / f'dark/{i}.png', photo() // 8)
        gray = cv2.cvtColor(photo(), cv2.COLOR_BGR2GRAY)
        write(tmp_path / f'thermal/{i}.png', 51000 + gray.astype(np.uint16) * 4)
        fluorescence = photo()
        fluorescence[:50] = 0  # a black background
        write(tmp_path / f'microscope/{i}.png', fluorescence)
        write(tmp_path / f'infrared/{i}.png', 20 + gray // 6)  # of 40 values
    found = planning.survey_images(str(tmp_path))
    assert found.count == 30 and found.messages == () and 'exclude' not in found.dataset


def test_label_maps_without_images_are_named(tmp_path):
    for i in range(6):
        write(tmp_path / f'a/{i}.jpg', photo())
        write(tmp_path / f'b/x{i}.png', label_map())
    found = planning.survey_images(str(tmp_path))
    assert found.count == 12 and 'exclude' not in found.dataset
    (message,) = found.messages
    assert message.startswith('6 look like label maps (few colors; b): --exclude PATTERN')
    found = planning.survey_images(str(tmp_path), exclude=['b'])  # what the message says
    assert found.count == 6 and found.messages == ('6 left out by --exclude',)
    with pytest.raises(DataError, match='--exclude c d fits none of the 12 images'):
        planning.survey_images(str(tmp_path), exclude=['c', 'd'])


def test_looks():
    assert looks_like_labels(label_map()[..., None])
    assert not looks_like_labels(photo())
    alpha = np.dstack([label_map(), np.full((72, 96), 255, np.uint8)])
    assert looks_like_labels(alpha)
    many = np.arange(300, dtype=np.uint16).repeat(20).reshape(60, 100, 1)  # nuclei, say
    assert looks_like_labels(many)
    for classes in (2, 21, 60):
        assert looks_like_labels(RNG.randint(0, classes, (72, 96, 1), np.uint8))
    assert not looks_like_labels(RNG.randint(0, 256, (3, 3, 3), np.uint8))


def test_several(tmp_path):
    for i in range(4):
        for folder in ('day', 'night', 'masks'):
            write(tmp_path / folder / f'{i}.jpg', photo())
    (tmp_path / 'night/9.jp2').write_bytes(b'')
    (tmp_path / 'night/work_dirs').mkdir()
    folders = [str(tmp_path / name) for name in ('day', 'night')]
    found = planning.survey_images(folders)
    assert found.count == 8 and found.path == f'{folders[0]} and 1 more'
    assert found.dataset == dict(data_root='', data_prefix=folders)
    assert 'what a run wrote is left out: ../night/work_dirs' in found.messages
    assert 'there are 1 .jp2, which is not read' in found.messages
    pattern = str(tmp_path / '*ght')
    assert planning.survey_images(pattern).dataset == dict(data_root='', data_prefix=[pattern])
    # as a shell hands it over
    files = sorted(str(path) for path in (tmp_path / 'day').glob('*.jpg'))
    assert shorten_paths(files) == [str(tmp_path / 'day/*.jpg')]
    assert shorten_paths(files[1:] + folders) == files[1:] + folders
    assert planning.survey_images(files).dataset['data_prefix'] == [str(tmp_path / 'day/*.jpg')]
    found = planning.survey_images(files[1:])
    assert found.count == 3 and found.dataset['data_prefix'] == files[1:]

    (tmp_path / 'a.json').write_text(json.dumps(['day/1.jpg']))
    with pytest.raises(DataError, match='a.json is a list of images: give it alone'):
        planning.survey_images([str(tmp_path / 'a.json'), folders[0]])
    with pytest.raises(DataError, match='/none does not exist: give a folder, images'):
        planning.survey_images([folders[0], str(tmp_path / 'none')])
    with pytest.raises(DataError, match='no file or folder fits the pattern'):
        planning.survey_images(str(tmp_path / 'x*'))


@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'yaml', 'lst'])
def test_lists_that_are_not_read(tmp_path, ending):
    path = tmp_path / f'train.{ending}'
    path.write_text('path: ../coco128\nnames:\n')
    with pytest.raises(DataError, match=r"a \.json; it begins with 'path: ../coco128'"):
        planning.survey_images(str(path))


@pytest.mark.parametrize('ending', ['txt', 'json'])
def test_lists_of_addresses(tmp_path, ending):
    """Of the web they are refused; those of a storage's backend stay as they are."""
    names = ['https://example.com/a.jpg', 'https://example.com/b.jpg']
    path = tmp_path / f'images.{ending}'
    path.write_text('\n'.join(names) if ending == 'txt' else json.dumps(names))
    with pytest.raises(DataError, match='addresses on the web, https://example.com/a.jpg first: d'):
        survey.survey_images(path)
    path.write_text(path.read_text().replace('https://example.com', 's3://bucket'))
    dataset = UnlabeledDataset(ann_file=str(path), data_prefix='images')
    assert dataset.get_data_info(0)['img_path'] == 's3://bucket/a.jpg'


def test_voc_list(tmp_path):
    write(tmp_path / 'JPEGImages/1.jpg', photo())
    path = tmp_path / 'ImageSets/Main/train.txt'
    path.parent.mkdir(parents=True)
    path.write_text('1\n')
    found = planning.survey_images(str(path))
    assert found.count == 1 and found.dataset['data_prefix'] == str(tmp_path / 'JPEGImages')


def settings_of(found, **options):
    recipe = planning.find_method(tiny_form().method).recipe
    machine = planning.Machine('cpu', '', 0, 8 << 30, 2, '')
    network = planning.Network({}, 2048, 23_000_000, 10 << 20)
    rows = planning.derive_settings(found, machine, network, recipe, Options(**options))
    return {row.name: row for row in rows}


@pytest.mark.parametrize(
    'low, high, expected',
    [(0, 4095, (0, 4096)), (0, 900, (0, 1024)), (51000, 52000, None), (0, 65535, 'wide')],
)
def test_16_bits_that_use_a_part(tmp_path, low, high, expected):
    for i in range(9):
        gray = cv2.cvtColor(photo(), cv2.COLOR_BGR2GRAY) / 255
        write(tmp_path / f'{i}.png', (low + gray * (high - low)).astype(np.uint16))
    found = planning.survey_images(str(tmp_path))
    rows = settings_of(found)
    if expected == 'wide':
        assert found.narrow is None and 'value range' not in rows
        return
    row = rows['value range']
    (value,) = row.config.values()
    assert value == expected or expected is None and 51000 <= value[0] < value[1] <= 52100
    assert list(row.config) == ['pipeline.0.value_range']
    assert 'of 0 to 65,535 (sample of 9): in full range' in row.reason
    given = planning.survey_images(str(tmp_path), value_range=('1%', '99%'))
    row = settings_of(given, value_range=('1%', '99%'))['value range']
    assert (row.value, row.reason) == ('1% to 99%', 'set explicitly')


@pytest.mark.parametrize('bands', [1, 4, 8])
def test_bands(tmp_path, bands):
    values = RNG.randint(0, 4096, (9, 40, 48, bands)).astype(np.uint16)
    for i, image in enumerate(values):
        np.save(tmp_path / f'{i}.npy', image)
    with pytest.raises(DataError, match=r'it has 9 \.npy, which are not read \(.*--in-channels'):
        planning.survey_images(str(tmp_path))
    found = planning.survey_images(str(tmp_path), channels=bands)
    assert '.npy' in found.dataset['extensions'] and found.narrow.value_range == (0, 4096)
    mean, std = found.pixels
    scaled = (values >> 4).reshape(-1, bands)
    assert np.allclose(mean, scaled.mean(0), atol=0.01) and np.allclose(
        std, scaled.std(0), atol=0.01
    )
    row = settings_of(found, in_channels=bands)['channels']
    assert row.value == str(bands) and row.config['pipeline.0.channels'] == bands
    if bands > 1:
        with pytest.raises(DataError, match=f'it has {bands} bands, and 2 channels are read'):
            planning.survey_images(str(tmp_path), channels=2)
