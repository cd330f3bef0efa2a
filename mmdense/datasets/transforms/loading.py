# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Image files to arrays, strictly: an incomplete file is an error."""

import io
import logging
import re
from contextlib import contextmanager, suppress
from typing import Iterator, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import get
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError, features

from mmdense.registry import TRANSFORMS
from mmdense.utils.checks import check_counts

from .bands import (
    NUMPY,
    TIFF,
    UPRIGHT,
    ValueRange,
    check_bands,
    check_dtype,
    check_tiff,
    check_value_range,
    decode_array,
    decode_tiff,
    describe_dtype,
    has_tifffile,
    scale_values,
    select_channels,
    turn_upright,
)

try:  # the libjpeg-turbo of OpenCV and Pillow, called with less around it: the same pixels
    import simplejpeg
except ImportError:
    simplejpeg = None

try:  # photographs of phones
    from pillow_heif import register_heif_opener

    register_heif_opener()
except ImportError:
    register_heif_opener = None

# Pillow logs what it cannot read of a file, and without a handler that is a line on stderr for each
# file: the error here says it, once.
logging.getLogger('PIL').addHandler(logging.NullHandler())

# Raster formats only: Pillow's full list has parsers (EPS) that start other programs.
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF', 'PPM')
_AVIF = 'avif' in features.modules and features.check('avif')  # since Pillow 11.3
_FORMATS += ('AVIF',) if _AVIF else ()
_FORMATS += ('HEIF',) if register_heif_opener else ()

# Formats that are not read, by what a file has at its beginning.
_OTHER_FORMATS = {
    rb'....ftyp(avif|avis)': 'an AVIF image, which Pillow reads from version 11.3 on: update it',
    rb'....ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)': 'a HEIC image: pip install pillow-heif',
    rb'\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51': 'a JPEG 2000 image',
    rb'.{128}DICM': 'a DICOM file',
    rb'II\*\x00|MM\x00\*|II\+\x00|MM\x00\+': 'a TIFF of a layout that is not read, or cut short',
    rb'8BPS': 'a Photoshop file',
    rb'SIMPLE  =': 'a FITS file',
    rb'\x00\x00\x01\x00': 'an icon',
}
_READ = (
    'JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, .npy, and AVIF and HEIC with newer packages, are read'
)

_JPEG = b'\xff\xd8'

# Limits on what a file may declare, before anything is decoded.
MAX_PIXELS = 178_956_970  # where Pillow, too, takes a file for a bomb
_MAX_SIDE = 65_535  # a JPEG's; some decoders take memory by the row
# A Huffman-coded JPEG of fewer bytes is incomplete, and a file of another format is no photograph:
# images above _MAX_UNLIKELY_PIXELS must have so many bytes.
_PIXELS_PER_BYTE = 512
_MAX_UNLIKELY_PIXELS = 2**24
# Each scan of a JPEG visits all pixels, and can have ten bytes. Real files have about ten scans.
_MAX_SCANNED_PIXELS = 2**31
_FEW_SCANS = 16

# Segments of a JPEG that leave nothing to ask Pillow for: one scan of eight bits, Huffman-coded
# (SOF0); its tables (DHT, DQT, DRI); and JFIF, color profile, Photoshop's and comments (APP0, APP2,
# APP13, COM). Not EXIF or XMP, which may turn the image, nor Adobe's, which may change its colors.
_PLAIN_SEGMENTS = frozenset(b'\xc0\xc4\xdb\xdd\xe0\xe2\xed\xfe')

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.FLIP_LEFT_RIGHT,
    3: Image.ROTATE_180,
    4: Image.FLIP_TOP_BOTTOM,
    5: Image.TRANSPOSE,
    6: Image.ROTATE_270,
    7: Image.TRANSVERSE,
    8: Image.ROTATE_90,
}
_REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class UnreadableImageError(Exception):
    """Report one image file that cannot be read, with the reason, in one line.

    :class:`~mmdense.datasets.UnlabeledDataset` replaces such an image instead of ending the run.

    Args:
        path (str): The file.
        reason (str): Why it cannot be read.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in ``args``: it has to survive pickling
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f'cannot read image {self.path}: {self.reason}'


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image file, or raise :class:`UnreadableImageError`.

    Unlike mmcv's ``LoadImageFromFile`` it decodes strictly with every version of OpenCV; pixels are
    those of :func:`decode_image`.

    **Required Keys:** ``img_path`` (str); ``img_bytes`` (bytes, optional): the
    content of the file, if the data set has read it from an archive; removed.

    **Added Keys:**

    - ``img`` (np.ndarray): (H, W, C) uint8, upright; BGR with 3 channels.
    - ``img_shape``, ``ori_shape`` (tuple[int, int]): (H, W).

    Args:
        backend_args (dict, optional): Arguments of :func:`mmengine.fileio.get`, for
            files that are not on a local disk. Defaults to None.
        min_side (int, optional): Decode a JPEG at a half, a quarter or an
            eighth of its size while its shorter side keeps so many pixels:
            faster for photographs of many megapixels, not the same pixels.
            The smallest crop should still be as large as the view: for views
            of 224 pixels of at least 8 % of the area, about 1024. Defaults to
            None, full size.
        max_pixels (int): Limit above which images are refused; decoding takes 10 to
            18 bytes a pixel. Sides above 65,535 pixels are always refused, and
            images above 16.8 megapixels with less than a byte for 512 pixels.
            Defaults to 178,956,970, as Pillow.
        value_range (tuple, optional): For files of more than 8 bits, the values of the file that
            become 0 and 255 (255 and 0 in a TIFF whose smallest value is white), those beyond are
            cut: two numbers such as (0, 4096) for 12 bits, or percentiles of each image,
            ('1%', '99%'). Defaults to None: 16 bits in full,
            (0, 65536).
        channels (int): C: 3, 1 for gray, or as many bands as the files have, in their order.
            Defaults to 3.

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        backend_args: Optional[dict] = None,
        min_side: Optional[int] = None,
        max_pixels: int = MAX_PIXELS,
        value_range: Optional[ValueRange] = None,
        channels: int = 3,
    ) -> None:
        if not (backend_args is None or isinstance(backend_args, dict)):
            raise TypeError(f'backend_args must be a dict or None, got {backend_args!r}')
        if min_side is not None:
            check_counts(min_side=min_side)
        check_counts(max_pixels=max_pixels, channels=channels)
        self.backend_args = backend_args
        self.min_side = min_side
        self.max_pixels = max_pixels
        self.value_range = check_value_range(value_range)
        self.channels = channels

    def transform(self, results: dict) -> dict:
        """Add ``img``, ``img_shape`` and ``ori_shape`` to ``results``.

        Raises:
            UnreadableImageError: The file is missing, empty, truncated, not an
                image, or an image too large to be a photograph.
        """
        path, content = results['img_path'], results.pop('img_bytes', None)
        if content is None:
            try:
                content = _read(path, self.backend_args)
            except OSError as e:
                raise UnreadableImageError(path, e.strerror or _one_line(e)) from None
        try:
            img = self.decode(content)
        except ValueError as e:
            raise UnreadableImageError(path, str(e)) from None
        results['img'] = img
        results['img_shape'] = img.shape[:2]
        results['ori_shape'] = img.shape[:2]
        return results

    def decode(self, content: bytes) -> np.ndarray:
        """Decode a file by :func:`decode_image` with the settings of this transform."""
        return decode_image(
            content, self.min_side, self.max_pixels, self.value_range, self.channels
        )

    def read_header(self, content: bytes) -> 'Header':
        """Read the size of an image by :func:`read_header` with the settings of this transform."""
        return read_header(content, self.max_pixels, self.value_range, self.channels)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(backend_args={self.backend_args}, min_side={self.min_side}, '
            f'value_range={self.value_range}, channels={self.channels})'
        )


def decode_image(
    content: bytes,
    min_side: Optional[int] = None,
    max_pixels: int = MAX_PIXELS,
    value_range: Optional[ValueRange] = None,
    channels: int = 3,
) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, AVIF, HEIC or .npy file to pixels.

    AVIF needs Pillow 11.3, HEIC the package pillow-heif.

    - Grey and palette images become three channels.
    - CMYK: inverted where an Adobe marker says so; ICC profiles are not applied.
    - 16-bit: the high byte, so that the full range is scaled to 0..255, or ``value_range``.
    - Other numbers than 8 and 16 bits without a sign: by ``value_range`` alone. Numbers that are
      not finite become 0.
    - .npy: H×W, H×W×C or C×H×W.
    - Alpha is dropped, not composited, as OpenCV and mmcv do.
    - EXIF orientation is applied.
    - Animations and multi-page files: the first frame.

    Args:
        content (bytes): The complete file.
        min_side (int, optional): Argument of :class:`LoadImage`.
        max_pixels (int): Argument of :class:`LoadImage`.
        value_range (tuple, optional): Argument of :class:`LoadImage`.
        channels (int): Argument of :class:`LoadImage`.

    Returns:
        np.ndarray: (H, W, C) uint8, writable; BGR with 3 channels.

    Raises:
        ValueError: With the reason in one line. A truncated file raises unless all its pixels are
            there (a PNG without its last chunk; with simplejpeg, a JPEG without its end marker).
    """
    with _one_line_errors(content, max_pixels):
        pixels = _decode_plain_jpeg(content, min_side, max_pixels) if channels == 3 else None
        if pixels is not None:
            return pixels
        if channels != 3 and content.startswith(_JPEG):
            pixels = decode_image(content, min_side, max_pixels)
            return select_channels(pixels[..., ::-1], channels)
        with _strict_pillow(max_pixels):
            image = _open(content, max_pixels)
            of_values = channels != 3 or value_range is not None and not content.startswith(_JPEG)
            if image is None or of_values:
                values, inverted = _decode_values(content, image, max_pixels, channels)
                return select_channels(scale_values(values, value_range, inverted), channels)
            check_bands(_count_bands(image, channels), channels)
            orientation = _orientation(image)
            if image.format == 'JPEG' and image.mode in ('L', 'RGB'):
                for whole in (content, *_end_jpeg(content)):
                    pixels = _decode_jpeg(whole, image.size, min_side)
                    if pixels is not None:
                        upright = UPRIGHT.get(orientation)
                        return pixels if upright is None else upright(pixels)
            if image.format == 'JPEG' and image.mode == 'CMYK' and simplejpeg is not None:
                whole = (one for one in (content, *_end_jpeg(content)) if _is_complete(one))
                image = _open(next(whole, content), max_pixels)
            image.load()
            image = _to_rgb(image)
            if orientation in _UPRIGHT:
                image = image.transpose(_UPRIGHT[orientation])
            pixels = np.frombuffer(image.tobytes('raw', 'BGR'), np.uint8)
            return pixels.reshape(image.height, image.width, 3).copy()  # the buffer is read-only


class Header(NamedTuple):
    """Describe an image by its header.

    Attributes:
        width (int): Pixels.
        height (int): Pixels.
        channels (int): Colors or bands, alpha included; 1 of a palette's.
        bits (int): Bits of one value.
    """

    width: int
    height: int
    channels: int
    bits: int


def read_header(
    content: bytes,
    max_pixels: int = MAX_PIXELS,
    value_range: Optional[ValueRange] = None,
    channels: Optional[int] = 3,
) -> Header:
    """Read the size of an image by its header alone, where that tells.

    Args:
        content (bytes): The complete file.
        max_pixels (int): Argument of :class:`LoadImage`.
        value_range (tuple, optional): Argument of :class:`LoadImage`.
        channels (int, optional): Argument of :class:`LoadImage`; None for any.

    Raises:
        ValueError: As :func:`decode_image`, where the header tells.
    """
    with _one_line_errors(content, max_pixels), _strict_pillow(max_pixels):
        image = _open(content, max_pixels)
        if image is not None:
            bits, bands = _value_bits(image, content), _count_bands(image, channels)
            if bits > 16 and value_range is None:
                raise ValueError(describe_dtype(f'{image.format} with {bits} bits a pixel'))
            check_bands(bands, channels or bands)
            of_values = channels != 3 or value_range is not None
            if of_values and _needs_tifffile(image, bits, bands):
                check_tiff(content, max_pixels, channels)
            return Header(*image.size, bands, bits)
        values, _ = _decode_values(content, None, max_pixels, channels)
        if value_range is None:
            check_dtype(values)
        check_bands(values.shape[2], channels or values.shape[2])
        height, width, bands = values.shape
        return Header(width, height, bands, 8 * values.dtype.itemsize)


def read_values(content: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a file to its own values, upright: those of all bands, and not scaled.

    Args:
        content (bytes): The complete file.
        max_pixels (int): Argument of :class:`LoadImage`.

    Returns:
        np.ndarray: (H, W, C) of the file's type, as they are in the file also where 0 is white;
        colors as RGB, alpha and further bands behind them.

    Raises:
        ValueError: As :func:`decode_image`.
    """
    with _one_line_errors(content, max_pixels), _strict_pillow(max_pixels):
        return _decode_values(content, _open(content, max_pixels), max_pixels, None)[0]


def _open(content: bytes, max_pixels: int) -> Optional[Image.Image]:
    """Open an image by its header alone; None for arrays, and for the TIFFs of which Pillow opens
    none, or decodes other pixels."""
    if content.startswith(NUMPY):
        return None
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        if has_tifffile() and content[:4] in TIFF:
            return None
        raise
    _check_size(image, content, max_pixels)
    return None if image.format == 'TIFF' and _is_misread(image) else image


@contextmanager
def _one_line_errors(content: bytes, max_pixels: int) -> Iterator[None]:
    """Turn any error of a decoder into a ValueError of one line."""
    if not content:
        raise ValueError('the file is empty')
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(_describe_unknown(content)) from None
    except Image.DecompressionBombError:
        raise ValueError(
            f'its size exceeds max_pixels={max_pixels} of LoadImage: a decompression bomb, or an '
            'image to cut into pieces'
        ) from None
    except MemoryError:
        raise ValueError('decoding it takes more memory than there is') from None
    except Exception as e:  # for a broken file decoders raise any exception, struct.error too
        raise ValueError(_one_line(e)) from None


def _read(path, backend_args: Optional[dict]) -> bytes:
    # MMEngine's choice of a backend takes longer
    if backend_args is None and '://' not in str(path):
        with open(path, 'rb') as f:
            return f.read()
    return get(path, backend_args)


def _check_size(image: Image.Image, content: bytes, max_pixels: int) -> None:
    """Refuse an image that takes memory or time out of proportion to its file."""
    width, height = image.size
    pixels, size = width * height, f'{width:,} × {height:,} pixels'
    if pixels > max_pixels:
        raise Image.DecompressionBombError
    if max(width, height) > _MAX_SIDE:
        raise ValueError(f'it has {size}, more than {_MAX_SIDE:,} on a side')
    if pixels > max(_MAX_UNLIKELY_PIXELS, _PIXELS_PER_BYTE * len(content)):
        raise ValueError(
            f'{len(content):,} bytes that say they are {size}: damaged, or a decompression bomb'
        )
    if image.format == 'JPEG':
        scans = content.count(b'\xff\xda')  # as many as there are, or more
        if scans > _FEW_SCANS and scans * pixels > _MAX_SCANNED_PIXELS:
            scans = _count_scans(content)
            if scans > _FEW_SCANS and scans * pixels > _MAX_SCANNED_PIXELS:
                raise ValueError(f'{scans} scans of {size}, which take minutes to decode')
    run_length_coded = image.format == 'BMP' and image.info.get('compression') in (1, 2)
    if run_length_coded and pixels > _MAX_UNLIKELY_PIXELS:  # Pillow does it in Python
        raise ValueError(f'a run-length coded BMP of {size}, which takes minutes to decode')


def _count_scans(content: bytes) -> int:
    """Count the scans of a JPEG, without those of a thumbnail or of a video behind its end."""
    return sum(marker == 0xDA for marker, _ in _walk_segments(content))


def _walk_segments(content: bytes) -> Iterator[Tuple[int, bytes]]:
    """Yield the marker of each segment of a JPEG until its end, and the start of what is in it."""
    at = 2
    while True:
        found = _SEGMENT.search(content, at)
        if found is None or found.group(1) == b'\xd9':
            return
        at = found.end()
        yield found.group(1)[0], content[at + 2 : at + 64]
        at += int.from_bytes(content[at : at + 2], 'big')


_SEGMENT = re.compile(rb'\xff([^\x00\x01\xd0-\xd8\xff])')  # the marker before a segment


def _decode_plain_jpeg(
    content: bytes, min_side: Optional[int], max_pixels: int
) -> Optional[np.ndarray]:
    """Decode the most common files without Pillow, whose look at their headers takes a while.

    Returns:
        np.ndarray, optional: As of :func:`_decode_jpeg`; None for a file that has to be checked.
    """
    size = _plain_jpeg_size(content)
    if size is None or size[0] * size[1] > min(max_pixels, _MAX_UNLIKELY_PIXELS):
        return None
    return _decode_jpeg(content, size, min_side)


def _plain_jpeg_size(content: bytes) -> Optional[Tuple[int, int]]:
    """Return (width, height) of a JPEG that has one scan and _PLAIN_SEGMENTS only, or None."""
    at, frame = 2, b''
    while content[:2] == b'\xff\xd8':
        head = content[at : at + 10]
        if len(head) < 10 or head[0] != 0xFF:
            return None
        if head[1] == 0xDA:  # the scan: of all one or three colors?
            height, width = (int.from_bytes(frame[i : i + 2], 'big') for i in (5, 7))
            plain = frame[4:5] == b'\x08' and frame[9] in (1, 3) and frame[9] == head[4]
            return (width, height) if plain and width and height else None
        if head[1] not in _PLAIN_SEGMENTS:
            return None
        if head[1] == 0xC0:
            frame = head
        at += 2 + int.from_bytes(head[2:4], 'big')
    return None


def _decode_jpeg(
    content: bytes, size: Tuple[int, int], min_side: Optional[int]
) -> Optional[np.ndarray]:
    """Decode a gray or RGB JPEG without Pillow: the same pixels in 2/3 of the time.

    simplejpeg is strict. OpenCV before 4.12 fills a truncated JPEG with gray, so a file must end
    with the end marker. Pillow gets all files that are odd otherwise, or that they refuse.

    Args:
        content (bytes): The complete file.
        size (tuple[int, int]): Width and height in the file.
        min_side (int, optional): Argument of :class:`LoadImage`.

    Returns:
        np.ndarray, optional: (H, W, 3) uint8, BGR, not upright; None if Pillow has to decode.
    """
    shrinks = [n for n in _REDUCED if min_side and min(size) >= n * min_side]
    shrink = max(shrinks, default=1)
    try:
        if simplejpeg is not None:
            width, height = (-(-side // shrink) for side in size)
            return simplejpeg.decode_jpeg(
                content, 'BGR', strict=True, min_height=height, min_width=width
            )
        if content.endswith(b'\xff\xd9'):
            flags = _REDUCED.get(shrink, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
            return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except (cv2.error, ValueError) as e:
        _check_data(e)
    return None


def _is_complete(content: bytes) -> bool:
    """Return whether simplejpeg finds nothing odd in a CMYK JPEG."""
    try:
        simplejpeg.decode_jpeg(content, 'CMYK', strict=True)
    except ValueError as e:
        _check_data(e)
        return False
    return True


def _check_data(error: Exception) -> None:
    """Refuse a JPEG whose data ends before its pixels do, by the error of a strict decoder. Pillow
    fills the rest with gray where an end marker follows."""
    if 'premature end of data segment' in str(error):
        raise ValueError('the image file is truncated: its data ends before the last pixel')


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode of Pillow to mode RGB."""
    if image.mode == 'RGB':
        return image
    if _is_gray_of_16_bits(image):
        pixels = scale_values(_gray_values(image), None, _is_inverted(image))
        return Image.fromarray(pixels).convert('RGB')
    if image.mode in ('I', 'F'):
        raise ValueError(describe_dtype(f'{image.format} with 32 bits a pixel'))
    if image.mode == 'CMYK' and image.format in ('JPEG', 'MPO') and 'adobe' not in image.info:
        image = ImageChops.invert(image)  # Pillow treats every CMYK JPEG as Adobe's
    image.info.pop('transparency', None)  # alpha is dropped
    return image.convert('RGB')


def _is_gray_of_16_bits(image: Image.Image) -> bool:
    return image.mode.startswith('I;16') or (
        # older Pillows open 16-bit gray so
        image.mode == 'I' and image.format in ('PNG', 'PPM')
    )


def _gray_values(image: Image.Image) -> np.ndarray:
    """Return the values H×W of an image of one channel with more than 8 bits."""
    values = np.asarray(image)
    if _is_gray_of_16_bits(image):
        values = values.astype(np.uint16)
    elif image.format == 'TIFF' and image.mode == 'I' and _sample_format(image) == 1:
        values = values.view(np.uint32)  # Pillow takes them for such with a sign
    return values


def _is_inverted(image: Image.Image) -> bool:
    """Return whether the smallest value of :func:`_gray_values` is white."""
    return image.format == 'TIFF' and image.tag_v2.get(_PHOTOMETRIC) == 0


def _sample_format(image: Image.Image) -> int:
    """Return how a TIFF's numbers are to be read: 1 without a sign, 2 with a sign, 3 floats."""
    return image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0]


def _is_misread(image: Image.Image) -> bool:
    """Return whether Pillow decodes other pixels than a TIFF has, or none: it takes bytes of planes
    of 16 bits for values of 8, one plane of several without colors for all, numbers with a sign for
    such without, bits for bytes, and compressed big-endian numbers for little-endian ones."""
    tags = image.tag_v2
    bits, signs = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    if max(bits) == 8 and 2 in signs or max(bits) == 1 and len(bits) > 1:
        return True
    if image.mode in ('I', 'F') and tags.prefix == b'MM' and tags.get(_COMPRESSION, 1) != 1:
        return True
    if tags.get(_PLANES) != 2 or tags.get(_SAMPLES, 1) == 1:
        return False
    premultiplied = 1 in tags.get(_EXTRA_SAMPLES, ())
    of_16_bits = max(bits) == 16 and tags.get(_COMPRESSION, 1) == 1
    return tags.get(_PHOTOMETRIC) != 2 or premultiplied or of_16_bits


def _value_bits(image: Image.Image, content: bytes) -> int:
    """Return the bits of one value in a file, which Pillow may reduce to 8."""
    if _is_gray_of_16_bits(image):
        return 16
    if image.mode in ('I', 'F'):
        return 32
    if image.format == 'PNG':
        return max(content[24], 8)  # of the chunk IHDR
    if image.format == 'TIFF':
        return max(8, *image.tag_v2.get(_BITS, (8,)))
    return 8


def _count_bands(image: Image.Image, channels: Optional[int]) -> int:
    """Return the bands of a file: all of a TIFF's, of which Pillow may open some; and its pages,
    where these are as many as the channels that are read."""
    if image.format != 'TIFF':
        return 3 if image.mode == 'CMYK' else len(image.getbands())
    bands = image.tag_v2.get(_SAMPLES, 1)
    pages = (
        bands == 1 and channels not in (None, 1, 3) and getattr(image, 'n_frames', 1) == channels
    )
    return channels if pages else bands


def _decode_values(
    content: bytes, image: Optional[Image.Image], max_pixels: int, channels: Optional[int]
) -> Tuple[np.ndarray, bool]:
    """Decode as :func:`read_values`, and return also whether the smallest value is white;
    ``image`` is that of :func:`_open`, ``channels`` are those that are read, None for any."""
    if content.startswith(NUMPY):
        return decode_array(content, max_pixels), False
    if image is None:
        return decode_tiff(content, max_pixels, channels)
    orientation, bits = _orientation(image), _value_bits(image, content)
    bands = _count_bands(image, channels)
    if _needs_tifffile(image, bits, bands):
        return decode_tiff(content, max_pixels, channels)
    check_bands(bands, channels or bands)
    image.load()
    inverted = False
    if bits > 8 and image.format in ('PNG', 'PPM') and len(image.getbands()) > 1:
        values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if values.ndim == 3:  # BGR, and alpha
            values[..., :3] = values[..., 2::-1].copy()
    elif bits > 8:
        values, inverted = _gray_values(image), _is_inverted(image)
    elif image.format == 'TIFF' and channels == len(image.getbands()) > 3:
        values = np.asarray(image)  # also those of CMYK
    else:
        if image.mode not in ('L', 'LA', 'RGB', 'RGBA'):
            gray = {'1': 'L', 'La': 'LA'}.get(image.mode)
            image = image.convert(gray) if gray else _to_rgb(image)
        values = np.asarray(image)
    return turn_upright(values.reshape(*values.shape[:2], -1), orientation), inverted


def _needs_tifffile(image: Image.Image, bits: int, bands: int) -> bool:
    """Return whether tifffile reads the values of an image that Pillow opens."""
    return image.format == 'TIFF' and (bands > len(image.getbands()) or bits > 8 and bands > 1)


# tags of TIFF
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES = 258, 259, 262, 277, 284
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339


def _end_jpeg(content: bytes) -> List[bytes]:
    """Return a JPEG with the end marker that some cameras leave out, behind or in place of zeros at
    its end; [] where a file is not to be completed.

    What is cut in the midst of a scan is found by the strict decoder. A progressive file that lacks
    complete scans is not: it must have all bits of all coefficients.
    """
    if simplejpeg is None or content.endswith(b'\xff\xd9'):
        return []
    with suppress(IndexError, ValueError):  # of a broken segment, which is left to Pillow
        if _has_all_coefficients(content):
            starts = dict.fromkeys((content, content.rstrip(b'\0')))
            return [one + (b'\xd9' if one.endswith(b'\xff') else b'\xff\xd9') for one in starts]
    return []


def _has_all_coefficients(content: bytes) -> bool:
    """Return whether the scans of a JPEG have the last bits of all coefficients of all colors."""
    left: dict = {}  # by color, the coefficients that are not complete
    for marker, body in _walk_segments(content):
        if marker in (0xC0, 0xC1, 0xC2):
            left = {body[6 + 3 * i]: set(range(64)) for i in range(body[5])}
        elif marker == 0xDA:
            number = body[0]
            first, last, bits = body[1 + 2 * number : 4 + 2 * number]
            for i in range(number):
                if bits & 15 == 0:  # also in a sequential file, which has all in one scan
                    left.get(body[1 + 2 * i], set()).difference_update(range(first, last + 1))
    return bool(left) and not any(left.values())


def _describe_unknown(content: bytes) -> str:
    """Say which format a file has that is not read."""
    for start, name in _OTHER_FORMATS.items():
        if re.match(start, content[:400], re.DOTALL):
            return f'{name}; {_READ}'
    return f'not an image, or only the start of one; it begins with {bytes(content[:16])}'


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied, 1 for none."""
    if image.format == 'TIFF':  # Pillow has applied it; older versions keep the tag
        return 1
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF does not spoil the pixels
        return 1


@contextmanager
def _strict_pillow(max_pixels: int) -> Iterator[None]:
    """Set Pillow's switches for a block: other libraries change them for the process."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, max_pixels
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
