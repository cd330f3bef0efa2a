# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Which checkpoint an interrupted run goes on from."""

import logging
import os
import zipfile
from contextlib import suppress
from typing import Optional

from mmengine.logging import print_log


def latest_whole_checkpoint(work_dir: str) -> Optional[str]:
    """The newest checkpoint in a work directory that is not torn.

    That which ``last_checkpoint`` names, or where it is missing or torn (a
    disk that lost what it had confirmed, another program's in-place write) the
    newest other ``epoch_*.pth`` or ``iter_*.pth``, by the time of writing.

    Args:
        work_dir (str): Where a run wrote.

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
        if '://' in path:  # on another backend: whole, or its reader says so
            return path
        problem = _problem(path)
        if problem is None:
            return path
        print_log(f'Not resumed from {path}: {problem}.', logger='current', level=logging.WARNING)
    return None


def _problem(path: str) -> Optional[str]:
    """What is wrong with a file, as far as its check sums tell."""
    if not os.path.isfile(path):
        return 'there is no such file'
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as e:
        return f'it is torn ({e})'
    return None if damaged is None else f'{damaged} in it is damaged'
