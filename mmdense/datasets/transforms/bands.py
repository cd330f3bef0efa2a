# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Images of other numbers than 8 bits, or of other bands than three: arrays, TIFF, and scaling."""

import io
import logging
import re
from contextlib import contextmanager
from typing import Iterator, Optional, Tuple, Union

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmdense.utils.checks import is_number
from mmdense.utils.errors import InputError

try:  # TIFFs that Pillow reads wrongly, or not at all
    import tifffile
except ImportError:
    tifffile = None

# As of Pillow, see loading.py: the error says what is wrong with a file, once.
logging.getLogger('tifffile').addHandler(logging.NullHandler())

# Two numbers of a file, or percentiles of it ('1%', '99%').
ValueRange = Tuple[Union[float, str], Union[float, str]]

NUMPY = b'\x93NUMPY'
TIFF = (b'II*\x00', b'MM\x00*', b'II+\x00', b'MM\x00+')

# By EXIF orientation.
UPRIGHT = {
    2: lambda img: cv2.flip(img, 1),
    3: lambda img: cv2.flip(img, -1),
    4: lambda img: cv2.flip(img, 0),
    5: cv2.transpose,
    6: lambda img: cv2.rotate(img, cv2.ROTATE_90_CLOCKWISE),
    7: lambda img: cv2.flip(cv2.transpose(img), -1),
    8: lambda img: cv2.rotate(img, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def has_tifffile() -> bool:
    """Return whether the package tifffile is there."""
    return tifffile is not None


def check_value_range(value: Optional[ValueRange]) -> Optional[ValueRange]:
    """Return the ``value_range`` of :class:`LoadImage` as a tuple.

    Raises:
        InputError: It is no such range.
    """
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) == 2:
        numbers = [_percentile(item) for item in pair]
        if None in numbers:
            numbers = list(pair) if numbers == [None, None] and all(map(is_number, pair)) else []
        if numbers and np.isfinite(numbers).all() and numbers[0] < numbers[1]:
            return pair
    raise InputError(
        f"value_range must be two numbers (low, high) or percentiles ('1%', '99%'), got {value!r}"
    )


def _percentile(value: Union[float, str]) -> Optional[float]:
    """Return 1.0 for '1%'; None for what is no percentile in 0..100."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*%', value) if isinstance(value, str) else None
    return float(match.group(1)) if match and float(match.group(1)) <= 100 else None


def decode_array(content: bytes, max_pixels: int) -> np.ndarray:
    """Decode a .npy: H×W, H×W×C or C×H×W, where C is the smaller of the outer sides."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in 'uifb':
        raise ValueError(f'an array of {dtype}, which is no image of numbers')
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f'an array of shape {shape}: an image is H×W, H×W×C or C×H×W')
    first = len(shape) == 3 and shape[0] < shape[2]
    sides = shape[1:] if first else shape[:2]
    if sides[0] * sides[1] > max_pixels:
        raise Image.DecompressionBombError
    if len(content) - file.tell() != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise ValueError(f'the file is cut short: {len(content):,} bytes for an array of {shape}')
    file.seek(0)
    values = np.load(file, allow_pickle=False)
    if values.ndim == 2:
        values = values[..., None]
    return np.moveaxis(values, 0, 2) if first else values


def decode_tiff(
    content: bytes, max_pixels: int, channels: Optional[int]
) -> Tuple[np.ndarray, bool]:
    """Decode a TIFF by tifffile.

    Returns:
        tuple: (H, W, C), upright, C all bands of its first page, or its pages where these have one
        band each and are as many as ``channels``; and whether its smallest value is white.

    Raises:
        ValueError: tifffile is not there, cannot read it, or the file is cut short.
    """
    with _open_pages(content, max_pixels, channels) as pages:
        arrays = []
        for one in pages:
            values = one.asarray()
            if values.ndim != len(one.axes) or set(one.axes) - set('YXS'):
                raise ValueError(f'a TIFF with the axes {one.axes}; YX, YXS and SYX are read')
            if 'S' not in one.axes:
                values = values[..., None]
            elif one.axes.startswith('S'):
                values = np.moveaxis(values, 0, 2)
            arrays.append(values)
        orientation = getattr(pages[0].tags.get(274), 'value', 1)
        inverted = pages[0].photometric == 0
    values = np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, 2))
    return turn_upright(values, orientation), inverted


def check_tiff(content: bytes, max_pixels: int, channels: Optional[int]) -> None:
    """Raise the errors of :func:`decode_tiff` that a TIFF's header tells."""
    with _open_pages(content, max_pixels, channels):
        pass


@contextmanager
def _open_pages(content: bytes, max_pixels: int, channels: Optional[int]) -> Iterator[list]:
    """Open the pages of a TIFF that :func:`decode_tiff` reads, and check what their headers say."""
    if tifffile is None:
        raise ValueError(
            'a TIFF with several values of more than 8 bits, or with others than Pillow reads: '
            'pip install tifffile'
        )
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = [file.pages[0]]
        page = pages[0]
        if (
            page.samplesperpixel == 1
            and channels not in (None, 1, 3)
            and len(file.pages) == channels
        ):
            pages = list(file.pages)
            if len({(one.shape, one.dtype, one.photometric) for one in pages}) > 1:
                raise ValueError(f'its {channels} pages are of several sizes or types')
        if page.bitspersample == 1 and page.samplesperpixel > 1:
            raise ValueError(f'a TIFF with {page.samplesperpixel} bands of one bit')
        if page.photometric not in (0, 1, 2) and channels in (None, 1, 3):
            raise ValueError(f'a TIFF of {page.photometric.name}, whose colors are not converted')
        if channels and page.photometric == 1 and page.samplesperpixel > 2:  # no colors
            check_bands(page.samplesperpixel, channels, colors=False)
        if page.imagewidth * page.imagelength > max_pixels:
            raise Image.DecompressionBombError
        for one in pages:
            ends = [start + size for start, size in zip(one.dataoffsets, one.databytecounts)]
            if not ends:
                raise UnidentifiedImageError
            if max(ends) > len(content):
                raise ValueError(f'the file is cut short: {len(content):,} of {max(ends):,} bytes')
        yield pages


def check_dtype(values: np.ndarray) -> None:
    """Raise a ValueError for values that have no range of their own."""
    if values.dtype not in (np.uint8, np.uint16, np.bool_):
        raise ValueError(describe_dtype(f'values of {values.dtype}'))


def describe_dtype(what: str) -> str:
    """Return the message for numbers that need a ``value_range``."""
    return (
        f'{what}; 8 and 16 bits can be read, others with value_range= of LoadImage (--value-range)'
    )


def scale_values(
    values: np.ndarray, value_range: Optional[ValueRange], inverted: bool = False
) -> np.ndarray:
    """Scale values to uint8 by a ``value_range`` of :class:`LoadImage`, which is in the file's own
    values; ``inverted`` where the smallest is white."""
    if values.dtype == np.uint8:
        return ~values if inverted else values
    if values.dtype == np.bool_:
        return (values ^ inverted).astype(np.uint8) * 255
    if value_range is None:
        check_dtype(values)
        pixels = (values >> 8).astype(np.uint8)
        return ~pixels if inverted else pixels
    low, high = value_range
    if isinstance(low, str):
        finite = values[np.isfinite(values)]
        percentiles = [_percentile(low), _percentile(high)]
        low, high = np.percentile(finite, percentiles) if finite.size else (0, 1)
    values = values.astype(np.float64)
    scaled = (high - values if inverted else values - low) * (256 / max(high - low, 1e-12))
    return np.nan_to_num(scaled, nan=0).clip(0, 255).astype(np.uint8)


def check_bands(bands: int, channels: int, colors: bool = True) -> None:
    """Raise a ValueError where an image's bands cannot become so many channels."""
    if channels == bands or (channels in (1, 3) and bands <= 4 and colors):
        return
    raise ValueError(
        f'it has {bands} bands, and {channels} channels are read: channels= of LoadImage '
        '(--in-channels) says how many'
    )


def select_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Turn the bands of an image into channels.

    Args:
        pixels (np.ndarray): (H, W, bands) uint8, RGB where they are colors.
        channels (int): Argument of :class:`LoadImage`.

    Returns:
        np.ndarray: (H, W, channels), contiguous; BGR for 3.
    """
    bands = pixels.shape[2]
    check_bands(bands, channels)
    if channels == 3:
        pixels = pixels[..., 2::-1] if bands >= 3 else pixels[..., :1].repeat(3, 2)
    elif channels == 1 and bands >= 3:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2GRAY)[..., None]
    elif channels == 1:
        pixels = pixels[..., :1]
    if not (pixels.flags.c_contiguous and pixels.flags.writeable):
        pixels = pixels.copy(order='C')
    return pixels


def turn_upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image by its EXIF orientation.

    Args:
        values (np.ndarray): (H, W, C) of any type.
        orientation (int): 1 to 8; 1 is upright.

    Returns:
        np.ndarray: (H, W, C) or (W, H, C).
    """
    if orientation not in UPRIGHT:
        return values
    planes = [UPRIGHT[orientation](np.ascontiguousarray(p)) for p in np.moveaxis(values, 2, 0)]
    return np.stack(planes, 2)
