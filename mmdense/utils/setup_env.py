# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import datetime
import importlib


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register everything of mmdense; ``mmengine.hub.get_model`` calls this by its path.

    Args:
        init_default_scope (bool): Also make ``mmdense`` the default scope,
            whatever it was before. Defaults to True.
    """
    from mmengine.logging import print_log  # imports PyTorch, which ``import mmdense`` must not
    from mmengine.registry import DefaultScope

    for name in ('checkpoints', 'datasets', 'engine', 'evaluation', 'models', 'visualization'):
        importlib.import_module(f'mmdense.{name}')

    if not init_default_scope:
        return
    current = DefaultScope.get_current_instance()
    if current is None:
        DefaultScope.get_instance('mmdense', scope_name='mmdense')
    elif current.scope_name != 'mmdense':
        print_log(f'The default scope was "{current.scope_name}" and is now "mmdense".', 'current')
        # A name can be taken once only, hence one with the time.
        DefaultScope.get_instance(f'mmdense-{datetime.datetime.now()}', scope_name='mmdense')
