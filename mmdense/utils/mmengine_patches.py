# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""All places where mmdense changes what is MMEngine's own, or asks for what it keeps private.

Each function is handed what it installs and imports nothing of mmdense. Nothing is changed when
this module is imported, and MMEngine is imported by the functions alone: ``import mmdense`` imports
no PyTorch.
"""

from types import ModuleType
from typing import Any, Callable, Dict, Optional


def map_config_packages(packages: Dict[str, str], folders: Dict[str, str]) -> None:
    """Tell MMEngine in which package the configs of ``_base_ = 'module::…'`` are, and in which
    folder those of ``with read_base(): from module.configs…``.

    MMEngine's table has the classic names of OpenMMLab's distributions alone, and pip-installs one
    that it does not find. For an editable install the classic MMEngine looks for ``read_base`` in
    the folder of the distribution, which has no module in it.

    Args:
        packages (dict[str, str]): Module → distribution, or a module that is imported instead.
        folders (dict[str, str]): Module → its folder.
    """
    from mmengine.config import config
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE.update(packages)
    find = config.get_installed_path
    config.get_installed_path = lambda package: folders.get(package) or find(package)


def is_config_package(module: str) -> bool:
    """Return whether MMEngine finds the configs of ``module::…`` in any process."""
    from mmengine.config.utils import MODULE2PACKAGE

    return module in MODULE2PACKAGE


def replace_checkpoint_loaders(load: Callable, load_from_http: Callable) -> None:
    """Put restricted loaders in the place of those that MMEngine's module looks up by name.

    Public schemes are registered in ``checkpoints/io.py``. The remaining loaders
    (``torchvision://``, ``openmmlab://``, ``mmcls://``, ``pavi://``) end in ``load_from_http`` or
    in ``torch.load``, and look up both names in their module. ``torch`` itself stays as it is.

    Args:
        load (Callable): Takes a file and ``map_location``, as ``torch.load``.
        load_from_http (Callable): Takes the arguments of MMEngine's function of this name.
    """
    import torch
    from mmengine.runner import checkpoint

    class RestrictedTorch(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def load(f: Any, map_location: Any = None, **kwargs: Any) -> Any:
            return load(f, map_location)

    checkpoint.torch = RestrictedTorch('torch')
    checkpoint.load_from_http = load_from_http


def find_checkpoint_loader(path: str) -> Callable:
    """Return the function that MMEngine loads a path with."""
    from mmengine.runner import CheckpointLoader

    return CheckpointLoader._get_checkpoint_loader(path)


def mark_initialized(module: Any, keep_weights: Callable) -> None:
    """Keep ``init_weights()`` of the parts of a module from overwriting their weights.

    MMEngine applies every initializer except 'Pretrained' before the children's own.

    Args:
        module (nn.Module): The module, with its weights filled.
        keep_weights (Callable): Takes the place of the method in parts that know no ``is_init``,
            such as mmcv's ConvModule, which starts again at every call.
    """
    for part in module.modules():
        if hasattr(part, '_is_init'):
            part._is_init = True
        elif hasattr(part, 'init_weights'):
            part.init_weights = keep_weights


def initialize_weights(runner: Any) -> None:
    """Initialize the runner's model, as ``Runner.train()`` does before the first step."""
    runner._init_model_weights()


def is_resuming(runner: Any) -> bool:
    """Return whether a runner continues a run, and does not start another from a checkpoint."""
    return runner._resume


def find_resumed_file(runner: Any) -> Optional[str]:
    """Return the checkpoint that a runner continues from, or None if it continues none."""
    return runner._load_from if runner._resume else None


def number_batches_from(loop: Any, first: int) -> None:
    """Number the batches of a loop's next epoch from ``first``; those of later epochs from 0.

    MMEngine numbers the batches that it gets. Hooks and the log take the number for the place in
    the epoch.

    Args:
        loop (EpochBasedTrainLoop): The loop, whose data loader begins at batch ``first``.
        first (int): Number of the first batch, from 0.
    """
    run_iter, run_epoch = loop.run_iter, loop.run_epoch

    def run_numbered_epoch() -> None:
        loop.run_iter = lambda idx, data_batch: run_iter(idx + first, data_batch)
        del loop.run_epoch
        try:
            run_epoch()
        finally:
            del loop.run_iter

    loop.run_epoch = run_numbered_epoch


def remove_hooks(runner: Any, kind: type) -> None:
    """Remove a runner's hooks of a class; MMEngine can only add hooks.

    Args:
        runner (Runner): The runner, before training.
        kind (type): Class of the hooks, subclasses included.
    """
    runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, kind)]


def set_config_file(cfg: Any, path: str) -> None:
    """Change the file that a config says it comes from.

    Args:
        cfg (Config): The config; its own ``__setattr__`` would add a key.
        path (str): The file.
    """
    object.__setattr__(cfg, '_filename', path)


def format_configs_once() -> None:
    """Format the text of a config once: MMEngine formats it four times a run.

    yapf's function depends on its arguments alone; it keeps its last results from now on.
    """
    from mmengine.config import config
    from yapf.yapflib import yapf_api

    format_code, known = yapf_api.FormatCode, {}
    if hasattr(format_code, 'known'):
        return

    def format_once(text: str, *args: Any, **kwargs: Any) -> Any:
        key = text, repr((args, kwargs))
        if key not in known:
            while len(known) >= 4:
                known.pop(next(iter(known)))
            known[key] = format_code(text, *args, **kwargs)
        return known[key]

    format_once.known = known
    yapf_api.FormatCode = format_once
    if hasattr(config, 'FormatCode'):  # the classic line imports the name with its module
        config.FormatCode = format_once


def end_workers(loader: Any) -> None:
    """End the persistent workers of a data loader (PyTorch has no public way).

    Args:
        loader (DataLoader): The loader; none of its iterators is in use.
    """
    loader._iterator = None
