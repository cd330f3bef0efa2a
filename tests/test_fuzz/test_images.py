# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""No image file crashes the process, keeps it busy or fills the memory."""

import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from mmdense.datasets import LoadImage, UnreadableImageError, decode_image
from mmdense.utils.errors import InputError


@pytest.mark.parametrize('cases, seed', [(300, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_mutated_files(fuzz, cases, seed):
    figures = fuzz('images', cases, seed)
    assert figures['cases'] >= cases
    assert figures['outcomes']['read'] > cases / 20  # the mutations leave something to decode
    assert figures['outcomes']['refused'] > cases / 20
    assert figures['slowest'][0] < 30 and figures['grown_mb'] < 1000


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(width, height, *chunks):
    """With pixels of one colour, whole."""
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    body = b''.join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    chunks = [chunk(b'IHDR', head), *chunks, chunk(b'IDAT', body), chunk(b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def jpeg(width, height):
    """A small one that says it is larger."""
    content = bytearray(encode(Image.new('RGB', (16, 16)), 'jpeg'))
    at = content.index(b'\xff\xc0') + 5
    content[at : at + 4] = struct.pack('>HH', height, width)
    return bytes(content)


def gif(width, height):
    content = encode(Image.new('P', (16, 16)), 'gif')
    size = struct.pack('<HH', width, height)
    return content[:6] + size + content[10:].replace(b'\x10\0\x10\0', size, 1)


def webp_canvas(width, height):
    """Pixels for a part of a canvas."""
    frame = encode(Image.new('RGB', (16, 16)), 'webp', lossless=True)[12:]
    size = (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little')
    body = b'VP8X' + struct.pack('<II', 10, 2) + size + b'ANIM' + struct.pack('<I', 6) + bytes(6)
    part = bytes(6) + b'\x0f\0\0\x0f\0\0' + bytes(4) + frame
    body += b'ANMF' + struct.pack('<I', len(part)) + part
    return b'RIFF' + struct.pack('<I', len(body) + 4) + b'WEBP' + body


def bmp(width, height, compression=0):
    head = struct.pack('<IiiHHIIiiII', 40, width, height, 1, 8, compression, 0, 0, 0, 2, 0)
    return b'BM' + struct.pack('<IHHI', 200, 0, 0, 62) + head + bytes(8) + b'\0\0' * 100


def tiff(width, height, compression=1):
    data = zlib.compress(bytes(1000)) if compression == 8 else bytes(100)
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1}
    tags.update({278: height, 279: len(data)})
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items())
    ifd = struct.pack('<H', len(tags)) + entries + bytes(4)
    return b'II*\0' + struct.pack('<I', 8 + len(data)) + data + ifd


def ppm(width, height):
    return b'P6 %d %d 255\n' % (width, height) + bytes(100)


def encode(image, kind, **kwargs):
    stream = io.BytesIO()
    image.save(stream, kind, **kwargs)
    return stream.getvalue()


def png_header(width, height):
    small = png(9, 9)
    return small[:8] + chunk(b'IHDR', struct.pack('>II', width, height) + small[24:29]) + small[33:]


def refused(content, match, **kwargs):
    """In one line, at once."""
    start = time.process_time()
    with pytest.raises(UnreadableImageError, match=match) as error:
        LoadImage(**kwargs)(dict(img_path='a.jpg', img_bytes=content))
    assert str(error.value).isprintable() and time.process_time() - start < 2


@pytest.mark.parametrize('make', [jpeg, png_header, gif, webp_canvas, bmp, tiff, ppm])
@pytest.mark.parametrize(
    'width, height, match',
    [
        (60_000, 60_000, 'exceeds max_pixels=178956970 of LoadImage'),
        (65_500, 65_500, 'exceeds max_pixels=178956970 of LoadImage'),
        (15_000, 15_000, 'exceeds max_pixels=178956970 of LoadImage'),
        (13_000, 13_000, 'bytes that say they are 13,000 × 13,000 pixels'),
        (65_535, 2_700, 'bytes that say they are 65,535 × 2,700 pixels'),
    ],
)
def test_small_files_of_large_images(make, width, height, match, grown):
    content = make(width, height)
    assert len(content) < 2000
    refused(content, match)
    assert grown() < 50


@pytest.mark.parametrize('make', [png_header, bmp, tiff, ppm])
def test_a_side_without_end(make, grown):
    refused(make(170_000_000, 1), '170,000,000 × 1 pixels, more than 65,535 on a side')
    assert grown() < 50


def test_whole_bombs():
    """All of their pixels are there, of one colour, in thousandths of the bytes."""
    content = encode(Image.new('L', (8000, 8000)), 'webp', lossless=True, quality=0, method=0)
    assert len(content) < 50_000
    refused(content, 'bytes that say they are 8,000 × 8,000 pixels')


@pytest.mark.parametrize('kind', [b'zTXt', b'iTXt', b'iCCP'])
def test_compressed_text_in_a_png(kind):
    packed = zlib.compress(bytes(64 << 20), 9)
    text = b'a\0\0' + packed if kind != b'iTXt' else b'a\0\1\0\0\0' + packed
    refused(png(9, 9, chunk(kind, text)), 'too large')


def test_scans_without_end():
    """Each of ten bytes, and as long to decode as the image is large."""
    content = encode(Image.new('L', (4000, 4000)), 'jpeg', progressive=True)
    last = content[content.rindex(b'\xff\xda') : -2]
    refused(content[:-2] + last * 1000 + b'\xff\xd9', '1006 scans of 4,000 × 4,000 pixels')


def test_what_only_looks_like_scans():
    """In metadata, and in what phones hang onto a photograph."""
    exif = b'Exif\0\0' + b'\xff\xda' * 1000
    content = encode(Image.new('RGB', (4000, 1500)), 'jpeg', exif=exif) + b'\xff\xda' * 1000
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that it is no EXIF
        assert decode_image(content).shape == (1500, 4000, 3)


def test_run_lengths_without_end():
    refused(bmp(10_000, 5_000, compression=1) + bytes(100_000), 'a run-length coded BMP of 10,000')


def test_large_photographs_are_read():
    """90 megapixels, at which Pillow alone would warn, and a limit of the user's."""
    content = encode(Image.fromarray(np.zeros((9000, 10_000), np.uint8)), 'jpeg')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert decode_image(content).shape == (9000, 10_000, 3)
    refused(content, 'exceeds max_pixels=80000000', max_pixels=80_000_000)
    before = Image.MAX_IMAGE_PIXELS
    refused(content, 'exceeds max_pixels=1000', max_pixels=1000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_more_memory_than_there_is(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, 'tobytes', fail)
    refused(png(9, 9), 'decoding it takes more memory than there is')


@pytest.mark.parametrize('value', [0, -1, 1e9, None, '1', True])
def test_wrong_limits(value):
    with pytest.raises(InputError, match='max_pixels must be a whole number of at least 1'):
        LoadImage(max_pixels=value)
