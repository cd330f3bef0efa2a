# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Runs the benchmarks and writes docs/benchmarks.md: page.md with their results.

    python benchmarks/run.py                  # `make bench`: ten minutes on two cores
    python benchmarks/run.py --full           # `make bench-full`: also what takes longer
    python benchmarks/run.py --only step      # what begins so
    python benchmarks/run.py --only none      # only writes
    python benchmarks/gpu.py                  # `make bench-gpu`: what needs a GPU

Each result is a file in benchmarks/results, which a run replaces; the tables show what is there,
with its own date and machine.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import common
import methods
from common import figure
from gains import gains, line
from targets import target_of

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results'
DOCUMENT = HERE.parent / 'docs' / 'benchmarks.md'

METHODS = {name: methods.load(name) for name in methods.names()}

# Name of the result: script and options. `CLOCK` is where --clock may go.
SMALL = '--depth 18 --queue-len 4096'
E2E = f'{SMALL} --size 112 --batch-size 16 --workers 1 --warmup 4 --iterations 10'
QUICK = {
    'input': 'input.py --device-augment --images 32 --rounds 5 CLOCK',
    **{
        f'loss-{name}': f'loss.py {name} {getattr(method, "LOSS_OPTIONS", "")} --rounds 5 CLOCK'
        for name, method in METHODS.items()
    },
    **{f'step-{name}': f'step.py {name} --rounds 3 CLOCK' for name in methods.quick()},
    'step-lars': 'step.py lars --rounds 21 CLOCK',
    'end_to_end': f'end_to_end.py {E2E}',
    'end_to_end-cost': f'end_to_end.py {E2E} --clock cpu',
    'end_to_end-start': f'end_to_end.py {E2E} --start-up --rounds 5 CLOCK',
    'scale-batches': f'scale.py batches {SMALL} --size 64 --batch-sizes 4 16 64 --rounds 5 CLOCK',
    'scale-processes': f'scale.py processes {SMALL} --size 64 --batch-size 16 --rounds 5',
}
FULL = {
    **QUICK,
    'input': 'input.py --device-augment --images 128 --rounds 7 CLOCK',
    **{
        name: run
        for method in METHODS.values()
        for name, run in getattr(method, 'MORE', {}).items()
    },
    **{f'step-{name}': f'step.py {name} --rounds 7 CLOCK' for name in METHODS},
    'step-compile': f'step.py compile --algorithms {" ".join(methods.shipped())} {SMALL} '
    '--size 112 --batch-size 8 --rounds 5 CLOCK',
    'step-bfloat16': 'step.py bfloat16 --rounds 3 CLOCK',
    'end_to_end-bfloat16': 'end_to_end.py --depth 50 --size 224 --batch-size 16 --workers 1 '
    '--warmup 3 --iterations 6 --amp bfloat16',
    'storage': 'storage.py',
}
PRINTS = ('storage.py',)  # a table of its own
ELSEWHERE = ('gpu',)  # of gpu.py


def run(name, command, args):
    """One benchmark in a process of its own; whether it went well."""
    clock = f'--clock {args.clock}' if args.clock != 'wall' else ''
    script, *options = command.replace('CLOCK', clock).split()
    result = RESULTS / f'{name}.json'
    print(f'\n== {name}: {script} {" ".join(options)}', flush=True)
    if args.data_root and script in ('input.py', 'end_to_end.py'):
        options += ['--data-root', args.data_root]
    prints = script in PRINTS
    if not prints:
        options += ['--json', str(result)]
    # idle threads sleep: what they would burn counts neither for nor against anyone
    environment = dict(os.environ, OMP_WAIT_POLICY='PASSIVE')
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / script), *options],
        env=environment,
        stdout=subprocess.PIPE if prints else None,
        text=True,
    )
    if prints and done.returncode == 0:
        print(done.stdout)
        common.write(result, dict(table=done.stdout.strip()), [script, *options])
    print(f'{time.perf_counter() - start:.0f} s', flush=True)
    return done.returncode == 0


# ------------------------------------------------------------------------------------- the document


def document(page, results):
    """The page with its tables.

    Args:
        page (str): With places for them, {{ script }}, {{ gains }} and {{ machines }}.
        results (dict[str, dict]): By name, as the scripts write them.
    """
    machines = []

    def fill(place):
        if place[1] == 'machines':
            return '\n'.join(map(describe, range(len(machines)), machines))
        if place[1] == 'gains':
            return gains_table(results, machines)
        own = [r for name, r in results.items() if name.split('-')[0] == place[1]]
        machines.extend(m for m in (r['machine'] for r in own) if m not in machines)
        printed = [f'{r["table"]}\n\n{when(r, machines)}.' for r in own if 'table' in r]
        rows = [(r, row) for r in own for row in r.get('rows', ())]
        tables = [*printed, table(place[1], rows, machines)] if rows else printed
        return '\n\n'.join(tables) or 'Not measured yet.'

    return re.sub(r'{{ (\w+) }}', fill, page)


def gains_table(results, machines):
    """Return what a user gains, a line a figure."""
    lines = ['| | mmdense | beside | | gain | measured |', '| --- | --- | --- | --- | --- | --- |']
    for gain, result, row in gains(results):
        if result['machine'] not in machines:
            machines.append(result['machine'])
        lines.append(line(gain, row, when(result, machines)))
    return '\n'.join(lines)


def when(result, machines):
    letter = chr(ord('A') + machines.index(result['machine']))
    return f'{result["date"]}, machine {letter}'


def table(script, rows, machines):
    """Print all rows of one script, what they were measured with, and why a target is missed.

    Args:
        rows (list[tuple[dict, dict]]): The result that a row is of, and the row.
    """
    lines = [
        '| | mmdense | beside | | ratio | target | |',
        '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    notes, missed = [], []
    for result, row in rows:
        note = f'{row["setting"]}; ' if row['setting'] else ''
        if 'rounds' in row:
            note += f'{row["rounds"]} round{"s" * (row["rounds"] != 1)}; '
        note += when(result, machines)
        note += f'; {result["remark"]}' if 'remark' in result else ''
        if note not in notes:
            notes.append(note)
        target = target_of(row.get('script', script), row) if 'ratio' in row else None
        if target is not None and not target.is_met(row):
            missed.append(f'{row["what"]}, over {row["peer"]}: {target.reason}.')
        lines.append(f'| {" | ".join(cells(row, target))} | {notes.index(note) + 1} |')
    lines += ['', *(f'{i}. {note}' for i, note in enumerate(notes, 1))]
    if missed:
        lines += ['', 'Missed:', '', *(f'- {reason}' for reason in dict.fromkeys(missed))]
    return '\n'.join(lines)


def cells(row, target):
    """Return what a line of a table says: of a comparison, of a check, or of what failed."""
    if 'failed' in row:
        return [row['what'], f'failed: {row["failed"]}', '', '', '', '']
    if 'allowed' in row:
        met = 'met' if row['ok'] else 'missed'
        return [row['what'], row['found'], '', '', '', f'{row["allowed"]}, {met}']
    met = ''
    if target is not None:
        met = f'{target}, {"met" if target.is_met(row) else "missed"}'
    unit = row['unit']
    decimals = {'s': 2, 'ms': 1, 'MiB': 0, 'images/s': 1}[unit]
    ours, theirs = (f'{figure(row[k], decimals)} {unit}' for k in ('ours', 'theirs'))
    return [row['what'], ours, row['peer'], theirs, figure(row['ratio'], 3), met]


def describe(index, machine):
    gpu = machine['gpu'] or 'no GPU'
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    name = f'{machine["cpu"]}, {machine["cores"]} cores, {gpu}'
    return f'- {chr(ord("A") + index)}: {name}; {versions}'


def read_results():
    """In the order of the tables."""
    paths = {name: RESULTS / f'{name}.json' for name in [*FULL, *ELSEWHERE]}
    return {
        name: json.loads(path.read_text(encoding='utf-8'))
        for name, path in paths.items()
        if path.exists()
    }


def write_page():
    """Write docs/benchmarks.md from the page and the results that are there."""
    page = (HERE / 'page.md').read_text(encoding='utf-8')
    DOCUMENT.write_text(document(page, read_results()), encoding='utf-8')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--full', action='store_true')
    parser.add_argument('--only', default='', help='those whose name begins so; none: only write')
    parser.add_argument('--clock', default='wall', choices=['wall', 'cpu'])
    parser.add_argument('--data-root', help='a folder with images')
    args = parser.parse_args()
    plan = FULL if args.full else QUICK
    plan = {name: command for name, command in plan.items() if name.startswith(args.only)}
    failed = []
    for name, command in plan.items():
        if not run(name, command, args):
            failed.append(name)
        write_page()  # each time: it is that of the results, also where this is stopped
    write_page()
    print(f'wrote {DOCUMENT}')
    if failed:
        raise SystemExit(f'failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
