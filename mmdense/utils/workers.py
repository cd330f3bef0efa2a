# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
import signal

import cv2
from torch.utils.data import get_worker_info

_settled = None


def settle_worker() -> None:
    """In a data loader's worker, once: one thread, and no end before its process's.

    - Spawned workers do not know what MMEngine told the main process of
      OpenCV's threads, and one for each core in each worker is too many.
      PyTorch looks after its own.
    - A cluster's scheduler sends SIGTERM or SIGUSR1 to workers too. They go on
      (after SIGTERM for a minute), so that their process can finish an
      iteration and save.
    """
    global _settled
    if _settled == os.getpid() or get_worker_info() is None:
        return
    _settled = os.getpid()
    if cv2.getNumThreads() > 1:
        cv2.setNumThreads(0)
    if hasattr(signal, 'alarm'):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
