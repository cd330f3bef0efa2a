# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Shows that pretraining learns, and transfers: docs/evidence.md.

    python benchmarks/evidence/study.py --list               # what there is to run, and its state
    python benchmarks/evidence/study.py --minutes 40         # runs as much of it
    python benchmarks/evidence/study.py --only 'frozen/*'    # what is called so
    python benchmarks/evidence/study.py --seeds 0 1          # the second seed, too
    python benchmarks/evidence/study.py --page               # writes docs/evidence.md

A piece that is stopped (by the time, Ctrl-C, SIGTERM) or killed goes on the next time; one that is
done is not run again, unless its settings have changed. Its result is a file in
benchmarks/evidence/results; weights stay in the work directory. Several may be run at once; each
takes pieces of its own. With OMP_NUM_THREADS=1 one for each core is faster than one on all cores.
"""

import argparse
import faulthandler
import signal
import sys
from pathlib import Path

from mmengine.config import Config

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings(every=True)  # before the imports below

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

from mmdense.utils.errors import CONFIG_ERRORS, one_line_errors  # noqa: E402


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default=str(HERE / 'configs' / 'cpu.py'), help='its sizes')
    parser.add_argument('--work-dir', type=Path, default=REPO / 'work_dirs' / 'evidence')
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    parser.add_argument('--data-root', type=Path, default=REPO / 'data', help='of the images')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='to be back in')
    parser.add_argument('--only', default='*', metavar='PATTERN', help="of ids, such as 'bccd*/*'")
    parser.add_argument('--seeds', type=int, nargs='+', help="default: the config's")
    parser.add_argument('--epochs', type=int, help="of pretraining; default: the config's")
    parser.add_argument('--list', action='store_true', help='run nothing, print the pieces')
    parser.add_argument('--page', action='store_true', help='run nothing, write the page')
    parser.add_argument(
        '--full-scale', action='store_true', help="count the published recipes' operations anew"
    )
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_args()
    faulthandler.register(signal.SIGUSR1)  # says where it is
    with one_line_errors(*CONFIG_ERRORS):
        from plan import make_study

        cfg = Config.fromfile(args.config)
        if args.seeds:
            cfg.seeds = args.seeds
        if args.epochs:
            cfg.pretrain.epochs = args.epochs
        if args.page:
            import page

            cfg.seeds = page.seeds(cfg, args.results)
        study = make_study(cfg, args.work_dir, args.results, args.data_root)
        if args.list:
            print(study.table())
            return
        if args.full_scale:
            import full_scale

            full_scale.write(args.results / 'full_scale.json')
            return
        if args.page:
            print(f'wrote {page.write(study, cfg, args.results, args.data_root)}')
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: study.stop(signal.Signals(number).name))
        failed = study.run(args.minutes, args.only)
    print(study.table().splitlines()[-1])
    if study.stopped:
        print(f'stopped: {study.stopped}; the same command goes on')
    if failed:
        raise SystemExit(f'mmdense: error: failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
