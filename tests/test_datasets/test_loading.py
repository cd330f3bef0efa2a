# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import io
import pickle
import re
import subprocess
import sys
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageFile, ImageOps

from mmdense.datasets import LoadImage, UnreadableImageError, decode_image
from mmdense.datasets.transforms import bands, loading
from mmdense.datasets.transforms.loading import read_header
from mmdense.utils.errors import InputError

ORIENTATION = 0x0112


@pytest.fixture(scope='module', autouse=True, params=['simplejpeg', 'OpenCV'])
def decoder(request):
    """Of plain JPEG: everything here is so with both."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == 'OpenCV':
            patch.setattr(loading, 'simplejpeg', None)
        else:
            assert loading.simplejpeg is not None
        yield request.param


def picture(height=37, width=53):
    """(height, width, 3) uint8 RGB, smooth, different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [255 * x // width, 255 * y // height, 255 * (x + y) // (height + width)], -1
    ).astype(np.uint8)


def encode(image, *args, **kwargs):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, *args, **kwargs)
    return stream.getvalue()


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'tiff', 'ppm', 'webp'])
def test_lossless_formats_give_bgr(suffix):
    kwargs = dict(lossless=True) if suffix == 'webp' else {}
    img = decode_image(encode(picture(), suffix, **kwargs))
    assert img.dtype == np.uint8 and img.flags.writeable and img.flags.c_contiguous
    np.testing.assert_array_equal(img, picture()[..., ::-1])


@pytest.mark.parametrize(
    'args, kwargs',
    [
        (('JPEG',), dict(quality=95)),
        (('JPEG',), dict(quality=95, progressive=True)),
        (('JPEG',), dict(quality=95, subsampling=0)),
        (('WEBP',), dict(quality=95)),
    ],
)
def test_lossy_formats_match_opencv(args, kwargs):
    content = encode(picture(), *args, **kwargs)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert_close(decode_image(content), expected, 3)
    assert_close(decode_image(content), picture()[..., ::-1], 24)


def test_photographs_match_opencv(data_root):
    for path in sorted((data_root / 'coco' / 'train2017').iterdir())[:10]:
        content = path.read_bytes()
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert_close(decode_image(content), expected, 3)


@pytest.mark.parametrize('suffix', ['png', 'jpeg', 'webp', 'bmp', 'tiff', 'pgm'])
def test_grey_becomes_three_channels(suffix):
    grey = Image.fromarray(picture()).convert('L')
    img = decode_image(encode(grey, 'ppm' if suffix == 'pgm' else suffix))
    assert img.shape == (37, 53, 3)
    assert_close(img, np.repeat(np.asarray(grey)[..., None], 3, -1), 6)


def test_bilevel():
    img = decode_image(encode(Image.fromarray(picture()).convert('1'), 'png'))
    assert set(np.unique(img)) == {0, 255}


@pytest.mark.parametrize('suffix', ['png', 'gif', 'bmp'])
def test_palette(suffix):
    palette = Image.fromarray(picture()).quantize(64)
    img = decode_image(encode(palette, suffix))
    np.testing.assert_array_equal(img, np.asarray(palette.convert('RGB'))[..., ::-1])


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('transparency', [3, bytes(range(64))])
def test_palette_with_transparency_drops_it(transparency):
    palette = Image.fromarray(picture()).quantize(64)
    img = decode_image(encode(palette, 'png', transparency=transparency))
    np.testing.assert_array_equal(img, np.asarray(palette.convert('RGB'))[..., ::-1])


@pytest.mark.parametrize('suffix', ['png', 'tiff', 'webp'])
def test_alpha_is_dropped(suffix):
    rgba = np.concatenate([picture(), picture()[..., :1]], -1)
    kwargs = dict(lossless=True, exact=True) if suffix == 'webp' else {}
    img = decode_image(encode(rgba, suffix, **kwargs))
    np.testing.assert_array_equal(img, picture()[..., ::-1])


def test_grey_with_alpha():
    img = decode_image(encode(Image.fromarray(picture()).convert('LA'), 'png'))
    assert_close(img[..., 0], np.asarray(Image.fromarray(picture()).convert('L')), 0)


# ---------------------------------------------------------------- CMYK

INKS = [  # CMYK and the RGB that it prints
    ((255, 0, 0, 0), (0, 255, 255)),
    ((0, 255, 0, 0), (255, 0, 255)),
    ((0, 0, 255, 0), (255, 255, 0)),
    ((0, 0, 0, 255), (0, 0, 0)),
    ((0, 0, 0, 0), (255, 255, 255)),
    ((0, 255, 255, 128), (127, 0, 0)),
]


@pytest.mark.parametrize('adobe', [True, False])
@pytest.mark.parametrize('cmyk, rgb', INKS)
def test_cmyk_jpeg(adobe, cmyk, rgb):
    image = Image.new('CMYK', (16, 16), cmyk)
    if not adobe:  # Pillow writes Adobe's marker and inverts: undo both
        image = ImageChops.invert(image)
    content = encode(image, 'jpeg', quality=100)
    start = content.index(b'\xff\xee\x00\x0eAdobe')
    if not adobe:
        content = content[:start] + content[start + 16 :]
    assert_close(decode_image(content), np.full((16, 16, 3), rgb[::-1]), 4)


def test_cmyk_tiff():
    for cmyk, rgb in INKS:
        content = encode(Image.new('CMYK', (4, 4), cmyk), 'tiff')
        assert_close(decode_image(content), np.full((4, 4, 3), rgb[::-1]), 1)


# ---------------------------------------------------------------- 16 bits


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
@pytest.mark.parametrize('channels', [1, 3])
def test_16_bit_ramp_is_scaled_not_clipped(suffix, channels):
    ramp = np.linspace(0, 65535, 512).astype(np.uint16).reshape(1, 512)
    image = np.repeat(ramp[..., None], channels, -1)
    ok, content = cv2.imencode(suffix, np.repeat(image, 2, 0))
    assert ok
    img = decode_image(content.tobytes())
    assert img.shape == (2, 512, 3)
    assert_close(img[0], np.repeat((ramp[0] >> 8)[:, None], 3, -1), 1)
    assert img.min() == 0 and img.max() == 255


@pytest.mark.parametrize('tile', [None, (16, 16)], ids=['strips', 'tiles'])
@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('layout', ['RGB', 'RGBA', 'planes', 'planes with alpha', 'gray', 'white'])
def test_16_bit_tiffs(layout, order, tile):
    """The pixels of tifffile, or a refusal."""
    tifffile = pytest.importorskip('tifffile')
    rgb = picture().astype(np.uint16) * 257
    alpha = np.full_like(rgb[..., :1], 65535)
    pixels, options = rgb, dict(photometric='rgb', planarconfig='contig')
    if layout in ('RGBA', 'planes with alpha'):
        pixels, options = np.dstack([rgb, alpha]), dict(options, extrasamples=['unassalpha'])
    if 'planes' in layout:
        pixels, options['planarconfig'] = np.moveaxis(pixels, -1, 0).copy(), 'separate'
    if layout == 'gray':
        pixels, options = rgb[..., 0], dict(photometric='minisblack')
    if layout == 'white':
        pixels, options = 65535 - rgb[..., 0], dict(photometric='miniswhite')
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, byteorder=order, tile=tile, metadata=None, **options)
    expected = picture() if layout not in ('gray', 'white') else np.dstack([picture()[..., 0]] * 3)
    try:
        found = decode_image(stream.getvalue())
    except ValueError as error:  # Pillow has no big-endian ones that are inverted
        assert layout == 'white' and order == '>' and 'a TIFF of a layout' in str(error)
    else:
        assert_close(found[..., ::-1], expected, 0)
    with pytest.raises(ValueError):
        decode_image(stream.getvalue()[: len(stream.getvalue()) * 2 // 3])


@pytest.mark.parametrize('compression', [None, 'zlib'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('layout', ['contig', 'separate'])
@pytest.mark.parametrize('bands', [2, 3, 4])
def test_tiffs_without_colors(bands, layout, dtype, compression):
    """Geographic software marks three bands as gray. Of planes Pillow decodes one alone."""
    tifffile = pytest.importorskip('tifffile')
    pixels = np.dstack([picture(), 255 - picture()[..., :1]])[..., :bands]
    values = pixels.astype(dtype) * (257 if dtype == np.uint16 else 1)
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        np.moveaxis(values, 2, 0).copy() if layout == 'separate' else values,
        photometric='minisblack',
        planarconfig=layout,
        compression=compression,
        metadata=None,
        extrasamples=['unassalpha'] if bands == 2 else ['unspecified'] * (bands - 1),
    )
    content = stream.getvalue()
    if bands == 4:
        for function in (decode_image, read_header):
            with pytest.raises(ValueError, match='it has 4 bands, and 3 channels are read'):
                function(content)
    else:
        expected = pixels if bands == 3 else np.dstack([pixels[..., 0]] * 3)
        assert_close(decode_image(content)[..., ::-1], expected, 0)
        assert read_header(content)[:3] == (53, 37, bands)
    assert_close(decode_image(content, channels=bands)[..., :: -1 if bands == 3 else 1], pixels, 0)


@pytest.mark.parametrize(
    'dtype, bands, photometric, words',
    [
        (np.int8, 1, 'minisblack', 'values of int8.*value_range'),
        (np.int8, 3, 'rgb', 'value_range'),
        (bool, 3, 'rgb', '3 bands of one bit'),
        (np.uint16, 3, 'cielab', 'a TIFF of CIELAB'),
        (np.uint16, 3, 'ycbcr', 'a TIFF of YCBCR'),
    ],
)
@pytest.mark.parametrize('layout', ['contig', 'separate'])
def test_tiffs_that_pillow_reads_as_something_else(dtype, bands, photometric, words, layout):
    tifffile = pytest.importorskip('tifffile')
    values = np.random.RandomState(0).randint(0, 2, (bands, 37, 53)).astype(dtype)
    if bands == 1:
        values, options = values[0], {}
    else:
        values = values if layout == 'separate' else np.moveaxis(values, 0, 2).copy()
        options = dict(planarconfig=layout)
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, photometric=photometric, metadata=None, **options)
    for function in (decode_image, read_header):
        with pytest.raises(ValueError, match=words):
            function(stream.getvalue())


def test_signed_bytes_by_a_range():
    tifffile = pytest.importorskip('tifffile')
    values, stream = np.arange(-128, 128, dtype=np.int8).reshape(16, 16), io.BytesIO()
    tifffile.imwrite(stream, values, photometric='minisblack', metadata=None)
    found = decode_image(stream.getvalue(), value_range=(-128, 128))
    assert_close(found[..., 0], np.arange(256).reshape(16, 16), 0)


def test_planes_without_tifffile(monkeypatch):
    tifffile = pytest.importorskip('tifffile')
    stream, planes = io.BytesIO(), np.zeros((3, 8, 9), np.uint16)
    tifffile.imwrite(stream, planes, photometric='rgb', planarconfig='separate')
    assert decode_image(stream.getvalue()).shape == (8, 9, 3)
    assert read_header(stream.getvalue()) == (9, 8, 3, 16)
    monkeypatch.setattr(bands, 'tifffile', None)
    for function in (decode_image, read_header):
        with pytest.raises(ValueError, match='pip install tifffile'):
            function(stream.getvalue())


@pytest.mark.parametrize(
    'start, words',
    [
        (b'\0\0\0\x1cftypheic\0\0\0\0', 'a HEIC image: pip install pillow-heif'),
        (b'\0\0\0\x0cjP  \r\n\x87\n', 'a JPEG 2000 image; JPEG, PNG'),
        (b'\0' * 128 + b'DICM', 'a DICOM file'),
        (b'II*\0\x08\0\0\0\0\0', 'a TIFF of a layout'),
        (b'\x93NUMPY\1\0', 'EOF: reading array header|cannot|Header'),
    ],
)
def test_formats_that_are_not_read_are_named(start, words):
    for function in (decode_image, read_header):
        with pytest.raises(ValueError, match=words):
            function(start + b'\1' * 200)


@pytest.mark.parametrize('suffix', ['avif', 'webp', 'png', 'jpeg', 'tiff', 'gif', 'bmp', 'ppm'])
def test_the_header_says_what_decoding_gives(suffix):
    if suffix == 'avif' and not loading._AVIF:
        pytest.skip('Pillow before 11.3')
    content = encode(picture(), suffix)
    assert read_header(content)[:2] == (53, 37)
    assert decode_image(content).shape == (37, 53, 3)
    if suffix == 'avif':
        assert_close(decode_image(content)[..., ::-1], picture(), 16)
        with pytest.raises(ValueError):
            decode_image(content[:-5])
    with pytest.raises(ValueError, match='max_pixels=100'):
        read_header(content, max_pixels=100)
    with pytest.raises(ValueError, match='32 bits a pixel'):
        read_header(encode(Image.fromarray(np.zeros((4, 5), np.float32)), 'tiff'))
    with pytest.raises(ValueError, match='is empty'):
        read_header(b'')


def test_16_bit_pgm():
    ramp = np.linspace(0, 65535, 256).astype('>u2')
    img = decode_image(b'P5 256 1 65535\n' + ramp.tobytes())
    assert_close(img[0, :, 0], ramp >> 8, 1)


def test_32_bit_is_refused_in_one_line():
    with pytest.raises(ValueError, match='TIFF with 32 bits a pixel'):
        decode_image(encode(Image.new('F', (4, 4)), 'tiff'))


# ---------------------------------------------------------------- EXIF


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpeg', 'png', 'webp', 'tiff'])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_exif_orientation(suffix, orientation, mode):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(picture()).convert(mode)
    kwargs = dict(lossless=True) if suffix == 'webp' else {}
    content = encode(stored, suffix, exif=exif, **kwargs)
    tagged = Image.open(io.BytesIO(encode(stored, 'png', exif=exif)))
    expected = np.asarray(ImageOps.exif_transpose(tagged).convert('RGB'))[..., ::-1]
    img = decode_image(content)
    assert img.flags.c_contiguous
    assert_close(img, expected, 24 if suffix == 'jpeg' else 0)


def test_exif_orientation_of_16_bit():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    grey = Image.fromarray(np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4))
    img = decode_image(encode(grey, 'png', exif=exif))
    np.testing.assert_array_equal(img[..., 0], np.rot90(np.asarray(grey) >> 8, -1))


@pytest.mark.parametrize('exif', [b'Exif\0\0garbage', b'Exif\0\0MM\0*\xff\xff\xff\xff', b''])
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_broken_exif_beside_good_pixels(exif):
    assert decode_image(encode(picture(), 'jpeg', exif=exif)).shape == (37, 53, 3)


def test_orientation_out_of_range():
    exif = Image.Exif()
    exif[ORIENTATION] = 99
    assert decode_image(encode(picture(), 'jpeg', exif=exif)).shape == (37, 53, 3)


# ---------------------------------------------------------------- the headers of JPEGs

XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'


def segment(marker, payload):
    """Write a segment of a JPEG."""
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, 'big') + payload


def with_segments(*segments):
    content = encode(picture(), 'jpeg')
    return content[:2] + b''.join(segments) + content[2:]


@pytest.mark.parametrize(
    'content',
    [
        encode(picture(), 'jpeg'),
        encode(picture(), 'jpeg', subsampling=0, optimize=True, icc_profile=b'a profile'),
        encode(Image.fromarray(picture()).convert('L'), 'jpeg', comment=b'gray'),
        with_segments(segment(0xED, b'Photoshop 3.0\0, a thumbnail: \xff\xda')),
    ],
)
def test_plain_jpegs_are_decoded_without_pillow(content, decoder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loading, '_plain_jpeg_size', lambda content: None)
        expected = decode_image(content), decode_image(content, min_side=10)
    monkeypatch.setattr(Image, 'open', None)
    np.testing.assert_array_equal(decode_image(content), expected[0])
    np.testing.assert_array_equal(decode_image(content, min_side=10), expected[1])
    monkeypatch.undo()
    with pytest.raises(ValueError, match='max_pixels=1000 '):
        decode_image(content, max_pixels=1000)


@pytest.mark.parametrize(
    'content',
    [
        encode(picture(), 'png'),
        encode(picture(), 'jpeg', progressive=True),
        encode(picture(), 'jpeg', exif=b'Exif\0\0garbage'),
        encode(picture(), 'jpeg', keep_rgb=True),  # with Adobe's marker
        encode(Image.new('CMYK', (8, 8)), 'jpeg'),
        with_segments(segment(0xE1, XMP)),
        with_segments(b'\xff'),  # a byte to fill up
        encode(picture(), 'jpeg').replace(b'\xff\xda\0\x0c\x03', b'\xff\xda\0\x0c\x01'),
        encode(picture(), 'jpeg').replace(b'\xff\xc0\0\x11\x08', b'\xff\xc0\0\x11\x0c'),
        *(encode(picture(), 'jpeg')[:length] for length in (0, 2, 3, 30, 300)),
    ],
)
def test_pillow_looks_at_all_other_files(content):
    assert loading._plain_jpeg_size(encode(picture(), 'jpeg')) == (53, 37)
    assert loading._plain_jpeg_size(content) is None


def test_orientation_behind_what_looks_like_a_scan(decoder):
    thumbnail = segment(0xED, b'Photoshop 3.0\0' + encode(picture(8, 8), 'jpeg'))
    img = decode_image(with_segments(thumbnail, segment(0xE1, XMP)))
    assert_close(img, np.rot90(picture()[..., ::-1], -1), 24)


# ---------------------------------------------------------------- truncation

NOISE = np.kron(np.random.RandomState(0).randint(0, 255, (6, 7, 3)), np.ones((8, 8, 1)))
ENCODED = {
    'jpeg': encode(NOISE.astype(np.uint8), 'jpeg'),
    'progressive': encode(NOISE.astype(np.uint8), 'jpeg', progressive=True),
    'png': encode(NOISE.astype(np.uint8), 'png'),
    'webp': encode(NOISE.astype(np.uint8), 'webp'),
    'lossless webp': encode(NOISE.astype(np.uint8), 'webp', lossless=True),
    'bmp': encode(NOISE.astype(np.uint8), 'bmp'),
    'tiff': encode(NOISE.astype(np.uint8), 'tiff'),
    'lzw tiff': encode(NOISE.astype(np.uint8), 'tiff', compression='tiff_lzw'),
    'gif': encode(NOISE.astype(np.uint8), 'gif'),
    'ppm': encode(NOISE.astype(np.uint8), 'ppm'),
}


@pytest.mark.parametrize('name', sorted(ENCODED))
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_truncated_anywhere(name):
    content = ENCODED[name]
    whole = decode_image(content)

    @settings(max_examples=60, deadline=None)
    @given(
        st.one_of(
            st.integers(0, len(content) - 1), st.integers(len(content) - 30, len(content) - 1)
        )
    )
    def check(length):
        try:
            img = decode_image(content[:length])
        except ValueError as e:
            assert '\n' not in str(e) and 'BytesIO' not in str(e)
        else:  # only a check sum, padding or an end marker is gone
            np.testing.assert_array_equal(img, whole)
            is_jpeg = name in ('jpeg', 'progressive')
            assert len(content) - length <= (2 if is_jpeg else 32)

    check()


@pytest.mark.parametrize('name', ['jpeg', 'progressive', 'restarts', 'gray', 'subsampled', 'cmyk'])
def test_a_jpeg_without_its_end_marker(name, decoder):
    """All pixels are there. A progressive file that ends between two scans lacks some."""
    options = dict(
        progressive=dict(progressive=True),
        restarts=dict(restart_marker_blocks=4),
        subsampled=dict(subsampling=2, quality=60),
    )
    image = Image.fromarray(picture() if name != 'gray' else picture()[..., 0])
    image = image.convert('CMYK') if name == 'cmyk' else image
    content = encode(image, 'jpeg', **options.get(name, {}))
    whole = decode_image(content)
    for end in (b'', b'\xff', b'\0' * 5, b'\0' * 5000):
        # Pillow alone refuses most of them
        with suppress(*([] if decoder == 'simplejpeg' else [ValueError])):
            np.testing.assert_array_equal(decode_image(content[:-2] + end), whole)
    scans = [found.start() for found in re.finditer(b'\xff\xda', content)]
    for at in scans[1:]:
        with pytest.raises(ValueError):
            decode_image(content[:at])
    assert name != 'progressive' or len(scans) > 3


@pytest.mark.parametrize('kind', ['jpeg', 'progressive', 'restarts', 'cmyk'])
def test_a_cut_jpeg_with_an_end_marker(kind, decoder):
    """OpenCV and Pillow fill the rest with gray, and say nothing."""
    if decoder == 'OpenCV':
        return
    noise = np.random.RandomState(0).randint(0, 255, (40, 56, 3), np.uint8)
    image = Image.fromarray(noise).convert('CMYK' if kind == 'cmyk' else 'RGB')
    options = dict(progressive=dict(progressive=True), restarts=dict(restart_marker_blocks=4))
    content = encode(image, 'jpeg', **options.get(kind, {}))
    for length in (len(content) // 2, len(content) - 40):
        with pytest.raises(ValueError, match='truncated'):
            decode_image(content[:length] + b'\xff\xd9')


def test_it_is_turned_upright_too(decoder):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = encode(picture(), 'jpeg', exif=exif)
    if decoder == 'simplejpeg':
        np.testing.assert_array_equal(decode_image(content[:-2]), decode_image(content))
        assert decode_image(content[:-2]).shape == (53, 37, 3)


def test_truncated_photograph(data_root, tmp_path):
    source = sorted((data_root / 'coco' / 'train2017').iterdir())[0]
    content = source.read_bytes()
    for length in (len(content) // 2, len(content) - 100, len(content) - 3):
        path = tmp_path / f'{length}.jpg'
        path.write_bytes(content[:length])
        with pytest.raises(UnreadableImageError, match='truncated'):
            LoadImage()(dict(img_path=str(path)))


def test_cut_after_the_end_marker_of_a_thumbnail():
    """What OpenCV would be asked about if the last bytes were all that counts."""
    exif = b'Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0' + encode(picture(8, 8), 'jpeg')
    content = encode(picture(), 'jpeg', exif=exif)
    end = content.index(b'\xff\xd9') + 2
    assert len(content) - end > 300
    with pytest.raises(ValueError):
        decode_image(content[:end])
    assert decode_image(content).shape == (37, 53, 3)


@pytest.mark.parametrize('tail', [b'\0' * 100, b'a video of the same moment', b'\n'])
def test_bytes_after_the_end_do_no_harm(tail):
    np.testing.assert_array_equal(
        decode_image(ENCODED['jpeg'] + tail), decode_image(ENCODED['jpeg'])
    )


def test_what_the_decoder_refuses_is_left_to_pillow(decoder, monkeypatch):
    def refuse(*args, **kwargs):
        raise cv2.error('no') if decoder == 'OpenCV' else ValueError('no')

    expected = decode_image(ENCODED['jpeg'])
    if decoder == 'OpenCV':
        monkeypatch.setattr(cv2, 'imdecode', lambda *args: None)
        np.testing.assert_array_equal(decode_image(ENCODED['jpeg']), expected)
        monkeypatch.setattr(cv2, 'imdecode', refuse)
    else:
        monkeypatch.setattr(loading.simplejpeg, 'decode_jpeg', refuse)
    np.testing.assert_array_equal(decode_image(ENCODED['jpeg']), expected)


def test_another_library_cannot_switch_strictness_off(monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    with pytest.raises(ValueError, match='truncated'):
        decode_image(ENCODED['jpeg'][:-200])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # theirs, and left as it was


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(ENCODED)), st.data())
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_corrupt_bytes_never_raise_anything_else(name, data):
    content = bytearray(ENCODED[name])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(
            st.integers(0, 255)
        )
    try:
        img = decode_image(bytes(content))
    except ValueError as e:
        assert '\n' not in str(e)
    else:
        assert img.ndim == 3 and img.shape[2] == 3 and img.dtype == np.uint8


# ---------------------------------------------------------------- LoadImage


def test_load_image(tmp_path):
    path = str(tmp_path / 'a.png')
    Image.fromarray(picture()).save(path)
    results = LoadImage()(dict(img_path=path, sample_idx=3))
    assert results['img_path'] == path and results['sample_idx'] == 3
    assert results['img_shape'] == results['ori_shape'] == (37, 53)
    np.testing.assert_array_equal(results['img'], picture()[..., ::-1])


def test_load_image_is_found_in_the_scope():
    """In a process that never imported mmdense, as in mmpretrain's own tools."""
    code = (
        'from mmengine.registry import TRANSFORMS;'
        'print(TRANSFORMS.build(dict(type="mmdense.LoadImage")))'
    )
    out = subprocess.run(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, check=True
    )
    assert 'LoadImage(backend_args=None, min_side=None, ' in out.stdout


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'', 'the file is empty'),
        (b'<!DOCTYPE html><html>Not found</html>', "not an image.*b'<!DOCTYPE html><'"),
        (b'version https://git-lfs.github.com/spec/v1\n', "not an image.*b'version https://'"),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image'),
        (ENCODED['jpeg'][:400], '(not an image|[Tt]runcated)'),
        (ENCODED['jpeg'][:-100], 'truncated'),
    ],
)
def test_unreadable_files(tmp_path, content, reason):
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=f'cannot read image .*a.jpg: .*{reason}') as e:
        LoadImage()(dict(img_path=str(path)))
    assert '\n' not in str(e.value) and e.value.path == str(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UnreadableImageError, match='none.jpg: No such file'):
        LoadImage()(dict(img_path=str(tmp_path / 'none.jpg')))
    with pytest.raises(UnreadableImageError, match='Is a directory'):
        LoadImage()(dict(img_path=str(tmp_path)))


def test_decompression_bomb(tmp_path):
    path = tmp_path / 'bomb.pgm'
    path.write_bytes(b'P5 20000 20000 255\n' + bytes(1000))
    with pytest.raises(UnreadableImageError, match='exceeds max_pixels=178956970'):
        LoadImage()(dict(img_path=str(path)))


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImageError('a.jpg', 'truncated')))
    assert (error.path, error.reason) == ('a.jpg', 'truncated')
    assert str(error) == 'cannot read image a.jpg: truncated'


def test_wrong_type():
    with pytest.raises(TypeError, match="backend_args must be a dict or None, got 'disk'"):
        LoadImage(backend_args='disk')


# ---------------------------------------------------------------- at a part of its size


@pytest.mark.parametrize(
    'min_side, shape',
    [(None, (600, 800)), (301, (600, 800)), (300, (300, 400)), (80, (150, 200)), (1, (75, 100))],
)
@pytest.mark.parametrize('orientation', [1, 6])
def test_min_side(min_side, shape, orientation, tmp_path):
    """The smallest of 1/1, 1/2, 1/4 and 1/8 whose shorter side is long enough."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / 'a.jpg'
    path.write_bytes(encode(picture(600, 800), 'jpeg', quality=95, exif=exif))
    results = LoadImage(min_side=min_side)(dict(img_path=str(path)))
    expected = LoadImage()(dict(img_path=str(path)))['img']
    shape = shape if orientation == 1 else shape[::-1]
    assert results['img'].shape[:2] == results['img_shape'] == shape
    resized = cv2.resize(expected, shape[::-1], interpolation=cv2.INTER_AREA)
    assert_close(results['img'], resized, 4)


def test_min_side_of_odd_sizes_and_other_formats():
    for height, width in [(37, 53), (801, 1003)]:
        img = decode_image(encode(picture(height, width), 'jpeg'), min_side=10)
        shrink = 2 if height == 37 else 8
        assert img.shape == (-(-height // shrink), -(-width // shrink), 3)
    assert decode_image(encode(picture(80, 80), 'png'), min_side=10).shape == (80, 80, 3)


@pytest.mark.parametrize('min_side', [0, 1.5, '224', True])
def test_wrong_min_side(min_side):
    with pytest.raises(InputError, match='min_side must be a whole number'):
        LoadImage(min_side=min_side)
