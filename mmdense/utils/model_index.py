# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Read the model index, and find configs and tools, without PyTorch and MMEngine.

A package of OpenMMLab carries its configs, tools and index in its folder ``.mim``; in a checkout
of one they can also lie next to the package.
"""

from functools import lru_cache
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import yaml

from .errors import InputError

PACKAGE = Path(__file__).parents[1]
_MIM = PACKAGE / '.mim'


def entries() -> Tuple[dict, ...]:
    """Return the ``Models`` of all metafiles of ``model-index.yml``, in its order."""
    return tuple(entry for content in _read_metafiles() for entry in content['Models'])


def collections() -> Tuple[dict, ...]:
    """Return the ``Collections`` of all metafiles, one an algorithm."""
    return tuple(entry for content in _read_metafiles() for entry in content['Collections'])


def methods(vit: bool = False) -> Dict[str, Tuple[str, str]]:
    """Return the methods of `mmdense pretrain`: for each the path below ``configs`` of its recipe,
    and that of its config for few images, which is the recipe where there is none.

    Args:
        vit (bool): Whether the backbone is a vision transformer: a method whose collection has a
            recipe for it, ``ViT``, gets that one. Defaults to False.
    """
    found = {}
    for entry in collections():
        if 'Method' in entry:
            configs = entry.get('ViT', entry) if vit else entry
            found[entry['Method']] = configs['Recipe'], configs.get('Small', configs['Recipe'])
    return found


def supervised_methods() -> List[str]:
    """Return the names of the algorithms that need labels: no method of `mmdense pretrain`."""
    return [entry['Name'].lower() for entry in collections() if 'Method' not in entry]


def entry_names(entry: dict) -> List[str]:
    """Return the name of an entry, and then its short forms."""
    return [entry['Name'], *entry.get('Alias', [])]


def short_names() -> Dict[str, str]:
    """Return the first short form of each entry that has one, by the entry's name."""
    return {entry['Name']: entry['Alias'][0] for entry in entries() if entry.get('Alias')}


def config_path(name: str) -> str:
    """Return the path of one of mmdense's own configs.

    Args:
        name (str): Path below ``configs``, as ``densecl/densecl_r50_coco.py``, or the name or a
            short form of an entry of the model index.

    Raises:
        InputError: There is no such config.
    """
    for entry in entries():
        if name in entry_names(entry):
            return str(_MIM / entry['Config'])
    path = _MIM / 'configs' / name
    if not path.is_file():
        raise InputError(f'there is no config {name} in {_MIM / "configs"}: reinstall mmdense')
    return str(path)


def find_configs(pattern: str) -> List[str]:
    """Return the sorted paths of mmdense's configs that a pattern such as ``transfer/*/*.py``
    matches."""
    return sorted(map(str, (_MIM / 'configs').glob(pattern)))


def tool_path(name: str) -> str:
    """Return the path of one of mmdense's own tools, as ``train.py``."""
    return str(_MIM / 'tools' / name)


def find_package_folder(package: Path, name: str) -> Optional[Path]:
    """Find the configs or tools of any package of OpenMMLab.

    Args:
        package (Path): The folder of the package.
        name (str): ``configs`` or ``tools``.

    Returns:
        Path, optional: Their folder; None where there is none.
    """
    folders = (package / '.mim' / name, package.parent / name)
    return next((folder for folder in folders if folder.is_dir()), None)


@lru_cache(maxsize=None)
def _read_metafiles() -> Tuple[dict, ...]:
    return tuple(_read_yaml(_MIM / name) for name in _read_yaml(_MIM / 'model-index.yml')['Import'])


def _read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding='utf-8'))
