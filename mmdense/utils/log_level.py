# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re
from contextlib import contextmanager
from typing import Iterator

# How MMEngine's remarks on its own file client begin, which it builds at every save and never
# uses: nobody who reads a log can do anything about them.
FILE_CLIENT_REMARK = re.compile(r'"(FileClient|HardDiskBackend)" ')


@contextmanager
def log_level(level: str) -> Iterator[None]:
    """Within it MMEngine's current logger is silent below a level. It would list
    every tensor that is initialised where no run's log file takes the list.

    Args:
        level (str): 'WARNING', say.
    """
    from mmengine.logging import MMLogger  # imports PyTorch

    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
