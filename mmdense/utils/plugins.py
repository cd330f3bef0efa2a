# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find and import algorithms of other packages, without PyTorch and MMEngine.

A package names them in the entry-point group ``mmdense.algorithms``; a module without a package
is named by ``--custom-imports``. docs/add_an_algorithm.md has an example of both.
"""

import logging
from importlib import import_module
from importlib.metadata import distributions
from operator import attrgetter
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from .errors import InputError
from .model_index import methods

GROUP = 'mmdense.algorithms'


class Plugin(NamedTuple):
    """Describe an entry point of the group.

    Attributes:
        method (str): Name of the entry point, which is that of the method.
        module (str): Module of the class.
        attribute (str): Name of the class in that module.
        distribution (str): Name of the distribution that declares it.
    """

    method: str
    module: str
    attribute: str
    distribution: str


def find_plugins() -> Dict[str, Plugin]:
    """Return the entry points of all installed distributions by method, sorted by name."""
    found: Dict[str, Plugin] = {}
    for dist in distributions():
        for point in dist.entry_points:
            if point.group == GROUP and point.name not in found:  # the first on sys.path counts
                module, _, attribute = point.value.partition('[')[0].partition(':')
                found[point.name] = Plugin(
                    point.name, module.strip(), attribute.strip(), dist.metadata['Name']
                )
    return {name: found[name] for name in sorted(found)}


def import_plugins() -> None:
    """Import the modules of :func:`find_plugins`, so that their classes are in the registries.

    A module that cannot be imported gives one warning.
    """
    for plugin in find_plugins().values():
        try:
            import_module(plugin.module)
        except Exception as error:  # other people's code
            from mmengine.logging import print_log  # imports PyTorch

            text = f'{plugin.distribution}: there is no method {plugin.method}, for '
            text += f'{plugin.module} cannot be imported: {_one_line(error)}'
            print_log(text, 'current', logging.WARNING)


def load_plugin(plugin: Plugin) -> Any:
    """Return the class that an entry point names.

    Raises:
        InputError: When it cannot be imported.
    """
    try:
        return attrgetter(plugin.attribute)(import_module(plugin.module))
    except Exception as error:  # other people's code
        raise InputError(
            f'method {plugin.method} of {plugin.distribution}: '
            f'{plugin.module}:{plugin.attribute} cannot be imported: {_one_line(error)}'
        ) from None


def import_modules(modules: Iterable[str]) -> List[str]:
    """Import the modules that ``--custom-imports`` names.

    Returns:
        list[str]: The modules.

    Raises:
        InputError: When one cannot be imported.
    """
    modules = list(modules)
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # other people's code
            raise InputError(
                f'--custom-imports {module}: {_one_line(error)}; the folder of the module must be '
                'on PYTHONPATH'
            ) from None
    return modules


def unknown_method(name: str, others: Optional[Iterable[str]] = None) -> InputError:
    """Return the error that lists the methods.

    Args:
        name (str): Name that is unknown.
        others (Iterable[str], optional): Methods next to those of the model index. Defaults to
            :func:`find_plugins`.
    """
    names = [*methods(), *(find_plugins() if others is None else others)]
    return InputError(f'method must be one of {", ".join(dict.fromkeys(names))}, got {name!r}')


def _one_line(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'
