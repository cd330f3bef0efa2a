# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Runs a fuzz target in this process, which may crash, hang or fill the memory; tests start it
and look at what became of it. ``python child.py TARGET CASES SEED FOLDER`` ends with a line of
figures in JSON; the case that was tried last is ``FOLDER/case``."""

import faulthandler
import importlib.util
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

SECONDS = 60  # that one case may take, unless the target says
MEMORY = 3 << 30  # bytes of address space beyond what the libraries take


def main():
    target, cases, number, folder = sys.argv[1:]
    spec = importlib.util.spec_from_file_location(target, HERE / f'{target}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # How cases are drawn, what is done with one, and one that is fine.
    cases_of, check, fine = module.prepare(Path(folder))
    outcomes, slowest = Counter(), [0.0, '']

    @seed(int(number))
    @settings(
        max_examples=int(cases),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases_of())
    def run(case):
        name, content = case
        Path(folder, 'case').write_bytes(content)
        faulthandler.dump_traceback_later(getattr(module, 'SECONDS', SECONDS), exit=True)
        start = time.perf_counter()
        outcome = check(name, content)
        seconds = time.perf_counter() - start
        faulthandler.cancel_dump_traceback_later()
        outcomes[outcome] += 1
        if seconds > slowest[0]:
            slowest[:] = seconds, name
            Path(folder, 'slowest').write_bytes(content)

    assert check(*fine) in ('read', 'trained')  # and what is imported late is there
    taken = _status('VmSize')
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before, start = _status('VmHWM'), time.perf_counter()
    run()
    figures = dict(
        cases=sum(outcomes.values()),
        seconds=round(time.perf_counter() - start, 1),
        outcomes=dict(outcomes.most_common()),
        slowest=[round(slowest[0], 2), slowest[1]],
        grown_mb=(_status('VmHWM') - before) >> 20,
    )
    print(json.dumps(figures))


def _status(key: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f'{key}:'))


if __name__ == '__main__':
    main()
