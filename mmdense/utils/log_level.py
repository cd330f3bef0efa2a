# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import logging
import re
import warnings
from contextlib import contextmanager
from typing import Iterator

# The start of MMEngine's messages on its own file client, which it builds at every save and never
# uses: a reader of the log cannot change anything about them.
FILE_CLIENT_MESSAGE = re.compile(r'"(FileClient|HardDiskBackend)" ')
# The end of those on a parameter that the optimizer does not get.
FROZEN_MESSAGE = 'is skipped since its requires_grad=False'

# mmpretrain imports mmdet, if installed, and mmdet warns of missing compiled operators of mmcv.
# Pretraining needs none of them.
WARNING_OF_OPERATORS = 'Fail to import ``MultiScaleDeformableAttention``'
MESSAGE_OF_OPERATORS = 'Line NMS is not compiled'


def suppress_third_party_warnings(every: bool = False) -> None:
    """Hide warnings of the packages below mmdense about parts that are not used.

    A program calls this before it imports another module of mmdense: the warnings come at import.

    Args:
        every (bool): Whether to hide all warnings, and all messages of MMEngine below an error,
            until the program ends. Defaults to False, the messages on mmcv's operators.
    """
    from mmengine.logging import MMLogger  # imports PyTorch

    logger = MMLogger.get_current_instance()
    warnings.filterwarnings('ignore', message='' if every else WARNING_OF_OPERATORS)
    if every:
        logger.setLevel('ERROR')
    logger.addFilter(_is_not_on_operators)  # adding it twice has no effect


def _is_not_on_operators(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(MESSAGE_OF_OPERATORS)


@contextmanager
def log_level(level: str) -> Iterator[None]:
    """Silence MMEngine's current logger below a level, for a block.

    Without a run's log file it would print a list of all tensors that are initialized.

    Args:
        level (str): The level, such as 'WARNING'.
    """
    from mmengine.logging import MMLogger  # imports PyTorch

    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
