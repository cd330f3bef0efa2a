# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Processes for tests, forked from one that has imported mmdense: each starts at once, where
``python tools/train.py`` imports for five seconds."""

import multiprocessing
import os
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

PROCESSES = multiprocessing.get_context('forkserver')
PROCESSES.set_forkserver_preload(['mmdense.models', 'mmdense.datasets', 'mmdense.engine.training'])


def leave_configs_unformatted():
    """Write configs in this process as MMEngine has them, without yapf."""
    from mmengine.config import config
    from yapf.yapflib import yapf_api

    # The classic distribution imports the name with its module, the maintained one in the call.
    config.FormatCode = yapf_api.FormatCode = lambda text, **_: (text, True)


def run_program(program, arguments, cwd, path, env, log):
    """Do in this process, which is forked, what ``python program arguments`` does."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(env)
    os.chdir(cwd)
    leave_configs_unformatted()
    sys.path[:0] = [os.path.dirname(os.path.abspath(program)), *filter(None, [path])]
    sys.argv = [program, *map(str, arguments)]
    runpy.run_path(program, run_name='__main__')


def run_forked(program, arguments, log, cwd, number=1, path='', timeout=300, **env):
    """Run a program in ``number`` processes, which end together: where one fails, all are killed.

    ``path`` is a further folder of modules. Return ``returncode``, of the first that failed, and
    ``stdout``, with the errors, of all.
    """
    ranks = []
    for rank in range(number):
        own = {key: str(value) for key, value in env.items()}
        if number > 1:  # as torchrun does
            own.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number))
        given = (str(program), arguments, str(cwd), str(path), own, str(log))
        ranks.append(PROCESSES.Process(target=run_program, args=given))
        ranks[-1].start()
    deadline = time.monotonic() + timeout
    while any(p.exitcode is None for p in ranks) and not any(p.exitcode for p in ranks):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    failed = [p.exitcode for p in ranks if p.exitcode]
    for process in ranks:
        if process.exitcode is None:
            failed = failed or ['timeout']
            process.kill()
        process.join()
    return SimpleNamespace(returncode=failed[0] if failed else 0, stdout=Path(log).read_text())
