# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import atexit
import mmap
import os
import signal

import cv2
from torch.utils.data import get_worker_info

_initialized = None  # the process that init_worker() was called in
_training = mmap.mmap(-1, 1)  # shared with processes that are forked


def defer_signals(training: bool) -> None:
    """Tell the workers whether to survive SIGTERM until the main process has saved.

    At the end of a run, or after a failure, they do not: Python ends them by SIGTERM too.

    Args:
        training (bool): Whether a run is training from now on.
    """
    _training[0] = training
    if training:
        atexit.unregister(defer_signals)
        atexit.register(
            defer_signals, False
        )  # runs before multiprocessing's, which was registered earlier


def _on_sigterm(number: int, frame) -> None:
    if _training[0]:
        signal.alarm(60)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def init_worker() -> None:
    """Prepare the process if it is a data loader's worker: one thread, deferred signals.

    - Spawned workers do not inherit MMEngine's number of OpenCV threads, and one for each core in
      each worker is too many. PyTorch limits its own.
    - A cluster's scheduler sends SIGTERM or SIGUSR1 to workers too. Forked workers continue (after
      SIGTERM for a minute), so that the main process can finish an iteration and save; see
      :func:`defer_signals`.

    Only the first call in a process has an effect.
    """
    global _initialized
    if _initialized == os.getpid() or get_worker_info() is None:
        return
    _initialized = os.getpid()
    if cv2.getNumThreads() > 1:
        cv2.setNumThreads(0)
    if hasattr(signal, 'alarm'):
        signal.signal(signal.SIGTERM, _on_sigterm)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
