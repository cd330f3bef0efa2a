# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Check and measure on one GPU, within eight minutes, all that needs one.

    python benchmarks/gpu.py                       # `make bench-gpu`; writes results/gpu.json
    python benchmarks/gpu.py --only check step     # the parts whose name begins so
    python benchmarks/gpu.py --device cpu --tiny   # a rehearsal: every part, at a tiny size
    python benchmarks/gpu.py --fake --tiny         # a rehearsal of the GPU's code on fake tensors

Needs a checkout and no installation: torch with CUDA, torchvision, opencv, mmengine, mmcv (without
ops) and mmpretrain must import. pytest, simplejpeg, lightly and kornia are used where they are
there. Without --data-root the images are drawn. The network is not used.

Every part runs in a process of its own, the most important first (PLAN). One that fails or takes
too long has a row that says so, and the others go on. The results are written after every part, so
that a run that is cut keeps what it has. At the end a table of all is printed, and written into
docs/benchmarks.md; `python benchmarks/run.py --only none` does that with a copied result. The exit
code is 1 where a check or a part has failed.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
RESULT = HERE / 'results' / 'gpu.json'
NEEDED = {
    'torch': 'torch',
    'torchvision': 'torchvision',
    'cv2': 'opencv-python-headless',
    'PIL': 'pillow',
    'mmengine': 'onedl-mmengine or mmengine',
    'mmcv': 'onedl-mmcv or mmcv',
    'mmpretrain': 'onedl-mmpretrain or mmpretrain',
}


class Part(NamedTuple):
    """Define a kind of part.

    Attributes:
        name (str): Its name, of which --only has the beginning.
        function (str): Of gpu_parts.py.
        seconds (int): What it takes on an H200 with 16 cores, the start of its process included:
            see the comment behind it. It is ended after twice as long and 15 s.
        options (dict): That differ from FULL.
        each (bool): Whether there is one for each algorithm.
        script (str): Script whose targets its rows have.
        fake (bool): Whether --fake rehearses it: not where a data loader or MMEngine's runner is.
    """

    name: str
    function: str
    seconds: int
    options: dict = {}
    each: bool = False
    script: str = 'gpu'
    fake: bool = True


FULL = dict(depth=50, size=224, batch_size=64, queue_len=65536, num_prototypes=256, patch_size=64)
FULL.update(rounds=11, images=32, warmup=32, iterations=64, workers=16, batch_sizes=[64, 256])
SMALL = dict(depth=18, size=96, batch_size=8, queue_len=4096, num_prototypes=16, patch_size=32)
TINY = dict(depth=18, size=64, batch_size=2, queue_len=64, num_prototypes=4, patch_size=32)
TINY.update(rounds=1, images=2, warmup=1, iterations=1, workers=1, batch_sizes=[2])
BF16, FP16 = dict(amp='bfloat16'), dict(amp='float16')
RUN = dict(BF16, rounds=1, device_augment=True, warmup=40, iterations=80)

# By worth; all but the last take 430 s, and the last gets what is left. A process starts in 4 s: a
# fork of one that has imported all, CUDA, cuDNN. A model of R50 is built in 1 s, and cuDNN chooses
# its algorithms in 3 s a model and precision.
PLAN = [
    # two R18, two steps of 8 images on the CPU, seven on the GPU
    Part('check', 'check_algorithm', 7, SMALL, each=True),
    # four pipelines, 32 images, twice on one core, at 10 ms; one operation after the other
    Part('check-augment', 'check_augment', 8),
    Part('check-lars', 'check_lars', 5, SMALL),
    # two builds of each model, for time and memory; 12 rounds of ten parts and one to four models,
    # 0.1 s a step of 64 images: 22 s with three peers, 10 without one
    Part('step-bf16', 'measure_step', 15, BF16, each=True, script='step'),
    # 5 runs of 120 iterations of 64 images: 5 s at 1,600 images/s (ours), 10 at 800 (mmpretrain's
    # workers, or float32); 7 s to start each, with 16 workers
    Part('run', 'measure_runs', 70, RUN, script='end_to_end', fake=False),
    # 3 loaders of 128 batches of 64 images: 3, 2 and 9 s, and 2 s to start
    Part('loader', 'measure_loader', 18, dict(rounds=1), script='input', fake=False),
    # 52 rounds of 10 ms
    Part('lars', 'measure_lars', 7, dict(rounds=51), script='step'),
    Part('step-fp16', 'measure_step', 15, FP16, script='step'),
    # 24 tests of 1 s, and 10 s until pytest has found them
    Part('tests', 'run_tests', 32, fake=False),
    # 12 rounds of 1,568×65,536 logits, 3 or 4 times, and as much memory for each
    Part('loss', 'measure_loss', 6, dict(BF16, batch_size=32), each=True, script='loss'),
    # 32 images on one core, 4 rounds of 40 ms each; device: 4 rounds of 20,000 launches
    Part('input', 'measure_input', 25, dict(rounds=3), script='input', fake=False),
    # two batches, two models each: 5 rounds of 0.4 s, and 17 s to build and to warm up
    Part('batches', 'measure_batches', 25, dict(BF16, rounds=5), script='scale'),
    # the compiler takes a minute on 16 cores
    Part('compile', 'measure_compiled', 90, BF16, fake=False),
]


def parse():
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--budget', type=float, default=480, help='seconds, for all')
    parser.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    parser.add_argument('--tiny', action='store_true', help='sizes that mean nothing')
    parser.add_argument('--fake', action='store_true', help='pretend that there is a GPU')
    parser.add_argument('--only', nargs='+', default=[''], help='beginnings of parts')
    parser.add_argument('--algorithms', nargs='+', help='all without it')
    parser.add_argument('--data-root', type=Path, help='a folder with images')
    parser.add_argument('--json', type=Path, help=f'{RESULT.relative_to(HERE.parent)}, on a GPU')
    return parser.parse_args()


def check_environment(args):
    """End with one line where something is missing, before time is spent."""
    missing = [what for name, what in NEEDED.items() if find_spec(name) is None]
    if missing:
        raise SystemExit(f'not installed: {", ".join(missing)}')
    import torch

    if args.device == 'cuda' and not args.fake and not torch.cuda.is_available():
        built = 'sees no GPU' if torch.version.cuda else 'is built without CUDA'
        raise SystemExit(f'torch {torch.__version__} {built}: rehearse with --device cpu or --fake')
    folders = [str(HERE), str(HERE.parent)]
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    # for the processes of parts
    os.environ['PYTHONPATH'] = os.pathsep.join([*folders, os.environ.get('PYTHONPATH', '')])
    try:
        parts = importlib.import_module('gpu_parts')
        parts.models.shipped_config(parts.methods.load(parts.methods.example()).SHIPPED)
    except (ImportError, AssertionError, FileNotFoundError) as error:
        raise SystemExit(f'cannot be imported: {type(error).__name__}: {error}') from error
    if args.fake and not parts.fake_gpu.is_supported():
        raise SystemExit(f'--fake needs PyTorch 2.5 or later, this is {torch.__version__}')
    return parts


def parts_of(plan, algorithms, args):
    """Return the parts to run: name, kind and algorithm of each.

    Args:
        plan (list[Part]): Kinds of parts.
        algorithms (list[str]): Those to check; runs are of the first that mmpretrain has too.
        args (Namespace): Command line.
    """
    import methods

    shared = [name for name in algorithms if name in methods.shipped()] or methods.shipped()
    shared = sorted(shared, key=lambda name: name != methods.example())
    # all are checked; without another choice, those are timed whose times are no others' too
    timed = [name for name in algorithms if name in methods.names()]
    if len(timed) > 6:
        timed = [name for name in timed if getattr(methods.load(name), 'GPU', True)]
    named = [
        (f'{part.name}-{algorithm}' if part.each else part.name, part, algorithm)
        for part in plan
        for algorithm in (
            shared[:1] if not part.each else algorithms if part.name == 'check' else timed
        )
    ]
    return [
        (name, part, algorithm)
        for name, part, algorithm in named
        if name.startswith(tuple(args.only)) and (part.fake or not args.fake)
    ]


def options(part, algorithm, args):
    """Return the options of a part, those that all scripts know."""
    values = dict(FULL, **part.options)
    if args.tiny:
        values.update(TINY)
    if args.device == 'cpu':
        values['amp'] = None
    values['workers'] = min(values['workers'], len(os.sched_getaffinity(0)))
    common = dict(amp=None, cfg_options=None, model=None, clock='wall')
    common.update(device_augment=part.name == 'input')
    own = dict(device=args.device, fake=args.fake, tiny=args.tiny, data_root=args.data_root)
    return argparse.Namespace(**dict(common, **values), **own, algorithm=algorithm, json=None)


def draw_photographs(folder, number):
    """Write JPEGs of 640×480 that are as large, and decode as slowly, as COCO's.

    Args:
        folder (str): Where to.
        number (int): How many.
    """
    import cv2
    import numpy as np

    for i in range(number):
        rng, image = np.random.default_rng(i), np.full((480, 640, 3), 128.0, np.float32)
        for width in (5, 10, 20, 40, 80, 160, 320, 640):  # the coarser, the stronger, as in nature
            noise = rng.standard_normal((width * 3 // 4, width, 3), np.float32)
            noise = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_LINEAR)
            image += 160 / width**0.5 * noise
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
        cv2.imwrite(f'{folder}/{i:04}.jpg', image.clip(0, 255).astype(np.uint8), quality)


def run_parts(parts, args, write):
    """Return the rows of all parts, and the seconds of each.

    Args:
        parts (list): Of :func:`parts_of`.
        args (Namespace): Command line.
        write (Callable): Called with both after every part.
    """
    import common
    from gpu_parts import failure, run_part

    end, rows, seconds = args.start + args.budget, [], {}
    for name, part, algorithm in parts:
        left = end - time.monotonic()
        begin = time.monotonic()
        print(f'\n== {name}: {part.seconds} s are planned, {left:.0f} s are left', flush=True)
        if left < part.seconds / 2:
            found = [failure(name, f'no time: {part.seconds} s planned, {left:.0f} s left')]
        else:
            # a rehearsal is in no hurry, on a machine that may be slow
            limit = min((20 if args.tiny else 2) * part.seconds + 15, left)
            own = options(part, algorithm, args)
            try:
                found = common.in_own_process(run_part, name, part.function, own, seconds=limit)
            except (TimeoutError, ChildProcessError) as error:
                found = [failure(name, str(error))]
        rows += [dict(row, script=part.script) for row in found]
        seconds[name] = round(time.monotonic() - begin, 1)
        write(rows, seconds)
    return rows, seconds


def choose_start(parts):
    """Have parts start as forks of a process that has imported all, if these can use the GPU."""
    import common

    try:
        common.in_own_process(parts.use_gpu, seconds=60)
    except (TimeoutError, ChildProcessError) as error:
        print(f'every part imports all for itself, 5 s each: a fork has no GPU ({error})')
        os.environ[common.START] = 'spawn'


def main():
    args = parse()
    args.start = time.monotonic()
    parts = check_environment(args)
    args.device = 'cuda' if args.fake else args.device
    import common
    import run

    if args.json is None and args.device == 'cuda' and not args.fake and not args.tiny:
        args.json = RESULT
    algorithms = args.algorithms or sorted(parts.models.ALGORITHMS)
    if args.device == 'cuda' and not args.fake:
        choose_start(parts)
    selected = parts_of(PLAN, algorithms, args)
    with tempfile.TemporaryDirectory() as folder:
        if args.data_root is None:
            draw_photographs(folder, (TINY if args.tiny else FULL)['images'])
            args.data_root = Path(folder)

        def write(rows, seconds):
            common.write(args.json, dict(rows=rows, seconds=seconds), sys.argv)

        rows, seconds = run_parts(selected, args, write)
    machine = common.machine()
    result = dict(date='now', machine=machine)
    print(f'\n{run.table("gpu", [(result, row) for row in rows], [machine])}\n')
    print(run.describe(0, machine))
    print(', '.join(f'{name} {taken:.0f} s' for name, taken in seconds.items()))
    if args.json == RESULT:
        run.write_page()
    wrong = [row['what'] for row in rows if 'failed' in row or not row.get('ok', True)]
    if wrong:
        raise SystemExit(f'failed or missed: {"; ".join(wrong)}')


if __name__ == '__main__':
    main()
