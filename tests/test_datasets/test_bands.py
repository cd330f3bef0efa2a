# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Files of more than 8 bits, and of one, four or eight bands."""

import io
import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from mmdense.datasets import LoadImage, decode_image
from mmdense.datasets.transforms.loading import read_header
from mmdense.utils.errors import InputError

HEIGHT, WIDTH = 37, 53


def draw(bands, dtype=np.uint16, high=4096):
    values = np.random.RandomState(bands).randint(0, high, (HEIGHT, WIDTH, bands))
    return (values[..., 0] if bands == 1 else values).astype(dtype)


def tiff(values, **options):
    tifffile = pytest.importorskip('tifffile')
    options.setdefault('photometric', 'rgb' if values.shape[2:] == (3,) else 'minisblack')
    if values.ndim == 3:
        options.setdefault('planarconfig', 'contig')
        if options['planarconfig'] == 'separate':
            values = np.moveaxis(values, 2, 0)
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, metadata=None, **options)
    return stream.getvalue()


def png(values):
    return cv2.imencode('.png', values[..., ::-1] if values.ndim == 3 else values)[1].tobytes()


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def scale(values, low, high):
    return np.clip((values.astype(float) - low) * 256 / (high - low), 0, 255).astype(np.uint8)


@pytest.mark.parametrize('bands', [1, 3])
@pytest.mark.parametrize('encode', [png, tiff, npy])
def test_a_fixed_range(encode, bands):
    values = draw(bands)
    found = decode_image(encode(values), value_range=(0, 4096))
    expected = scale(values, 0, 4096)
    expected = expected[..., None].repeat(3, 2) if bands == 1 else expected[..., ::-1]
    assert np.array_equal(found, expected) and len(np.unique(found)) == 256
    assert found.flags.writeable and found.flags.c_contiguous
    dark = decode_image(encode(values))
    assert len(np.unique(dark)) == 16 and np.array_equal(
        dark, decode_image(encode(values), value_range=(0, 65536))
    )


def test_a_range_by_percentiles():
    values = 51000 + draw(1, high=1200)
    low, high = np.percentile(values, [2, 98])
    found = decode_image(png(values), value_range=('2%', '98%'))
    assert np.array_equal(found[..., 0], scale(values, low, high))
    flat = decode_image(png(np.full((9, 9), 300, np.uint16)), value_range=('1%', '99%'))
    assert flat.shape == (9, 9, 3) and not flat.any()


def test_the_range_leaves_8_bits_alone():
    values = draw(3, np.uint8, 256)
    for content in (png(values), cv2.imencode('.jpg', values)[1].tobytes()):
        assert np.array_equal(decode_image(content, value_range=(0, 4096)), decode_image(content))


def test_floating_point_numbers():
    values = np.linspace(-3, 5, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    values[0, :3] = np.nan, np.inf, -np.inf
    for content in (tiff(values), npy(values)):
        with pytest.raises(ValueError, match='value_range= of LoadImage'):
            decode_image(content)
        with pytest.raises(ValueError, match='value_range= of LoadImage'):
            read_header(content)
        found = decode_image(content, value_range=(-3, 5))[..., 0]
        assert found[0, :3].tolist() == [0, 255, 0] and found[-1, -1] == 255
        assert np.array_equal(found[1:], scale(values[1:], -3, 5))
        assert read_header(content, value_range=(-3, 5)) == (WIDTH, HEIGHT, 1, 32)


@pytest.mark.parametrize('photometric', ['minisblack', 'miniswhite'])
@pytest.mark.parametrize('compression', [None, 'deflate', 'lzma'])
@pytest.mark.parametrize('byteorder', ['<', '>'])
@pytest.mark.parametrize('dtype', ['i2', 'u2', 'i4', 'u4', 'f4'])
def test_every_number_of_a_gray_tiff(dtype, byteorder, compression, photometric):
    """From the smallest to the largest, by a range in the file's own values."""
    steps = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    ends = np.iinfo(dtype) if dtype[0] != 'f' else np.finfo(dtype)
    low, high = (float(ends.min), float(ends.max)) if dtype[0] != 'f' else (-3.0, 5.0)
    values = (low + steps * (high - low)).astype(dtype)
    content = tiff(values, byteorder=byteorder, compression=compression, photometric=photometric)
    found = decode_image(content, value_range=(low, high))[..., 0].astype(int)
    expected = scale(values, low, high).astype(int)
    expected = expected if photometric == 'minisblack' else 255 - expected
    assert abs(found - expected).max() <= 1
    assert {0, 255} <= set(found.flat) and len(np.unique(found)) == 256
    assert read_header(content, value_range=(low, high))[:3] == (WIDTH, HEIGHT, 1)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [1, 3, 4, 5])
@pytest.mark.parametrize('photometric, bands', [('separated', 4), ('rgb', 4), ('rgb', 5)])
def test_the_header_says_what_the_decoder_says(photometric, bands, channels, dtype):
    """Of CMYK, and of colors with further bands; CMYK's four bands are as they are in the file."""
    values = draw(bands, dtype, np.iinfo(dtype).max)
    content = tiff(values, photometric=photometric)
    outcomes = []
    for function in (decode_image, read_header):
        try:
            outcomes.append(function(content, channels=channels))
        except ValueError as e:
            outcomes.append(str(e))
    pixels, header = outcomes
    if isinstance(pixels, str):
        assert header == pixels
    else:
        assert header[:3] == (WIDTH, HEIGHT, bands) and pixels.shape[2] == channels
        if channels == bands:
            assert np.array_equal(pixels, values if dtype == np.uint8 else values >> 8)
    assert isinstance(pixels, str) == (
        (channels, bands) in [(1, 5), (3, 5), (4, 5), (5, 4)]
        or photometric == 'separated'
        and dtype == np.uint16
        and channels == 1
    )


@pytest.mark.parametrize('bands', [1, 4, 8])
@pytest.mark.parametrize('dtype, high', [(np.uint8, 256), (np.uint16, 65536)])
@pytest.mark.parametrize('layout', ['contig', 'separate', 'pages', 'npy', 'npy planes'])
def test_bands(layout, dtype, high, bands):
    values = draw(bands, dtype, high)
    cube = values.reshape(HEIGHT, WIDTH, bands)
    if layout == 'npy':
        content = npy(values)
    elif layout == 'npy planes':
        content = npy(np.moveaxis(cube, 2, 0))
    elif layout == 'pages':
        tifffile, stream = pytest.importorskip('tifffile'), io.BytesIO()
        with tifffile.TiffWriter(stream) as writer:
            for band in np.moveaxis(cube, 2, 0):
                writer.write(band, photometric='minisblack', metadata=None)
        content = stream.getvalue()
    else:
        content = tiff(values, planarconfig=layout) if bands > 1 else tiff(values)
    found = decode_image(content, channels=bands)
    assert np.array_equal(found, cube if dtype == np.uint8 else (cube >> 8).astype(np.uint8))
    assert read_header(content, channels=bands)[:3] == (WIDTH, HEIGHT, bands)
    for function in (decode_image, read_header):
        with pytest.raises(ValueError, match=r'it has \d bands, and 5 channels are read'):
            function(content, channels=5)
    with pytest.raises(ValueError):
        decode_image(content[: len(content) // 2], channels=bands)


def test_colors_as_other_channels():
    values = draw(4, np.uint8, 256)
    image = Image.fromarray(values)
    stream = io.BytesIO()
    image.save(stream, 'png')
    assert np.array_equal(decode_image(stream.getvalue(), channels=4), values)
    gray = decode_image(stream.getvalue(), channels=1)
    assert gray.shape == (HEIGHT, WIDTH, 1)
    assert (
        np.abs(gray[..., 0].astype(int) - np.asarray(image.convert('RGB').convert('L'))).max() <= 1
    )
    jpeg = cv2.imencode('.jpg', values[..., :3])[1].tobytes()
    assert decode_image(jpeg, channels=1).shape == (HEIGHT, WIDTH, 1)
    with pytest.raises(ValueError, match='it has 3 bands, and 4 channels'):
        decode_image(jpeg, channels=4)


def test_four_bands_are_no_colors():
    """Blue, green, red and infrared: which ones are the colors nobody says."""
    for dtype, high in ((np.uint8, 256), (np.uint16, 65536)):
        content = tiff(draw(4, dtype, high))
        for function in (decode_image, read_header):
            with pytest.raises(ValueError, match='it has 4 bands, and 3 channels are read'):
                function(content)
        colors = draw(4, dtype, high)
        found = decode_image(tiff(colors, photometric='rgb', extrasamples=['unassalpha']))
        expected = colors if dtype == np.uint8 else (colors >> 8).astype(np.uint8)
        assert np.array_equal(found, expected[..., 2::-1])


def test_a_refusal_prints_nothing(monkeypatch, capfd):
    """Pillow logs what it cannot read, which a program without handlers prints."""
    content = tiff(draw(8))
    monkeypatch.setattr(logging.getLogger(), 'handlers', [])
    with pytest.raises(ValueError, match='it has 8 bands'):
        read_header(content)
    assert capfd.readouterr() == ('', '')


def test_upright():
    values = draw(8)
    for orientation in range(1, 9):
        content = tiff(values, extratags=[(274, 'H', 1, orientation, True)])
        found = decode_image(content, channels=8, value_range=(0, 4096))
        once = tiff(values[..., 0], extratags=[(274, 'H', 1, orientation, True)])
        assert np.array_equal(found[..., :1], decode_image(once, channels=1, value_range=(0, 4096)))


@pytest.mark.parametrize(
    'value',
    [
        (1, 1),
        (2, 1),
        (0, np.inf),
        (np.nan, 1),
        ('1%', 3),
        ('5%', '4%'),
        ('a', 'b'),
        'auto',
        (0, 1, 2),
        ('0%', '101%'),
    ],
)
def test_wrong_ranges(value):
    with pytest.raises(InputError, match='value_range must be two numbers'):
        LoadImage(value_range=value)


def test_the_transform(tmp_path):
    values = draw(8)
    (tmp_path / 'a.tif').write_bytes(tiff(values))
    load = LoadImage(value_range=[0, 4096], channels=8)
    results = load.transform(dict(img_path=str(tmp_path / 'a.tif')))
    assert results['img'].shape == (HEIGHT, WIDTH, 8) and results['img_shape'] == (HEIGHT, WIDTH)
    assert 'value_range=(0, 4096), channels=8' in repr(load)
