# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Write HTML files that need no network: pictures and scripts are in them."""

import base64
import io
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

import mmdense
from mmdense.utils.files import report_write_errors, write_text

_TEMPLATES = Path(__file__).parent / 'templates'


def write_page(path: str, template: str, **values: Any) -> None:
    """Fill a template and write the file.

    Args:
        path (str): The file; its folder is made if there is none.
        template (str): Name of a file in ``templates``.
        **values: Values of the names in the template. Text is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader(str(_TEMPLATES)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values['written'] = datetime.now().strftime('%Y-%m-%d %H:%M')
    page = environment.get_template(template).render(version=mmdense.__version__, **values)
    with report_write_errors(path):
        write_text(path, page)


def data_uri(pixels: np.ndarray, quality: int = 0) -> str:
    """Encode an image as a URI.

    Args:
        pixels (np.ndarray): Pixels, H×W×3 or H×W, uint8, RGB, or floats in [0, 1].
        quality (int): Quality of a JPEG, 1 to 95. Defaults to 0, a PNG.

    Returns:
        str: ``data:image/…``.
    """
    if pixels.dtype != np.uint8:
        pixels = (pixels * 255).round().astype(np.uint8)
    buffer, kind = io.BytesIO(), 'jpeg' if quality else 'png'
    options = dict(quality=quality) if quality else dict(optimize=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'
