# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""List recipes by name, build their algorithms, download the weights that were published."""

from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Union

from mmdense.utils import model_index
from mmdense.utils.errors import InputError
from mmdense.utils.log_level import log_level


class Weights(NamedTuple):
    """Describe a published file.

    Attributes:
        url (str): Where it is.
        sha256 (str or None): Of the file, where the name does not carry it.
        by_authors (bool): In the algorithm's authors' own format, which
            mmdense reads and ``mmengine.hub`` does not.
        license (str): Its license, as its source states it.
    """

    url: str
    sha256: Optional[str]
    by_authors: bool
    license: str = ''

    @property
    def restriction(self) -> str:
        """Return the license in words where it forbids commercial use, else ''."""
        forbids = '-NC' in self.license
        return f'{self.license}: not for commercial use' if forbids else ''


def list_models(pattern: Optional[str] = None) -> List[str]:
    """Return the sorted names of all recipes.

    Args:
        pattern (str, optional): Only those with this in their name or short
            form; ``*``, ``?`` and ``[…]`` as in the shell.
    """
    return sorted(
        entry['Name']
        for entry in model_index.entries()
        if any(fnmatchcase(name, f'*{pattern or ""}*') for name in model_index.entry_names(entry))
    )


def short_names() -> Dict[str, str]:
    """Return the short forms, by the names of :func:`list_models`; most recipes have none."""
    return model_index.short_names()


def find_weights(name: str) -> Optional[Weights]:
    """Return the weights that were published for a recipe; None without any.

    Raises:
        InputError: For an unknown name, with the nearest.
    """
    entry = _find_entry(name)
    if 'Weights' in entry:
        return Weights(entry['Weights'], entry.get('SHA256'), False, 'Apache-2.0')  # mmpretrain's
    if 'Authors Weights' in entry:
        license = entry.get('Authors License', '')
        return Weights(entry['Authors Weights'], entry.get('SHA256'), True, license)
    return None


def find_restriction(path: str, license: str = '') -> str:
    """Return the license of a published file that forbids commercial use.

    Args:
        path (str): Path or URL. A file is known to be published by its name: the one that it was
            published under, or the one that :func:`download` gives it.
        license (str): License of the weights that were released in the file's format; for a file
            of another name. Defaults to ''.

    Returns:
        str: The license in words; '' without one.
    """
    name = path.replace('\\', '/').rsplit('/', 1)[-1]
    for entry in model_index.entries():
        if 'Authors Weights' in entry:
            known = entry.get('Authors License', '')
            weights = Weights(entry['Authors Weights'], None, True, known)
            if name in (weights.url.rsplit('/', 1)[-1], _authors_file(entry)):
                return weights.restriction
    restriction = Weights('', None, True, license).restriction
    return f'{restriction}, if the authors released these weights' if restriction else ''


def _authors_file(entry: dict) -> str:
    """Return the name that a downloaded file of the authors gets: theirs say little, some of them
    nothing ('download')."""
    return f'{entry["Name"]}.pth'


def get_model(name: str, pretrained: Union[bool, str] = False, **overrides):
    """Build a recipe's algorithm, in eval mode, as mmpretrain's ``get_model`` does.

    Args:
        name (str): One of :func:`list_models`, or its short form
            (``densecl_r50_coco``).
        pretrained (bool or str): True downloads the published weights. A path
            or URL takes those: a checkpoint of the complete algorithm fills all
            of it, strictly; one of a backbone fills the backbone, strictly,
            and the log says that the rest is untrained. Defaults to False:
            random weights.
        overrides: Go into the config's ``model``:
            ``backbone=dict(depth=18), queue_len=4096``.

    Returns:
        SelfSupervisor: The algorithm. ``get_product()`` is its backbone.

    Raises:
        InputError: For an unknown name, or one without published weights.
        CheckpointError: When the weights cannot be had or do not fit.
    """
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    from mmdense.registry import MODELS

    entry = _find_entry(name)
    source = _download(name) if pretrained is True else pretrained
    config = Config.fromfile(model_index.config_path(entry['Name']))
    config.merge_from_dict(dict(model=overrides))
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(config.model)
    with log_level('WARNING'):
        model.init_weights()
    if source:
        _fill_model(model, str(source))
    return model.eval()


def download(name: str, folder: str = '.') -> str:
    """Download the weights that were published for a recipe, and check them.

    Args:
        name (str): As in :func:`get_model`.
        folder (str): Where to. Defaults to the current one.

    Returns:
        str: The path of the file.

    Raises:
        InputError: For an unknown name, or one without published weights.
        CheckpointError: When there is no file, or another than was published.
    """
    from mmdense.checkpoints.io import read_checkpoint
    from mmdense.utils.download import download, hash_in_name

    weights = _required_weights(name)
    file = weights.url.rsplit('/', 1)[1]
    if weights.by_authors:
        file = _authors_file(_find_entry(name))
    path = str(Path(folder) / file)
    known = weights.sha256 or hash_in_name(weights.url)
    check = None if known else lambda file: read_checkpoint(file, name=weights.url)
    download(weights.url, path, weights.sha256, check)
    return path


def _download(name: str) -> str:
    """Download into the cache, and return the URL, whose file is then found there."""
    from mmdense.checkpoints.io import cached_path
    from mmdense.utils.download import download

    weights = _required_weights(name)
    download(weights.url, cached_path(weights.url), weights.sha256)
    return weights.url


def _required_weights(name: str) -> Weights:
    weights = find_weights(name)
    if weights is None:
        algorithm = _find_entry(name)['In Collection']
        having = [
            entry['Name']
            for entry in model_index.entries()
            if entry['In Collection'] == algorithm and find_weights(entry['Name'])
        ]
        others = f'; there are some for {", ".join(having)}' if having else ''
        raise InputError(
            f'no weights were published for {name}{others}. Train it, or give the path of a '
            'checkpoint'
        )
    return weights


def _fill_model(model, source: str) -> None:
    """Fill an algorithm, or its backbones alone where the file has no more."""
    from mmengine.logging import print_log
    from mmengine.runner import CheckpointLoader

    from mmdense.checkpoints import SelfSupPretrained, recognise

    checkpoint = CheckpointLoader.load_checkpoint(source, 'cpu', logger='silent')
    found = recognise(checkpoint, name=source)
    kind = type(model).__name__
    if found.algorithm is not None and found.algorithm_type in ('', kind):
        SelfSupPretrained(source)(model)
        return
    for backbone in {model.backbone, model.get_product()}:
        backbone.init_cfg = None  # already applied
        SelfSupPretrained(source)(backbone)
    print_log(f'{source} gives {kind} its backbone alone: neck and head are untrained', 'current')


def _find_entry(name: str) -> dict:
    """Find the entry of a recipe by its name or short form."""
    known: Dict[str, dict] = {}
    for entry in model_index.entries():
        known.update(dict.fromkeys(model_index.entry_names(entry), entry))
    if name not in known:
        near = ', '.join(get_close_matches(str(name), known, n=3, cutoff=0.3))
        nearest = f'; the nearest: {near}' if near else ''
        raise InputError(
            f'there is no recipe {name!r}{nearest}. '
            '`mmdense list` and mmdense.list_models() name all'
        )
    return known[name]
