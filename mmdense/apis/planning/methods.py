# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find a method by name: one of mmdense, or an algorithm of another package with its recipe."""

import inspect
import os.path as osp
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmdense.models.selfsup import MomentumSelfSupervisor, SelfSupervisor, registered_algorithms
from mmdense.registry import MODELS
from mmdense.utils import model_index
from mmdense.utils.errors import InputError
from mmdense.utils.mmengine_patches import is_config_package
from mmdense.utils.plugins import find_plugins, import_modules, load_plugin, unknown_method

from .backbone_names import is_vit
from .config_text import base_line, literal
from .survey import SMALL

METHODS = tuple(model_index.methods())

Bases = Union[str, List[str]]


class Method(NamedTuple):
    """Describe a method.

    Attributes:
        name (str): Name for ``--method``.
        recipe (Config): Recipe that settings start from.
        kind (type): Class of the algorithm.
        bases (tuple): What the configs of runs inherit: for few images, and for many.
        changes (dict): What differs from that in the recipe.
        imports (tuple[str]): Modules that the configs of runs import.
    """

    name: str
    recipe: Config
    kind: type
    bases: Tuple[Bases, Bases]
    changes: Dict[str, Any] = {}
    imports: Tuple[str, ...] = ()

    def base(self, images: int) -> Bases:
        """Return what the config of a run with so many images inherits."""
        return self.bases[images > SMALL]

    def read_base(self, images: int) -> Config:
        """Read :meth:`base`, with :attr:`changes`."""
        return self.recipe if self.name not in METHODS else read_config(self.base(images))


def read_recipe(method: str) -> Config:
    """Read the recipe that a method's settings start from.

    Raises:
        InputError: When there is no such method.
    """
    return find_method(method).recipe


def read_config(name: str) -> Config:
    """Read one of mmdense's configs, by its path below ``configs``."""
    return Config.fromfile(model_index.config_path(name))


def base_config(method: str, images: int) -> Bases:
    """Return what a run of so many images inherits: of mmdense's methods a path below
    ``configs``."""
    if method not in METHODS:
        return find_method(method).base(images)
    recipe, small = model_index.methods()[method]
    return small if images <= SMALL else recipe


def find_method(
    name: str, custom_imports: Sequence[str] = (), backbone: Optional[str] = None
) -> Method:
    """Find a method.

    Args:
        name (str): Name in the model index, name of an entry point of ``mmdense.algorithms``, or
            name of a class with a ``recipe``, in lower case.
        custom_imports (Sequence[str]): Modules to import first.
        backbone (str, optional): Name of the backbone that is asked for. For a vision transformer a
            method of the model index may have another recipe.

    Raises:
        InputError: When there is no such method, or its recipe cannot be used.
    """
    imports = tuple(import_modules(custom_imports))
    known = model_index.methods(vit=is_vit(backbone or ''))
    if name in known:
        recipe = read_config(known[name][0])
        bases = known[name][1], known[name][0]
        return Method(name, recipe, find_algorithm(recipe), bases, imports=imports)
    plugins = find_plugins()
    labelled = {k.__name__.lower(): k for k in registered_algorithms() if k.needs_labels}
    if name in labelled:
        raise InputError(
            f'method {name}: {labelled[name].__name__} needs labelled boxes, not a folder of '
            f'images: train it by a config, such as those of configs/{name}'
        )
    classes = {k.__name__.lower(): k for k in registered_algorithms() if k.recipe is not None}
    if name in plugins:
        kind = load_plugin(plugins[name])
    elif name in classes:
        kind = classes[name]
    else:
        raise unknown_method(name, [*plugins, *classes])
    if not (isinstance(kind, type) and issubclass(kind, SelfSupervisor)):
        raise InputError(f'method {name}: {kind!r} is no SelfSupervisor')
    return _read_outside_method(name, kind, imports)


def find_algorithm(recipe: Config) -> type:
    """Return the class whose rules apply to a recipe.

    It is the class of the recipe's algorithm. A class without mmdense's contract, such as
    mmpretrain's, has no rules of its own: those for key queues apply, and the result is
    :class:`~mmdense.models.selfsup.MomentumSelfSupervisor`.

    Raises:
        InputError: When no such class is registered.
    """
    kind = recipe.model.type
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope('mmdense'):
            kind = MODELS.get(kind)
    if not isinstance(kind, type):
        raise InputError(f'{recipe.model.type} is no algorithm that is registered in MODELS')
    return kind if issubclass(kind, SelfSupervisor) else MomentumSelfSupervisor


def _read_outside_method(name: str, kind: type, imports: Tuple[str, ...]) -> Method:
    """Read the recipe that a class declares."""
    owner = next(cls for cls in kind.__mro__ if 'recipe' in vars(cls))
    if owner.recipe is None:
        raise InputError(f'method {name}: {kind.__name__} declares no recipe')
    changes = dict(owner.recipe) if isinstance(owner.recipe, dict) else {}
    base = changes.pop('_base_', None) if changes else owner.recipe
    if not base:
        raise InputError(f'method {name}: the recipe of {kind.__name__} has no _base_')
    folder = osp.dirname(inspect.getfile(owner))
    base = (
        _locate_base(base, folder)
        if isinstance(base, str)
        else [_locate_base(b, folder) for b in base]
    )
    if 'train_pipeline' in changes:  # a config names it twice
        changes['train_dataloader'] = loader = dict(changes.get('train_dataloader', {}))
        loader['dataset'] = dict(loader.get('dataset', {}), pipeline=changes['train_pipeline'])
    lines = [base_line(base), *(f'{key} = {literal(value)}' for key, value in changes.items())]
    recipe = Config.fromstring('\n'.join(lines), '.py')
    for key in ('model', 'train_pipeline', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        if key not in recipe:
            raise InputError(f'method {name}: the recipe of {kind.__name__} has no {key}')
    if find_algorithm(recipe) is not kind:
        raise InputError(
            f'method {name}: the recipe of {kind.__name__} builds {recipe.model.type} instead'
        )
    asked = recipe.get('custom_imports', {}).get('imports', [])
    asked = [asked] if isinstance(asked, str) else asked
    changes.pop('custom_imports', None)
    return Method(
        name,
        recipe,
        kind,
        (base, base),
        changes,
        tuple(dict.fromkeys([*asked, *imports, kind.__module__])),
    )


def _locate_base(base: str, folder: str) -> str:
    """Return a path, or a name that MMEngine finds in any process."""
    package, _, path = base.partition('::')
    if not path:
        return osp.normpath(osp.join(folder, base))
    if is_config_package(package):
        return base
    spec = find_spec(package)
    if spec is not None and spec.origin is not None:
        root = Path(spec.origin).parent
        # as OpenMMLab installs them, as other packages do, and in a checkout
        for configs in (root / '.mim' / 'configs', root / 'configs', root.parent / 'configs'):
            if (configs / path).is_file():
                return str(configs / path)
    raise InputError(f'{base}: there is no package {package} with a config {path}')
