# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmengine.logging import MessageHub


def run_progress(name: str) -> int:
    """Return the iteration or the epoch of the run, from 0; 0 outside a run.

    Args:
        name (str): 'iter' or 'epoch'.
    """
    return MessageHub.get_current_instance().get_info(name) or 0
