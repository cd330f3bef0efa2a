# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A data set of images without labels, from a folder, a zip, an LMDB, a list or a COCO json."""

import fnmatch
import glob
import os
import os.path as osp
import random
import re
from collections import Counter
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from mmengine.dataset import BaseDataset
from mmengine.fileio import get
from mmengine.fileio.backends.registry_utils import prefix_to_backends
from mmengine.structures import BaseDataElement

from mmdense.registry import DATASETS
from mmdense.utils.checks import check_whole
from mmdense.utils.errors import DataError, MissingImagesError
from mmdense.utils.randomness import seeded

from .image_lists import describe_list, read_image_list
from .storage import LmdbStorage, ZipStorage, open_storage
from .transforms.loading import UnreadableImageError
from .workers import init_worker

_PathLike = Union[str, os.PathLike]


@DATASETS.register_module()
class UnlabeledDataset(BaseDataset):
    """Read images without labels.

    Without ``ann_file`` the folder ``data_root/data_prefix`` is searched, with its sub-folders and
    links, for files that end in one of ``extensions`` in upper or lower case. Names that begin with
    a dot are left out, and a folder that links lead to twice is searched once. The order is that of
    the sorted paths, on every file system. Several folders are one data set (COCO+ is
    ``data_prefix=['train2017', 'unlabeled2017']``); each of them may also be one image or a pattern
    such as ``'*/rgb'``. What a run or a report of mmdense or MMEngine wrote is left out: folders
    below that are called ``work_dirs`` or hold checkpoints, and the pictures of a page.

    With ``ann_file`` the images are those it names, in its order, relative to
    ``data_root/data_prefix``: the lines of a ``.txt``, or the entries of a ``.json``, in the
    formats that :func:`~mmdense.datasets.image_lists.read_image_list` documents.

    Each folder may be a zip, or an LMDB whose keys are the files' paths, or a folder in one
    (``coco.zip/train2017``), with the same images in the same order. ``ann_file`` may be in one,
    too. ``LoadImage`` finds such an image's bytes in ``img_bytes``.

    An image that cannot be read (:class:`UnreadableImageError`) is replaced by another that depends
    on its index only, so that a resumed run sees the same images. Every data sample carries
    ``unreadable`` in its meta information: a list of ``(path, reason)`` of the files that it
    replaces, mostly empty. :class:`~mmdense.engine.UnreadableImagesHook` logs and counts them. The
    pipeline has to end in a transform that packs ``data_samples``.

    Args:
        data_root (str): The folder that ``ann_file`` and ``data_prefix`` are relative to. Defaults
            to ''.
        ann_file (str): A ``.txt`` or ``.json`` that names the images. Defaults to '', the folder is
            searched.
        data_prefix (str | Sequence[str] | dict): The folder of the images, or several without
            ``ann_file``, or ``dict(img_path=...)`` of these. Defaults to ''.
        pipeline (Sequence[dict | Callable]): Transforms; the first is
            ``LoadImage``. Defaults to an empty tuple.
        extensions (Sequence[str]): The endings of images' names.
        exclude (Sequence[str]): Images to leave out: patterns as of a shell, of the path below the
            folder, of a folder's name or path, or of a file's name: ``'masks'``,
            ``'*/masks/*.png'``, ``'*_mask.png'``. Defaults to ().
        recursive (bool): Whether to search sub-folders. Defaults to True.
        indices (int | Sequence[int], optional): Number of images to use from the
            start, or indices of images. Defaults to None, all.
        serialize_data (bool): Keep the paths in one array that the data
            loader's workers share. Defaults to True.
        lazy_init (bool): Look for the images only when asked for them.
            Defaults to False.
        max_refetch (int): Number of other images to try in place of an unreadable
            one before an error. Defaults to 100.

    Attributes:
        own_folders (list[str]): Folders of runs that were left out.
        unread (Counter): Number of files by the ending of a format that is not read.

    Raises:
        TypeError: A path, ``data_prefix``, ``extensions`` or ``exclude`` has the wrong type.
        InputError: ``max_refetch`` is not a whole number of at least 0.
        DataError: There is no such folder or file, or no image in it.

    Examples:
        >>> dataset = UnlabeledDataset(data_root='data/coco', data_prefix='train2017')
        >>> dataset[0]['img_path']
        'data/coco/train2017/000000000009.jpg'
    """

    takes_numbers = True  # see ResumableSampler

    EXTENSIONS = (
        '.jpg',
        '.jpeg',
        '.jfif',
        '.png',
        '.webp',
        '.bmp',
        '.tif',
        '.tiff',
        '.gif',
        '.ppm',
        '.pgm',
        '.avif',
        '.heic',
        '.heif',
    )

    def __init__(
        self,
        data_root: _PathLike = '',
        ann_file: _PathLike = '',
        data_prefix: Union[_PathLike, Sequence[_PathLike], dict] = '',
        pipeline: Sequence = (),
        extensions: Sequence[str] = EXTENSIONS,
        exclude: Sequence[str] = (),
        recursive: bool = True,
        indices: Optional[Union[int, Sequence[int]]] = None,
        serialize_data: bool = True,
        lazy_init: bool = False,
        max_refetch: int = 100,
    ) -> None:
        data_root = _path('data_root', data_root)
        ann_file = _path('ann_file', ann_file)
        data_prefix = _folders(data_prefix)
        if isinstance(data_prefix, list) and (ann_file or not data_prefix):
            raise DataError(
                'data_prefix is a list of folders only without ann_file, and not an empty one; '
                f'got data_prefix={data_prefix} and ann_file={ann_file!r}'
            )
        if not (data_root or ann_file or data_prefix):
            raise DataError('UnlabeledDataset needs data_root, data_prefix or ann_file')
        if ann_file and not ann_file.lower().endswith(('.txt', '.json')):
            raise DataError(f'ann_file must be a .txt list or a COCO .json, got {ann_file}')
        check_whole(0, max_refetch=max_refetch)
        self.extensions = _extensions(extensions)
        self.exclude = _patterns(exclude)
        self._excluded = _match_any(self.exclude)
        self.own_folders: List[str] = []
        self.unread: Counter = Counter()
        self.recursive = recursive
        self._storages: List[Union[ZipStorage, LmdbStorage]] = []
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=dict(img_path=data_prefix),
            indices=indices,
            serialize_data=serialize_data,
            pipeline=pipeline,
            lazy_init=lazy_init,
            max_refetch=max_refetch,
        )

    @property
    def source(self) -> str:
        """str: Folder and search of the images, for messages."""
        folders = self.data_prefix['img_path']
        if self.ann_file:
            return f'{self.ann_file} (its paths relative to {folders or os.curdir})'
        return self._searched(' and '.join(_as_list(folders)))

    def _searched(self, where: str) -> str:
        depth = 'with' if self.recursive else 'without'
        return f'{where} ({depth} sub-folders, files ending in {" ".join(self.extensions)})'

    def _join_prefix(self) -> None:
        folders = self.data_prefix['img_path']
        self.data_prefix = dict(enumerate(_as_list(folders)))  # MMEngine joins one path a key
        super()._join_prefix()
        joined = [path.rstrip('/') or path for path in self.data_prefix.values()]  # '' left a '/'
        self.data_prefix = dict(img_path=joined if isinstance(folders, list) else joined[0])

    def _get_unserialized_subset(self, indices: Union[Sequence[int], int]) -> list:
        try:
            subset = super()._get_unserialized_subset(indices)
        except IndexError:
            raise DataError(
                f'indices go beyond the {len(self.data_list)} images of {self.source}'
            ) from None
        if not subset:
            raise DataError(f'no image left of {self.source} with indices={indices}')
        return subset

    def load_data_list(self) -> List[dict]:
        """Return one ``dict(img_path=...)`` for each image.

        It has ``stored``, the image's location, if that is in a zip or an LMDB.
        """
        self._storages, self.own_folders, self.unread = [], [], Counter()
        if not self.ann_file:
            stored: Dict[str, Optional[tuple]] = {}  # once, where one folder is below another
            for folder in _as_list(self.data_prefix['img_path']):
                stored.update(self._search(folder))
            images = sorted(stored.items())
        else:
            images = self._look_up(self._read_names())
        return [
            dict(img_path=path) if at is None else dict(img_path=path, stored=at)
            for path, at in images
        ]

    def _search(self, folder: str) -> Dict[str, Optional[tuple]]:
        found = open_storage(folder)
        if found is not None:
            stored = self._search_storage(folder, *found)
        elif osp.isdir(folder):
            stored = {
                osp.join(parent, name): None
                for parent, names in self._walk(folder)
                for name in names
                if name.lower().endswith(self.extensions)
            }
        elif osp.isfile(folder) and folder.lower().endswith(self.extensions):
            return {folder: None}
        elif glob.has_magic(folder) and not osp.exists(folder):
            stored = self._search_pattern(folder)
        else:
            what = 'does not exist'
            if osp.exists(folder):
                what = 'is not a folder, nor a zip or an LMDB'
            raise DataError(f'image folder {folder} {what}; looked for {self.source}')
        if not stored:
            others = ''
            if self.unread:
                others = f'; it has {self.describe_unread()}'
            raise DataError(f'no image found in {self._searched(folder)}{others}')
        return stored

    def _search_pattern(self, pattern: str) -> Dict[str, Optional[tuple]]:
        stored: Dict[str, Optional[tuple]] = {}
        paths = sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise DataError(f'no file or folder fits the pattern {pattern}')
        for path in paths:
            ending = path.lower().endswith(self.extensions)
            if osp.isdir(path) or ending or path.lower().endswith('.zip'):
                stored.update(self._search(path))
        return stored

    def describe_unread(self) -> str:
        """Return in words how many files of formats that are not read there are."""
        counts = ', '.join(f'{n:,} {ending}' for ending, n in self.unread.most_common())
        text = f'{counts}, which {"is" if sum(self.unread.values()) == 1 else "are"} not read'
        if '.npy' in self.unread:
            text += ' (.npy is, with the channels of the images: --in-channels)'
        return text

    def _search_storage(self, path, storage, folder: str) -> Dict[str, Optional[tuple]]:
        start = f'{folder}/' if folder else ''
        below = [
            (name, location)
            for name, location in storage.entries().items()
            if name.startswith(start)
        ]
        if folder and not below:
            raise DataError(
                f'image folder {path} does not exist in {storage.path}; looked for {self.source}'
            )
        self._storages.append(storage)
        number = len(self._storages) - 1
        listed = [item for item in below if self._is_listed(item[0][len(start) :])]
        self.unread.update(filter(None, (self._find_unread(name) for name, _ in listed)))
        return {
            f'{storage.path}/{name}': (number, location)
            for name, location in listed
            if name.lower().endswith(self.extensions)
        }

    def _is_listed(self, name: str) -> bool:
        """Return whether :meth:`_walk` would list a file in a zip; macOS adds a folder to zips."""
        parts = name.split('/')
        hidden = any((part.startswith('.') and part != '.') or part in _ZIP_OWN for part in parts)
        return not hidden and (self.recursive or len(parts) == 1) and not self._is_excluded(name)

    def _is_excluded(self, name: str) -> bool:
        """Return whether a pattern of ``exclude`` fits a path, or a part of it."""
        if self._excluded is None:
            return False
        parts = name.split('/')
        paths = ('/'.join(parts[:n]) for n in range(1, len(parts) + 1))
        return any(self._excluded(text) for text in (*parts, *paths))

    def _find_unread(self, name: str) -> Optional[str]:
        """Return the ending of a file of an image format that is not read."""
        ending = osp.splitext(name)[1].lower()
        known = ending in _UNREAD or ending in self.EXTENSIONS
        return ending if known and ending not in self.extensions else None

    def _walk(self, root: str) -> Iterator[Tuple[str, List[str]]]:
        """Yield (folder, names of its files) of ``root`` and, if ``recursive``, of all below it.

        Links are followed, each real folder is visited once; hidden names, runs and what
        ``exclude`` fits are left out.
        """

        def fail(error: OSError) -> None:
            raise DataError(f'cannot list folder {error.filename}: {error.strerror}')

        visited = {_identity(root)}
        for parent, folders, names in os.walk(root, followlinks=True, onerror=fail):
            inner = osp.relpath(parent, root) if parent != root else ''
            if inner and _is_run(parent, folders, names):
                self.own_folders.append(parent)
                folders[:] = []
                continue
            start = f'{inner}/' if inner else ''
            below = []
            for name in sorted(folders) if self.recursive else ():
                identity = _identity(osp.join(parent, name))
                if name.startswith('.') or identity in visited or self._is_excluded(start + name):
                    continue
                visited.add(identity)
                below.append(name)
            folders[:] = below  # os.walk continues with these
            own = _own_pictures(parent, names)
            names = [n for n in names if not n.startswith('.') and n not in own]
            if self._excluded is not None:
                names = [name for name in names if not self._is_excluded(start + name)]
            self.unread.update(filter(None, map(self._find_unread, names)))
            yield parent, names

    def _look_up(self, names: List[str]) -> List[Tuple[str, Optional[tuple]]]:
        """Return the images that a list names. One that is missing is replaced in training; if all
        are missing, the list may have other spellings of paths, or the prefix is wrong."""
        for spell in _SPELLINGS:
            images = self._locate(list(map(spell, names)))
            if not any(map(self._exists, images)):
                images = self._add_endings(images)  # lists of Pascal VOC have none
            if any(map(self._exists, images)):
                return images
        first = self._locate(names[:1])[0][0]
        raise MissingImagesError(
            f'none of the {len(names)} images in {self.ann_file} exists; the first '
            f'was looked for at {first}; check data_root and data_prefix',
            first,
        )

    def _locate(self, names: List[str]) -> List[Tuple[str, Optional[tuple]]]:
        """Return the path of each image, and its place in a zip or an LMDB."""
        folder = self.data_prefix['img_path']
        images: List[Tuple[str, Optional[tuple]]] = [
            (name if '://' in name else osp.join(folder, name), None) for name in names
        ]
        found = open_storage(folder)
        if found is not None:
            storage, _ = found
            self._storages = [storage]
            entries, root = storage.entries(), f'{storage.path}/'
            for i, (path, _) in enumerate(images):
                if path.startswith(root):  # or the list has an absolute path
                    name = path[len(root) :]
                    if name not in entries:
                        name = osp.normpath(name)
                    images[i] = f'{root}{name}', (0, entries.get(name))
        for path, _ in images:
            backend = path.partition('://')[0].rpartition(':')[2]
            if '://' in path and backend not in prefix_to_backends:
                raise DataError(f'MMEngine knows no storage {backend}://, of {path}')
        return images

    @staticmethod
    def _exists(image: Tuple[str, Optional[tuple]]) -> bool:
        """Return whether a file exists; those on another backend ('s3://…') are not checked."""
        path, stored = image
        return '://' in path or (osp.exists(path) if stored is None else stored[1] is not None)

    def _add_endings(
        self, images: List[Tuple[str, Optional[tuple]]]
    ) -> List[Tuple[str, Optional[tuple]]]:
        """Return images on disk with the first of ``extensions`` that makes each a file."""
        found = []
        for path, stored in images:
            paths = (path + ending for ending in self.extensions if stored is None)
            found.append((next(filter(osp.isfile, paths), path), stored))
        return found

    def _read_names(self) -> List[str]:
        found = None if osp.isfile(self.ann_file) else open_storage(self.ann_file)
        try:
            if found is None:
                with open(self.ann_file, 'rb') as f:
                    content = f.read()
            else:
                storage, name = found
                content = storage.read(name, storage.entries().get(name))
        except (OSError, UnreadableImageError) as e:
            reason = e.reason if isinstance(e, UnreadableImageError) else e.strerror
            what = describe_list(self.ann_file)
            raise DataError(f'cannot read the {what} {self.ann_file}: {reason}') from None
        names = read_image_list(content, self.ann_file)
        kept = [name for name in names if not self._is_excluded(name)]
        if names and not kept:
            raise DataError(f'exclude={list(self.exclude)} leaves no image of {self.ann_file}')
        return kept

    def __iter__(self) -> Iterator[dict]:
        # Python's default would not end: beyond the last index are the numbers of the next epoch
        return (self[i] for i in range(len(self)))

    def prepare_data(self, idx: int) -> dict:
        """Return the idx-th image after the pipeline, or another in its place.

        Args:
            idx (int): The index of the image, or one of
                :class:`ResumableSampler`'s numbers.

        Returns:
            dict: Output of the pipeline; ``unreadable`` of its ``data_samples`` lists the files
            that it replaces.

        Raises:
            DataError: Neither this image nor ``max_refetch`` others can be read.
        """
        init_worker()
        if idx >= len(self):
            with seeded(idx):
                return self.prepare_data(idx % len(self))
        unreadable: List[Tuple[str, str]] = []
        for candidate in self._candidates(idx):
            try:
                results = self.pipeline(self._load(self.get_data_info(candidate)))
            except UnreadableImageError as e:
                unreadable.append((e.path, e.reason))
                continue
            # Set here and not through the packing transform's meta_keys, which may lack it.
            sample = results.get('data_samples') if isinstance(results, dict) else None
            if isinstance(sample, BaseDataElement):
                sample.set_metainfo(dict(unreadable=unreadable))
            return results
        path, reason = unreadable[0]
        raise DataError(
            f'cannot read image {path} ({reason}), nor any of {len(unreadable) - 1} others tried, '
            f'of {len(self)} from {self.source}'
        )

    def read(self, idx: int) -> Tuple[str, bytes]:
        """Return the idx-th image's file.

        Args:
            idx (int): The index of the image.

        Returns:
            tuple[str, bytes]: Path and content.

        Raises:
            UnreadableImageError: It cannot be read.
        """
        info = self._load(self.get_data_info(idx))
        path = info['img_path']
        try:
            return path, info['img_bytes'] if 'img_bytes' in info else get(path)
        except OSError as e:
            raise UnreadableImageError(path, e.strerror or str(e)) from None

    def _load(self, info: dict) -> dict:
        """Add ``img_bytes`` if the image is stored in a zip or an LMDB."""
        stored = info.pop('stored', None)
        if stored is not None:
            number, location = stored
            storage = self._storages[number]
            name = info['img_path'][len(storage.path) + 1 :]
            info['img_bytes'] = storage.read(name, location)
        return info

    def _candidates(self, idx: int) -> Iterator[int]:
        """Yield ``idx``, then distinct others to try, which depend on ``idx`` alone.

        They are from all over the data set: broken files come in runs.
        """
        yield idx
        number = len(self)
        others = random.Random(idx).sample(range(number), min(number, self.max_refetch + 1))
        yield from [other for other in others if other != idx % number][: self.max_refetch]


# Paths in a list: as they are; below the folder though they begin with a slash, as in Places365;
# of Windows.
_SPELLINGS: Tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: name.lstrip('/'),
    lambda name: name.replace('\\', '/'),
)

# What zips have beside the images that were put into them, and what runs are written to.
_ZIP_OWN = ('__MACOSX', 'work_dirs')
# What `mmdense show` writes beside its page.
_PICTURES = re.compile(
    r'(features|similarity|groups|regions|search|copies|patches|objects|correspondence_\d+)\.png'
)
# Image formats that are not read.
_UNREAD = frozenset(
    ('.jp2', '.j2k', '.jpx', '.jxl', '.tga', '.ico', '.psd', '.svg', '.exr', '.hdr')
    + ('.dng', '.cr2', '.cr3', '.nef', '.arw', '.rw2', '.orf', '.raf', '.raw')  # of cameras
    + ('.dcm', '.dicom', '.nii', '.fits', '.fit', '.nd2', '.czi', '.svs', '.npy', '.npz', '.mat')
)


def _is_run(folder: str, folders: List[str], names: List[str]) -> bool:
    """Return whether mmdense or MMEngine wrote a folder."""
    return (
        osp.basename(folder) == 'work_dirs' or 'last_checkpoint' in names or 'vis_data' in folders
    )


def _own_pictures(folder: str, names: List[str]) -> List[str]:
    """Return the names of the pictures of a page of `mmdense show` in a folder."""
    if 'index.html' not in names:
        return []
    try:
        with open(osp.join(folder, 'index.html'), encoding='utf-8', errors='replace') as f:
            if 'content="mmdense' not in f.read(1000):
                return []
    except OSError:
        return []
    return [name for name in names if _PICTURES.fullmatch(name)]


def _patterns(exclude: Sequence[str]) -> Tuple[str, ...]:
    if isinstance(exclude, str) or not all(isinstance(one, str) and one for one in exclude):
        raise TypeError(f"exclude must be a list of patterns such as ['masks'], got {exclude!r}")
    return tuple(exclude)


def _match_any(patterns: Sequence[str]) -> Optional[Callable[[str], Any]]:
    """Return a function that tells whether a path fits one of some patterns, None without one."""
    if not patterns:
        return None
    cleaned = (one.strip('/').replace('**/', '*').replace('/**', '/*') for one in patterns)
    return re.compile('|'.join(fnmatch.translate(one) for one in cleaned)).match


def _identity(folder: str) -> Tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _path(name: str, value: _PathLike) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f'{name} must be a path, got {value!r}')
    return os.fspath(value)


def _folders(data_prefix: Union[_PathLike, Sequence[_PathLike], dict]) -> Union[str, List[str]]:
    """Return the folder or folders of ``data_prefix``; MMEngine would join any key and any type."""
    if isinstance(data_prefix, dict):
        if set(data_prefix) != {'img_path'}:
            raise TypeError(
                'data_prefix must be a folder or dict(img_path=folder), got the keys '
                f'{sorted(map(str, data_prefix))}'
            )
        data_prefix = data_prefix['img_path']
    if isinstance(data_prefix, (list, tuple)):
        return [_path('data_prefix', folder) for folder in data_prefix]
    return _path('data_prefix', data_prefix)


def _as_list(folders: Union[str, List[str]]) -> List[str]:
    return folders if isinstance(folders, list) else [folders]


def _extensions(extensions: Sequence[str]) -> Tuple[str, ...]:
    if (
        isinstance(extensions, str)
        or not isinstance(extensions, Sequence)
        or not extensions
        or not all(isinstance(e, str) and len(e) > 1 and e.startswith('.') for e in extensions)
    ):
        raise TypeError(f"extensions must be like ('.jpg', '.png'), got {extensions!r}")
    return tuple(e.lower() for e in extensions)
