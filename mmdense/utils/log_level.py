# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import logging
import re
import warnings
from contextlib import contextmanager
from typing import Iterator

# How MMEngine's remarks on its own file client begin, which it builds at every save and never
# uses: nobody who reads a log can do anything about them.
FILE_CLIENT_REMARK = re.compile(r'"(FileClient|HardDiskBackend)" ')

# mmpretrain imports mmdet, where that is installed, and mmdet remarks on what it cannot do
# without mmcv's compiled operators. Pretraining needs none of it.
WARNING_OF_OPERATORS = 'Fail to import ``MultiScaleDeformableAttention``'
REMARK_OF_OPERATORS = 'Line NMS is not compiled'


def suppress_third_party_warnings(every: bool = False) -> None:
    """Keeps from the user what packages under mmdense say, when they are imported, of parts that
    are not used. It is for programs, before they import anything else of mmdense.

    Args:
        every (bool): All warnings and all that MMEngine logs below an error, for
            good; by default the remarks on mmcv's operators.
    """
    from mmengine.logging import MMLogger  # imports PyTorch

    logger = MMLogger.get_current_instance()
    warnings.filterwarnings('ignore', message='' if every else WARNING_OF_OPERATORS)
    if every:
        logger.setLevel('ERROR')
    logger.addFilter(_is_no_remark)  # the same one twice is one


def _is_no_remark(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(REMARK_OF_OPERATORS)


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
