# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Run pretrained backbones × tasks of configs/transfer × seeds, under the packages' own tools.

A run's folder has ``config.py``, whole, from its start, and ``result.json`` from its end; what is
between the two is an interrupted run.
"""

import copy
import glob
import hashlib
import json
import os
import os.path as osp
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import CheckpointLoader

import mmdense
from mmdense.checkpoints import recognise
from mmdense.checkpoints.io import cached_path
from mmdense.utils.download import sha256_of
from mmdense.utils.errors import CheckpointError, DataError, InputError, MMDenseError
from mmdense.utils.files import locked, write_text
from mmdense.utils.model_index import find_configs, find_package_folder, tool_path

ROOT = osp.dirname(osp.abspath(mmdense.__file__))
INITIALISER = 'mmdense.SelfSupPretrained'
# ResNet's own initialisers, written out: without any, MMEngine would keep PyTorch's.
RANDOM = [
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
]
# Keys, at any depth, that two runs may differ in and be compared all the same. MMEngine writes
# config.py once more, with launcher, resume and work_dir.
_FREE = {
    *('checkpoint', 'init_cfg', 'transfer', 'work_dir', 'launcher', 'resume', 'randomness'),
    *('num_workers', 'persistent_workers', 'pin_memory'),
}


def find_tasks() -> Dict[str, str]:
    """Return the configs of configs/transfer by their file names without ending."""
    paths = find_configs('transfer/mm*/*.py')
    return {osp.splitext(osp.basename(path))[0]: path for path in paths}


@dataclass
class Method:
    """Hold a backbone to be compared.

    Attributes:
        name (str): In the table, and of its folder.
        checkpoint (str, optional): Absolute path; None for random weights.
        sha256 (str, optional): Of that file.
    """

    name: str
    checkpoint: Optional[str] = None
    sha256: Optional[str] = None


def split_name(argument: str) -> Tuple[str, str]:
    """Split ``NAME=CHECKPOINT``, or ``CHECKPOINT`` alone, which may contain a ``=``.

    Returns:
        tuple[str, str]: The name, '' without one, and the checkpoint.
    """
    name, equals, source = argument.partition('=')
    return ('', argument) if not equals or re.search(r'[/\\]', name) else (name, source)


def read_method(argument: str) -> Method:
    """Read ``CHECKPOINT`` or ``NAME=CHECKPOINT``; a path or a URL.

    Without a name it is called by its algorithm, if the file says that, or by
    the file's name.

    Raises:
        CheckpointError: When the file cannot be read or has no backbone.
        InputError: When the name is not fit for a folder.
    """
    name, source = split_name(argument)
    source = osp.expanduser(source)
    checkpoint = CheckpointLoader.load_checkpoint(source, 'cpu', logger='silent')
    path = cached_path(source) if re.match('https?://', source) else osp.abspath(source)
    found = recognise(checkpoint, name=source)
    if not name:
        own = found.meta.get('mmdense')
        name = isinstance(own, dict) and own.get('algorithm')
        name = str(name).lower() if name else osp.splitext(osp.basename(path))[0]
    if not re.fullmatch(r'\w[\w.+-]*', name) or name == 'random':
        raise InputError(f'{name!r} is no name for a method: give another as NAME={source}')
    return Method(name, path, sha256_of(path))


def read_methods(arguments: Sequence[str], baseline: Optional[str] = None) -> List[Method]:
    """Read all methods, the baseline first; each name once.

    Raises:
        InputError: When there is none, or two have the same name.
    """
    methods = [Method(baseline)] if baseline else []
    for argument in arguments:
        method = read_method(argument)
        for other in methods:
            if other.name == method.name:
                raise InputError(
                    f'{other.checkpoint} and {argument} would both be called {method.name}: name '
                    f'them, as {method.name}-2={argument}'
                )
        methods.append(method)
    if not methods:
        raise InputError('nothing to transfer: give a checkpoint, or --baseline random')
    return methods


@dataclass
class Run:
    """Hold one method on one task.

    Attributes:
        method (Method): What is transferred.
        task (str): Where to.
        package (str): mmdet, mmseg or mmpretrain, whose tools run it.
        folder (str): Absolute path of all its files.
        cfg (Config): As it is going to be written there.
        seed (int, optional): Of all random numbers; None for one that MMEngine draws.
    """

    method: Method
    task: str
    package: str
    folder: str
    cfg: Config
    seed: Optional[int] = None

    def __str__(self) -> str:
        seed = '' if self.seed is None else f', seed {self.seed}'
        return f'{self.method.name} → {self.task}{seed}'

    def path(self, *parts: str) -> str:
        return osp.join(self.folder, *parts)

    @property
    def done(self) -> bool:
        return osp.isfile(self.path('result.json'))


def plan(
    methods: Sequence[Method],
    tasks: Sequence[str],
    work_dir: str,
    options: Optional[dict] = None,
    data_root: Optional[str] = None,
    seeds: Sequence[Optional[int]] = (None,),
) -> List[Run]:
    """Plan all runs, and check each: nothing is trained while anything is wrong.

    Args:
        methods (Sequence[Method]): As :func:`read_methods` gives them.
        tasks (Sequence[str]): Of :func:`find_tasks`.
        work_dir (str): Each run gets ``work_dir/<method>/<task>``, and below it
            ``seed<number>`` if it has a seed.
        options (dict, optional): Changes of every config, as of ``--cfg-options``.
        data_root (str, optional): Takes the place of ``data`` in all paths.
        seeds (Sequence[int or None]): One run each. Defaults to one without a seed.

    Raises:
        MMDenseError: An unknown task, a package or images that are missing, a
            checkpoint that does not fit a task's backbone, or a folder whose
            runs had another checkpoint or other settings.
    """
    known = find_tasks()
    runs = []
    for task in dict.fromkeys(tasks):
        if task not in known:
            raise InputError(f'there is no task {task!r}; there are: {", ".join(known)}')
        package = osp.basename(osp.dirname(known[task]))
        if find_spec(package) is None:
            raise InputError(f'{task} needs {package}, which is not installed')
        for method in methods:
            checked = False
            for seed in dict.fromkeys(seeds):
                cfg = _config(known[task], method, task, options, data_root)
                folder = osp.abspath(osp.join(work_dir, method.name, task))
                if seed is not None:
                    cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
                    folder = osp.join(folder, f'seed{seed}')
                run = Run(method, task, package, folder, cfg, seed)
                if not run.done and not checked:
                    checked = True
                    _check_data(run)
                    if method.checkpoint:
                        _check_fit(run)
                _check_folder(run, work_dir)
                runs.append(run)
    return runs


def _config(path, method, task, options, data_root) -> Config:
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options or {})
    for key, node in list(_items(cfg)):
        if data_root and isinstance(node[key], str) and re.match(r'(\./)?data/', node[key]):
            node[key] = osp.join(osp.abspath(data_root), node[key].partition('data/')[2])
        elif _is_ours(node[key]):
            if method.checkpoint:
                node[key].checkpoint = method.checkpoint
            else:
                node[key] = [dict(initialiser) for initialiser in RANDOM]
    cfg.checkpoint = method.checkpoint
    # Every process knows our modules, and reads checkpoints with our loader.
    imports = cfg.get('custom_imports') or dict(imports=[])
    cfg.custom_imports = dict(imports, imports=[*imports['imports'], 'mmdense.checkpoints'])
    if 'auto_scale_lr' in cfg:
        cfg.auto_scale_lr.enable = True
    cfg.transfer = dict(method=method.name, task=task, checkpoint_sha256=method.sha256)
    return cfg


def _items(node: Any) -> Iterator[Tuple[Any, Any]]:
    """Yield (key, container) of all values, at any depth."""
    if isinstance(node, (dict, list, Config)):
        for key in list(range(len(node)) if isinstance(node, list) else node):
            yield key, node
            yield from _items(node[key])


def _is_ours(node: Any) -> bool:
    return isinstance(node, dict) and node.get('type') == INITIALISER


def _check_data(run: Run) -> None:
    for loader in ('train_dataloader', 'test_dataloader'):
        for key, node in _items(run.cfg.get(loader)):
            if key != 'data_root' or not isinstance(node[key], str) or '://' in node[key]:
                continue
            if not osp.isdir(node[key]):
                raise DataError(
                    f'{run.task} reads {node[key]}, which is not there: link it, or name with '
                    '--data-root the folder that has what is below data/'
                )


def _check_fit(run: Run) -> None:
    """Build the backbone that the checkpoint fills, and fill it."""
    with DefaultScope.overwrite_default_scope(run.package):
        for key, node in list(_items(run.cfg.model)):
            if _is_ours(node[key]) and key == 'init_cfg':
                MODELS.build(copy.deepcopy(node)).init_weights()


def _check_folder(run: Run, work_dir: str) -> None:
    """Check that the runs of one task in one folder are comparable."""
    fix = 'delete that folder, or name another --work-dir'
    for path in _find_files(work_dir, 'config.py', run.task):
        folder = osp.dirname(path)
        old = Config.fromfile(path)
        own = osp.abspath(folder) == run.folder
        if own and old.transfer.checkpoint_sha256 != run.method.sha256:
            raise CheckpointError(
                f'{folder} is of another checkpoint than {run.method.checkpoint} (it was '
                f'{old.checkpoint}): {fix}, or name this one, as {run.method.name}-2='
                f'{run.method.checkpoint}'
            )
        before, now = _settings(old), _settings(run.cfg)
        changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
        if changed:
            key = changed[0]
            raise InputError(
                f'{folder} has other settings: {key} was {before.get(key)} and would be '
                f'{now.get(key)}{f", {len(changed) - 1} more" if len(changed) > 1 else ""}. '
                f'Their results cannot be compared: {fix}'
            )


def _find_files(work_dir: str, name: str, task: str = '*') -> List[str]:
    """Return the sorted paths of the files of all runs that are called so."""
    folder = osp.join(work_dir, '*', task)
    return sorted(
        glob.glob(osp.join(folder, name)) + glob.glob(osp.join(folder, 'seed[0-9]*', name))
    )


def _settings(cfg: Config) -> Dict[str, str]:
    """Return all settings that must be equal, by path."""
    found = {}

    def walk(node: Any, path: str) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            if key in _FREE:
                continue
            here = f'{path}.{key}' if path else str(key)
            if isinstance(value, (dict, list, tuple)) and value:
                walk(value, here)
            else:
                found[here] = repr(value)

    walk(cfg.to_dict(), '')
    return found


def execute(run: Run, gpus: int = 1) -> None:
    """Train or resume, test, and write ``result.json``.

    Args:
        run (Run): As :func:`plan` gives it.
        gpus (int): Number of processes.

    Raises:
        MMDenseError: When a tool fails; its last line, and where its log is.
    """
    os.makedirs(run.folder, exist_ok=True)
    with locked(run.path('lock')):
        write_text(run.path('config.py'), run.cfg.pretty_text)
        last = run.path('last_checkpoint')
        flags = ['--resume'] if osp.isfile(last) else []
        _call(run, 'train', gpus, '--work-dir', run.folder, *flags)
        with open(last, encoding='utf-8') as file:
            trained = run.path(osp.basename(file.read().strip()))
        shutil.rmtree(run.path('test'), ignore_errors=True)
        _call(run, 'test', gpus, trained, '--work-dir', run.path('test'))
        (written,) = glob.glob(run.path('test', '*', '*.json'))
        with open(written, encoding='utf-8') as file:
            metrics = {k: v for k, v in json.load(file).items() if k not in ('data_time', 'time')}
        result = dict(
            method=run.method.name,
            task=run.task,
            seed=run.seed,
            metrics=metrics,
            checkpoint=run.method.checkpoint,
            checkpoint_sha256=run.method.sha256,
            trained=trained,
            gpus=gpus,
            config_sha256=hashlib.sha256(run.cfg.pretty_text.encode()).hexdigest(),
            date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        )
        write_text(run.path('result.json'), json.dumps(result, indent=2) + '\n')


def commands(run: Run, gpus: int = 1) -> List[List[str]]:
    """Return the commands that train and test, the package's own. TRAINED.pth stands for the
    checkpoint of the end of training."""
    trained = run.path('TRAINED.pth')
    return [
        _command(run, 'train', gpus, '--work-dir', run.folder),
        _command(run, 'test', gpus, trained, '--work-dir', run.path('test')),
    ]


def _command(run: Run, tool: str, gpus: int, *arguments: str) -> List[str]:
    folder = Path(find_spec(run.package).origin).parent
    tools = find_package_folder(folder, 'tools') or folder / '.mim' / 'tools'
    command = [sys.executable]
    if gpus > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={gpus}']
        arguments = (*arguments, '--launcher', 'pytorch')
    return [*command, str(tools / f'{tool}.py'), run.path('config.py'), *arguments]


def _call(run: Run, tool: str, gpus: int, *arguments: str) -> int:
    """Call the package's own tool, with its output in a log, and return the most bytes that
    a process of it had in memory."""
    path = os.pathsep.join(filter(None, [osp.dirname(ROOT), os.environ.get('PYTHONPATH')]))
    log = run.path(f'{tool}.log')
    with open(log, 'a', encoding='utf-8') as file:
        process = subprocess.Popen(
            _command(run, tool, gpus, *arguments),
            env=dict(os.environ, PYTHONPATH=path),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    process.returncode = code
    if code < 0:  # its last line is not the reason
        name = signal.Signals(-code).name
        memory = ': is the memory full?' if name == 'SIGKILL' else ''
        raise MMDenseError(f'ended by {name}{memory} ({log})')
    if code:
        with open(log, encoding='utf-8', errors='replace') as file:
            lines = [line.strip() for line in file if line.strip()] or ['']
        raise MMDenseError(f'{lines[-1][:300]} (exit code {code}; {log})')
    return usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def check_gpus(gpus: int) -> None:
    """Check the number of GPUs: on a CPU mmdet's and mmseg's tools run in one process only.

    Raises:
        InputError: When there are not as many.
    """
    found = torch.cuda.device_count()
    if gpus < 1 or gpus > max(found, 1):
        raise InputError(f'--gpus {gpus}, but {found} found; one process can use the CPU')


def images_per_step(run: Run, gpus: int) -> Tuple[int, Optional[int]]:
    """Return the images in a step on so many GPUs, and in a step of the protocol, if known."""
    base = run.cfg.get('auto_scale_lr', {}).get('base_batch_size')
    return gpus * run.cfg.train_dataloader.batch_size, base


@dataclass
class Cost:
    """Hold the cost of a run's training.

    Attributes:
        steps (int): Of the optimizer.
        seconds (float): For each.
        memory (int): Most bytes, on each GPU; of the process without one.
        on_gpu (bool): Whether ``memory`` is a GPU's.
    """

    steps: int
    seconds: float
    memory: int
    on_gpu: bool

    @property
    def hours(self) -> float:
        return self.steps * self.seconds / 3600

    def __str__(self) -> str:
        hours, minutes = divmod(round(self.hours * 60), 60)
        where = 'on each GPU' if self.on_gpu else 'of main memory, on the CPU'
        return (
            f'{self.steps} steps of {self.seconds:.2f} s: {hours} h {minutes:02d} min; '
            f'{self.memory / 2**30:.1f} GiB {where}'
        )


def try_steps(run: Run, gpus: int = 1, steps: int = 6) -> Cost:
    """Train a few steps in a temporary folder, and measure time and memory: the median of
    all but the first two steps.

    Args:
        run (Run): As :func:`plan` gives it; its folder is neither read nor written.
        gpus (int): Number of processes.
        steps (int): Number of steps, 3 at least. Defaults to 6.

    Raises:
        MMDenseError: When the tool fails, as where the memory is too small.
    """
    cfg = copy.deepcopy(run.cfg)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps)
    cfg.log_processor = dict(type='LogProcessor', window_size=1, by_epoch=False)
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator', 'param_scheduler', 'custom_hooks'):
        cfg[key] = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.default_hooks = dict(
        cfg.get('default_hooks', {}), logger=dict(type='LoggerHook', interval=1), checkpoint=None
    )
    with tempfile.TemporaryDirectory() as folder:
        trial = Run(run.method, run.task, run.package, folder, cfg, run.seed)
        write_text(trial.path('config.py'), cfg.pretty_text)
        memory = _call(trial, 'train', gpus, '--work-dir', folder)
        (written,) = glob.glob(trial.path('*', 'vis_data', 'scalars.json'))
        with open(written, encoding='utf-8') as file:
            lines = [json.loads(line) for line in file]
    on_gpu = all('memory' in line for line in lines)
    if on_gpu:
        memory = max(line['memory'] for line in lines) * 2**20
    seconds = statistics.median(line['time'] for line in lines[2:])
    return Cost(count_steps(run, gpus), seconds, memory, on_gpu)


def count_steps(run: Run, gpus: int = 1) -> int:
    """Return the number of training steps of a run, by its data set where its length is in
    epochs."""
    train_cfg, loader = run.cfg.train_cfg, run.cfg.train_dataloader
    if 'max_iters' in train_cfg:
        return train_cfg.max_iters
    with DefaultScope.overwrite_default_scope(run.package):
        images = len(DATASETS.build(copy.deepcopy(loader.dataset)))
    return train_cfg.max_epochs * -(-images // (loader.batch_size * gpus))


SLURM = """#!/bin/bash
# Submit with sbatch, with the partition and the time that your cluster wants: sbatch -p gpu {path}
# Submitted once more it runs what is not finished.
#SBATCH --job-name=transfer
#SBATCH --array=1-{number}
#SBATCH --nodes=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --output={folder}/slurm-%A_%a.log
cd {here}
case $SLURM_ARRAY_TASK_ID in
{cases}
esac
"""


def write_slurm(
    runs: Sequence[Run],
    work_dir: str,
    gpus: int,
    arguments: Sequence[str] = (),
) -> str:
    """Write an array of jobs for Slurm, one for each run that is not finished, each on one
    machine; return its path, '' where all are finished.

    Args:
        runs (Sequence[Run]): As :func:`plan` gives them.
        work_dir (str): Of all runs, and of the file.
        gpus (int): Of each run.
        arguments (Sequence[str]): Of tools/transfer.py, the same for all.
    """
    cases, left = [], [run for run in runs if not run.done]
    for number, run in enumerate(left, 1):
        method = run.method
        source = ['--baseline', method.name]
        if method.checkpoint:
            source = [f'{method.name}={method.checkpoint}']
        seed = [] if run.seed is None else ['--seeds', str(run.seed)]
        command = [
            *(sys.executable, tool_path('transfer.py'), *source, '--to', run.task, *seed),
            *('--gpus', str(gpus), '--work-dir', osp.abspath(work_dir), *arguments),
        ]
        cases.append(f'{number}) exec {shlex.join(command)} ;;')
    if not cases:
        return ''
    path = osp.join(osp.abspath(work_dir), 'transfer.sbatch')
    text = SLURM.format(
        path=shlex.quote(path),
        number=len(cases),
        gpus=gpus,
        cpus=gpus * (left[0].cfg.train_dataloader.get('num_workers', 0) + 1),
        folder=osp.abspath(work_dir),
        here=shlex.quote(os.getcwd()),
        cases='\n'.join(cases),
    )
    write_text(path, text)
    return path
