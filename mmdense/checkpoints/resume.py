# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find the checkpoint that an interrupted run continues from."""

import logging
import os
import zipfile
from contextlib import suppress
from typing import Optional

from mmengine.logging import print_log


def latest_complete_checkpoint(work_dir: str) -> Optional[str]:
    """Return the newest checkpoint in a work directory that is not torn.

    This is the one that ``last_checkpoint`` names, or where it is missing or
    torn (a disk lost a write that it had confirmed, another program wrote in
    place) the newest other ``epoch_*.pth`` or ``iter_*.pth``, by the time of
    writing.

    Args:
        work_dir (str): Folder that a run wrote to.

    Returns:
        str, optional: Its path; None where there is none.
    """
    candidates = []
    with suppress(OSError), open(os.path.join(work_dir, 'last_checkpoint')) as f:
        candidates.append(f.read().strip())
    with suppress(OSError):
        names = [n for n in os.listdir(work_dir) if n.startswith(('epoch_', 'iter_'))]
        paths = [os.path.join(work_dir, n) for n in names if n.endswith('.pth')]
        candidates += sorted(paths, key=os.path.getmtime, reverse=True)
    for path in candidates:
        if '://' in path:  # on another backend: its reader finds out whether it is complete
            return path
        problem = _find_fault(path)
        if problem is None:
            return path
        print_log(f'Not resumed from {path}: {problem}.', logger='current', level=logging.WARNING)
    return None


def _find_fault(path: str) -> Optional[str]:
    """Describe the fault of a file, as far as its check sums tell; None without any."""
    if not os.path.isfile(path):
        return 'there is no such file'
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as e:
        return f'it is torn ({e})'
    return None if damaged is None else f'{damaged} in it is damaged'
