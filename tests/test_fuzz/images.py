# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The image path as a fuzz target: any bytes become an array, or an error of one line."""

import io
import re
import struct
import warnings
import zlib

import numpy as np
from hypothesis import strategies as st
from mutate import mutated
from PIL import Image

from mmdense.datasets import LoadImage, UnreadableImageError


def samples() -> dict:
    """Small files of every format that is read, in their kinds."""
    rng = np.random.RandomState(0)
    noise = np.kron(rng.randint(0, 255, (4, 5, 4)), np.ones((6, 6, 1))).astype(np.uint8)
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    grey, palette = rgb.convert('L'), rgb.quantize(16)
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6

    def encode(image, kind, **kwargs):
        stream = io.BytesIO()
        image.save(stream, kind, **kwargs)
        return stream.getvalue()

    frames = dict(save_all=True, append_images=[rgb.rotate(90)], duration=40)
    files = dict(
        jpeg=encode(rgb, 'jpeg', exif=exif),
        jpeg_grey=encode(grey, 'jpeg'),
        jpeg_progressive=encode(rgb, 'jpeg', progressive=True, quality=90, subsampling=0),
        jpeg_cmyk=encode(rgb.convert('CMYK'), 'jpeg'),
        jpeg_restarts=encode(rgb, 'jpeg', restart_marker_blocks=1),
        png=encode(rgb, 'png', exif=exif),
        png_alpha=encode(rgba, 'png'),
        png_palette=encode(palette, 'png', transparency=bytes(range(16))),
        png_16=encode(deep, 'png'),
        png_1=encode(rgb.convert('1'), 'png'),
        png_animated=encode(rgb, 'png', **frames),
        webp=encode(rgb, 'webp'),
        webp_lossless=encode(rgba, 'webp', lossless=True),
        webp_exif=encode(rgb, 'webp', exif=exif),
        webp_animated=encode(rgb, 'webp', **frames),
        bmp=encode(rgb, 'bmp'),
        bmp_palette=encode(palette, 'bmp'),
        bmp_rle=run_length_bmp(np.asarray(palette)),
        gif=encode(palette, 'gif'),
        gif_animated=encode(rgb, 'gif', **frames),
        ppm=encode(rgb, 'ppm'),
        pgm_16=b'P5 4 3 65535\n' + bytes(24),
        ppm_text=b'P3 2 2 255\n' + b'1 2 3 ' * 4,
        pbm_text=b'P1 4 2\n1 0 1 0\n0 1 0 1\n',
    )
    for compression in ('raw', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg'):
        files[f'tiff_{compression}'] = encode(rgb, 'tiff', compression=compression)
    files['tiff_group4'] = encode(rgb.convert('1'), 'tiff', compression='group4')
    files['tiff_big'] = encode(rgb, 'tiff', big_tiff=True)
    return files


def run_length_bmp(indices: np.ndarray) -> bytes:
    """Pillow writes none: an 8-bit BMP with a run for every pixel."""
    height, width = indices.shape
    rows = b''.join(b''.join(b'\x01' + bytes([i]) for i in row) + b'\0\0' for row in indices[::-1])
    head = (
        struct.pack('<IiiHHIIiiII', 40, width, height, 1, 8, 1, len(rows) + 2, 0, 0, 256, 0)
        + bytes(range(256)) * 4
    )
    start = 14 + len(head)
    return b'BM' + struct.pack('<IHHI', start + len(rows) + 2, 0, 0, start) + head + rows + b'\0\1'


def sizes_in(name: str, content: bytes) -> list:
    """(offset, bytes, order) of the numbers that say how large an image is."""
    kind = name.partition('_')[0]
    if kind == 'jpeg':
        found = re.finditer(rb'\xff[\xc0-\xc2]\x00[\x0b\x11\x14]\x08', content)
        return [(m.end() + i, 2, 'big') for m in found for i in (0, 2)]
    if kind == 'png':
        return [(16, 4, 'big'), (20, 4, 'big')]
    if kind == 'webp':
        at = content.find(b'VP8')
        places = {b'VP8X': (at + 12, at + 15), b'VP8L': (at + 9, at + 10)}
        return [(i, 2, 'little') for i in places.get(content[at : at + 4], (at + 14, at + 16))]
    if kind == 'bmp':
        return [(18, 4, 'little'), (22, 4, 'little')]
    if kind == 'gif':
        at = content.find(b',')
        return [(i, 2, 'little') for i in (6, 8, at + 5, at + 7)]
    if kind == 'tiff':
        # Type and count stand before each value: short or long, one.
        found = re.finditer(rb'[\x00-\x17\x42-\x45]\x01[\x03\x04]\x00\x01\x00\x00\x00', content)
        return [(m.end(), 4, 'little') for m in found] or [(4, 4, 'little')]
    return []


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the right ones, or nothing behind the first would be reached."""
    made, at = content[:8], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack('>I', content[at : at + 4])
        body = content[at + 4 : at + 8 + length]
        made += content[at : at + 4] + body + struct.pack('>I', zlib.crc32(body))
        at += 12 + length
    return made + content[at:]


def prepare(folder):
    files = samples()
    fields = {name: sizes_in(name, content) for name, content in files.items()}
    load = LoadImage()

    @st.composite
    def cases(draw):
        name = draw(st.sampled_from(sorted(files)))
        content = draw(mutated(files[name], list(files.values()), fields[name]))
        if name.startswith('ppm') or name.startswith('p'):
            size = draw(st.sampled_from([b'60000 60000', b'13000 13000', b'0 9', b'-1 4', b'']))
            if draw(st.booleans()):
                content = re.sub(rb'\d+ \d+', size, content, count=1)
        if name.startswith('png') and draw(st.booleans()):
            content = with_checksums(content)
        return name, content

    def check(name, content):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                image = load(dict(img_path=name, img_bytes=content))['img']
            except UnreadableImageError as error:
                text = str(error)
                assert text.startswith(f'cannot read image {name}: ') and text.isprintable(), text
                assert len(text) < 400 and not text.endswith(': '), text
                return 'refused'
        assert type(image) is np.ndarray and image.dtype == np.uint8
        assert image.ndim == 3 and image.shape[2] == 3 and image.size and image.flags.writeable
        return 'read'

    return cases, check, ('jpeg', files['jpeg'])
