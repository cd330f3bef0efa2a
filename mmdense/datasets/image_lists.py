# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Read the files that name images: lists and jsons of OpenMMLab, COCO, LVIS and their like."""

import io
import json
import re
from typing import Any, List, Optional

from mmdense.utils.errors import DataError

# Keys of one image's entry, in the order of preference.
_KEYS = ('file_name', 'img_path', 'filename', 'image', 'img', 'path', 'image_path', 'filepath')
_KEYS += ('name',)  # BDD100K
# Keys of the list of entries: of COCO and LVIS; of MMEngine.
_LISTS = ('images', 'data_list')
_LABELS = re.compile(r'(?:\s+-?\d+(?:\.\d+)?|,-?\d+)+$')
# An image, and a name of its class or of its label map.
_COLUMNS = re.compile(
    r'(\S.*?\.(?:jpe?g|jfif|png|webp|bmp|tiff?|gif|p[gp]m|avif|hei[cf]))(?:\s+|\s*[,;]\s*)\S.*',
    re.IGNORECASE,
)


def read_image_list(content: bytes, name: str) -> List[str]:
    """Return the paths of images that a list or a json names, in its order.

    - A list has one path on each line. Empty lines and comments (``# …``) are left out, and so are
      labels behind the paths where every line has some, as in lists of mmpretrain
      (``cat/1.jpg 0``), and further columns, as of label maps (``1.jpg 1.png``).
    - A json has a list of paths; or of objects that have one as ``file_name``, ``img_path``,
      ``filename``, ``image``, ``img``, ``path``, ``image_path``, ``filepath`` or ``name``; or that
      list under ``images`` (COCO) or ``data_list`` (MMEngine). LVIS has ``coco_url`` instead, of
      which the last two parts are taken, as mmdet does.

    Args:
        content (bytes): The file, in UTF-8.
        name (str): Path of the file, for messages; a ``.json`` is one.

    Raises:
        DataError: It cannot be read, or names no images; with the first entry that is wrong.
    """
    what = describe_list(name)
    try:
        text = content.decode('utf-8-sig')
        content = json.loads(text) if what == 'json' else None
    except ValueError as e:
        raise DataError(f'cannot read the {what} {name}: {e}') from None
    paths = _read_json(content, name) if what == 'json' else _read_lines(text, name)
    url = next((path for path in paths if path.startswith(('http://', 'https://'))), None)
    if url is not None:
        raise DataError(
            f'the {what} {name} names addresses on the web, {url} first: download the images, and '
            'give their folder'
        )
    return [path[len('file://') :] if path.startswith('file://') else path for path in paths]


def describe_list(name: str) -> str:
    """Return 'json' or 'image list', by the name of a file."""
    return 'json' if name.lower().endswith('.json') else 'image list'


def _read_lines(text: str, name: str) -> List[str]:
    lines = [line.strip() for line in io.StringIO(text, newline=None)]
    lines = [line for line in lines if line and not line.startswith('# ')]
    if not lines:
        raise DataError(f'the image list {name} is empty; looked for one path on each line')
    if all(_LABELS.search(line) for line in lines):
        return [_LABELS.sub('', line) for line in lines]
    columns = [_COLUMNS.fullmatch(line) for line in lines]
    return [match.group(1) for match in columns] if all(columns) else lines


def _read_json(content: Any, name: str) -> List[str]:
    place, entries = '', content
    if isinstance(content, dict):
        place = next((key for key in _LISTS if isinstance(content.get(key), list)), None)
        if place is None:
            raise DataError(
                f'{name} names no images: looked for a list "images" (COCO) or "data_list" '
                f'(MMEngine), found {sorted(content)[:8]}'
            )
        entries = content[place]
    if not isinstance(entries, list):
        raise DataError(
            f'{name} names no images: looked for a list, or an object with a list "images", found '
            f'{type(content).__name__}'
        )
    if not entries:
        what = f'its list "{place}"' if place else 'its list'
        raise DataError(f'{name} is empty: {what} has no entry')
    paths = []
    for i, entry in enumerate(entries):
        path = _find_path(entry)
        if path is None:
            raise DataError(
                f'{name}: {place}[{i}] has no "file_name" or other path of an image: {entry!r:.80}'
            )
        paths.append(path)
    return paths


def _find_path(entry: Any) -> Optional[str]:
    """Return the path in the entry of one image, None without one."""
    if isinstance(entry, str):
        return entry or None
    if not isinstance(entry, dict):
        return None
    found = next((entry[key] for key in _KEYS if isinstance(entry.get(key), str)), None)
    if found is None and isinstance(entry.get('coco_url'), str):
        found = '/'.join(entry['coco_url'].split('/')[-2:])
    return found or None
