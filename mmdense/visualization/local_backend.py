# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import logging

from mmengine.logging import print_log
from mmengine.visualization import LocalVisBackend as _LocalVisBackend

from mmdense.registry import VISBACKENDS


@VISBACKENDS.register_module()
class LocalVisBackend(_LocalVisBackend):
    """Write scalars as MMEngine's backend does, also when the disk is full.

    A line that cannot be written to ``scalars.json`` is left out, and the log says so once.
    """

    _complete = True

    def _dump(self, value_dict: dict, file_path: str, file_format: str) -> None:
        try:
            super()._dump(value_dict, file_path, file_format)
        except OSError as e:
            if self._complete:
                print_log(
                    f'cannot write to {file_path}: {e.strerror or e}; training continues, and '
                    'lines are left out of it',
                    logger='current',
                    level=logging.ERROR,
                )
            self._complete = False
