# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import atexit
import mmap
import os
import signal

import cv2
from torch.utils.data import get_worker_info

_settled = None
_training = mmap.mmap(-1, 1)  # shared with processes that are forked


def defer_signals(training: bool) -> None:
    """Tells the workers whether SIGTERM waits for their process to save.

    Not so when a run is over, or has failed: Python ends them by SIGTERM too.

    Args:
        training (bool): From now on.
    """
    _training[0] = training
    if training:
        atexit.unregister(defer_signals)
        atexit.register(defer_signals, False)  # before multiprocessing's, as it is later


def _on_sigterm(number: int, frame) -> None:
    if _training[0]:
        signal.alarm(60)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def init_worker() -> None:
    """In a data loader's worker, once: one thread, and no end before its process's.

    - Spawned workers do not know what MMEngine told the main process of
      OpenCV's threads, and one for each core in each worker is too many.
      PyTorch looks after its own.
    - A cluster's scheduler sends SIGTERM or SIGUSR1 to workers too. Forked
      ones go on (after SIGTERM for a minute), so that their process can finish
      an iteration and save; see :func:`defer_signals`.
    """
    global _settled
    if _settled == os.getpid() or get_worker_info() is None:
        return
    _settled = os.getpid()
    if cv2.getNumThreads() > 1:
        cv2.setNumThreads(0)
    if hasattr(signal, 'alarm'):
        signal.signal(signal.SIGTERM, _on_sigterm)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
