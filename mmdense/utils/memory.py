# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Settings of the process's memory."""

import ctypes
import os
import sys

_SETTINGS = (
    'GLIBC_TUNABLES',
    'MALLOC_MMAP_MAX_',
    'MALLOC_MMAP_THRESHOLD_',
    'MALLOC_TRIM_THRESHOLD_',
)


def keep_freed_memory() -> None:
    """Let glibc keep memory that is freed for the next allocation, in this process.

    Else a large tensor's memory goes back to the kernel at once, and the next one of its size
    pays for a page fault every 4 KiB. A training step on a CPU allocates the same tensors again
    and again. The peak of the memory stays; what was in use once is not given back before the end.

    Where the environment says when glibc gives memory back, and on other systems, nothing changes.
    """
    if any(name in os.environ for name in _SETTINGS):
        return
    libc = ctypes.CDLL(None) if sys.platform.startswith('linux') else None
    if hasattr(libc, 'mallopt'):  # not in musl
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the end of the heap is never given back
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no tensor has a mapping of its own
