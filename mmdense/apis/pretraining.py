# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Pretrain on images: plan, write the config, train, or continue what is there."""

import io
import logging
import os
import os.path as osp
import re
import shlex
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from mmengine.config import Config
from mmengine.dist import is_main_process

from mmdense.apis import hub
from mmdense.apis.inspection.fit import stock_lines
from mmdense.apis.planning import (
    Estimate,
    Options,
    Plan,
    Setting,
    Times,
    advise,
    choose_threads,
    estimate,
    find_method,
    largest_size,
    make_plan,
    plan_for_gpus,
    plan_text,
    published_weights,
    read_views,
    survey_labels,
    survey_machine,
    time_steps,
)
from mmdense.apis.planning.survey import find_backbone
from mmdense.checkpoints import latest_complete_checkpoint
from mmdense.engine import ProgressBarHook
from mmdense.engine.hooks.preemption import announce_interrupt
from mmdense.engine.launch import train
from mmdense.engine.training import prepare_training, train_parser
from mmdense.utils.errors import CONFIG_ERRORS, InputError, one_line_errors
from mmdense.utils.files import report_write_errors, write_text
from mmdense.utils.mmengine_patches import remove_hooks
from mmdense.utils.model_index import tool_path
from mmdense.utils.slow_imports import keep_imports

# options of the command line, in the order in which commands are printed
_OPTIONS = (
    *('method', 'backbone', 'epochs', 'out', 'init', 'batch_size', 'workers', 'gpus', 'size'),
    *('seed', 'prefix', 'labels', 'ignore_label', 'custom_imports'),
)


class Request(NamedTuple):
    """Hold what a user asks for.

    Attributes:
        images (str): A folder, a zip, an LMDB, a COCO json or a list.
        options (Options): Options of the planner.
        out (str, optional): Folder of the run. Defaults to ``work_dirs/METHOD_IMAGES``.
        prefix (str, optional): The folder that a json's paths are relative to.
    """

    images: str
    options: Options
    out: Optional[str] = None
    prefix: Optional[str] = None

    @property
    def folder(self) -> str:
        """Return the absolute path of the folder of the run."""
        if self.out is not None:
            return osp.abspath(osp.expanduser(self.out))
        name = osp.basename(osp.abspath(self.images))
        if not osp.isdir(self.images):
            name = osp.splitext(name)[0]
        return osp.abspath(osp.join('work_dirs', f'{self.options.method}_{name}'))

    @property
    def config(self) -> str:
        """Return the path of the config of the run."""
        return osp.join(self.folder, 'config.py')

    @property
    def backbone(self) -> str:
        """Return the path of the exported backbone."""
        return osp.join(self.folder, 'backbone.pth')


class Run(NamedTuple):
    """Hold a run that is ready to train.

    Attributes:
        config (str): Path of its config.
        settings (list[Setting]): Settings of a new run; of one that is resumed, none.
        ignored (list[str]): Names of the options that the config of a resumed run overrides.
        begun (bool): Whether anything was saved.
    """

    config: str
    settings: List[Setting] = []
    ignored: List[str] = []
    begun: bool = False


class Forecast(NamedTuple):
    """Hold how long a run takes.

    Attributes:
        cfg (Config): Config of the run.
        times (Times): Times of its steps.
        estimate (Estimate): Seconds of the run here, and on GPUs.
        gpus (int): Number of these GPUs.
        gpu_cfg (Config): Config of the run on them.
        advice (list[str]): What would change the result or the time most.
    """

    cfg: Config
    times: Times
    estimate: Estimate
    gpus: int
    gpu_cfg: Config
    advice: List[str]


def plan_run(request: Request) -> Plan:
    """Survey the images and the machine, and derive all settings.

    Raises:
        MMDenseError: When the images or the options cannot be used, in one line.
    """
    keep_imports()
    return make_plan(request.images, request.options, request.prefix)


def forecast_run(request: Request, plan: Plan) -> Forecast:
    """Time some steps of a plan, and estimate how long the run takes. It writes nothing."""
    command = format_command(request)
    text = plan_text(plan, request.folder, command)
    cfg, times = Config.fromstring(text, '.py'), time_steps(text)
    there = plan_for_gpus(plan)
    gpus, gpu_text = there.options.gpus, plan_text(there, request.folder, command)
    gpu_cfg = Config.fromstring(gpu_text, '.py')
    images, machine, processes = plan.images, plan.machine, plan.options.gpus
    guess = estimate(times, cfg, images, machine, processes, gpu_cfg, gpus)
    advice = advise(times, images, machine, cfg, processes, published_weights(plan))
    return Forecast(cfg, times, guess, gpus, gpu_cfg, advice)


def start_run(request: Request) -> Run:
    """Plan a new run and write its config.

    Raises:
        MMDenseError: When the images or the options cannot be used, or a run is there already.
    """
    if _has_begun(request):
        cfg, what, how = _read_run(request), 'a run', 'give another --out'
        if cfg is not None and _has_images(request, cfg):
            how = '--resume continues it, or give --out'
        elif cfg is not None:
            what = 'a run of other images'
        raise InputError(f'there is {what} in {request.folder}: {how}')
    plan = plan_run(request)
    with report_write_errors(request.config):
        write_text(request.config, plan_text(plan, request.folder, format_command(request)))
    return Run(request.config, plan.settings)


def find_run(request: Request) -> Run:
    """Find a run to continue.

    Raises:
        InputError: When there is none, or one of other images.
    """
    cfg = _read_run(request)
    if cfg is None:
        raise InputError(
            f'there is no run in {request.folder} to continue: leave --resume out, or name it by '
            '--out'
        )
    if not _has_images(request, cfg):
        raise InputError(f'{request.config} is of other images: give these, or another --out')
    return Run(request.config, [], find_ignored(request, cfg), _has_begun(request))


def train_run(
    run: Run,
    request: Request,
    resume: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    module: str = '',
) -> List[str]:
    """Train, in this process or in several.

    Args:
        run (Run): Run of :func:`start_run` or :func:`find_run`.
        request (Request): Request of the run.
        resume (bool): Whether to continue from the newest checkpoint.
        quiet (bool): Whether to print errors only.
        verbose (bool): Whether to print everything that is logged.
        module (str): Module that several processes run; it takes the flags of tools/train.py,
            ``--quiet`` and ``--verbose``.

    Returns:
        list[str]: Lines that say where the backbone is and how configs of mmdet and mmseg take
        it; none where the processes were stopped.
    """
    if request.options.gpus > 1:
        given = dict(resume=resume, quiet=quiet, verbose=verbose)
        flags = [f'--{name}' for name, value in given.items() if value]
        launch_processes(run.config, request.options.gpus, flags, module)
    else:
        args = train_parser().parse_args([run.config, *['--resume'] * resume])
        train_config(args, quiet, verbose)
    if not osp.exists(request.backbone):
        return []
    return describe_use(request.backbone, Config.fromfile(run.config))


def train_config(args: Namespace, quiet: bool = False, verbose: bool = False) -> None:
    """Train as tools/train.py does, but what precedes the first step is in the log file alone.

    MMEngine's lines are progress and go to stderr; warnings are shown.

    Args:
        args (Namespace): Arguments of tools/train.py.
        quiet (bool): Whether to print errors only.
        verbose (bool): Whether to print everything that is logged.
    """
    hidden = io.StringIO()
    with redirect_stdout(sys.stderr if verbose else hidden):
        runner = prepare_training(args)
    shown = '- .*ERROR' if quiet else '- .*(WARNING|ERROR)'
    for line in hidden.getvalue().splitlines() if is_main_process() else ():
        if re.match(rf'\S+ \S+ - mmengine {shown}', line):
            print(line, file=sys.stderr)
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not hasattr(handler, 'baseFilename'):
            handler.setStream(sys.stderr)
            handler.setLevel('ERROR' if quiet else handler.level)
    if quiet:
        remove_hooks(runner, ProgressBarHook)
    with redirect_stdout(hidden if quiet else sys.stderr):
        train(runner)


def launch_processes(config: str, gpus: int, flags: Sequence[str], module: str) -> None:
    """Train in several processes, by tools/dist_train.sh.

    SIGTERM, SIGUSR1 and Ctrl-C are handed on, and all processes save; a second Ctrl-C kills
    them.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        SystemExit: When the processes failed, or were stopped by another signal.
    """
    with socket.socket() as s:  # a port that is free
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    usual, machine = dict(PORT=str(port)), survey_machine()
    if machine.device == 'cpu':  # torchrun's usual is 1
        usual['OMP_NUM_THREADS'] = str(choose_threads(machine.cores, gpus))
    ours = dict(PYTHON=sys.executable, TRAIN_MODULE=module)
    process = subprocess.Popen(
        ['bash', tool_path('dist_train.sh'), config, str(gpus), *flags],
        env={**usual, **os.environ, **ours},
        stdout=sys.stderr,
        start_new_session=True,  # Ctrl-C is not for it: torchrun would end its processes at once
    )
    received: List[int] = []

    def hand_on(number: int, _) -> None:
        if number == signal.SIGINT and number in received:
            os.killpg(process.pid, signal.SIGKILL)
        if number == signal.SIGINT and number not in received:
            announce_interrupt()
        received.append(number)
        process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    before = {n: signal.signal(n, hand_on) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if code or received:
        raise SystemExit(code)


def describe_use(backbone: str, cfg: Config) -> List[str]:
    """Return where the backbone is, and the lines of a config that take it."""
    lines = stock_lines(backbone, cfg.model.backbone.to_dict())
    where = f'The backbone is {backbone}'
    if lines:
        where += '; in a config of mmdet, or of mmseg:'
    return [where, *lines]


def explicit_options(request: Request) -> Dict[str, Any]:
    """Return the options that differ from their defaults, by name."""
    given = dict(request.options._asdict(), out=request.out, prefix=request.prefix)
    defaults = dict(Options()._asdict(), out=None, prefix=None)
    return {name: given[name] for name in _OPTIONS if given[name] != defaults[name]}


def format_option(name: str, value: Any) -> str:
    """Return an option as it is typed."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return ' '.join([f'--{name.replace("_", "-")}', *(shlex.quote(str(v)) for v in values)])


def format_command(request: Request, without: Sequence[str] = (), resume: bool = False) -> str:
    """Return the command of a request.

    Args:
        request (Request): The request.
        without (Sequence[str]): Options to leave out.
        resume (bool): Whether the command is to continue the run.
    """
    options = explicit_options(request).items()
    words = [format_option(name, value) for name, value in options if name not in without]
    parts = ['mmdense', 'pretrain', shlex.quote(request.images), *words]
    return ' '.join(parts + ['--resume'] * resume)


def format_tool_command(config: str, gpus: int = 1) -> str:
    """Return the command of OpenMMLab that trains a config, from the current folder.

    Args:
        config (str): Path of the config.
        gpus (int): Number of processes. Defaults to 1.
    """
    if gpus == 1 and find_spec('mim'):
        return f'mim train mmdense {shlex.quote(config)}'
    name = 'train.py' if gpus == 1 else 'dist_train.sh'
    tool = tool_path(name)
    if osp.isfile(f'tools/{name}') and osp.samefile(f'tools/{name}', tool):
        tool = f'tools/{name}'
    if gpus == 1:
        return f'python {shlex.quote(tool)} {shlex.quote(config)}'
    return f'bash {shlex.quote(tool)} {shlex.quote(config)} {gpus}'


def find_ignored(request: Request, cfg: Config) -> List[str]:
    """Return the names of the options that the config of a run overrides."""

    def agrees(name: str) -> bool:
        with suppress(AttributeError, LookupError, TypeError):  # the config was changed by hand
            return _AGREES[name](request, cfg)
        return False

    return [name for name in explicit_options(request) if name in _AGREES and not agrees(name)]


def _has_begun(request: Request) -> bool:
    return bool(latest_complete_checkpoint(request.folder)) or osp.exists(request.backbone)


def _read_run(request: Request) -> Optional[Config]:
    """Read the config in the folder of a run, where there is one."""
    if not osp.isfile(request.config):
        return None
    with one_line_errors(*CONFIG_ERRORS):  # it may have been changed by hand
        return Config.fromfile(request.config)


def _has_images(request: Request, cfg: Config) -> bool:
    with one_line_errors(*CONFIG_ERRORS):
        dataset = cfg.train_dataloader.dataset
        return osp.abspath(request.images) in (dataset.get('data_root'), dataset.get('ann_file'))


def _same_method(request: Request, cfg: Config) -> bool:
    method = find_method(request.options.method, request.options.custom_imports)
    return cfg.model.type == method.recipe.model.type


def _same_backbone(request: Request, cfg: Config) -> bool:
    recipe = find_method(request.options.method, request.options.custom_imports).recipe
    usual = recipe.model.backbone.to_dict()
    wanted = dict(usual, **find_backbone(request.options.backbone, usual))
    keys = [key for key in ('type', 'depth', 'arch') if key in wanted]
    return all(cfg.model.backbone.get(key) == wanted[key] for key in keys)


def _same_init(request: Request, cfg: Config) -> bool:
    init = request.options.init
    source = cfg.get('load_from') or cfg.model.get('pretrained') or ''
    if source in (init, osp.abspath(osp.expanduser(init))):
        return True
    with suppress(InputError):  # no name of a recipe
        return source == getattr(hub.find_weights(init), 'url', None)
    return False


def _same_labels(request: Request, cfg: Config) -> bool:
    options, evaluation = request.options, cfg.get('default_hooks', {}).get('evaluation', {})
    found = survey_labels(options.labels, request.prefix, options.ignore_label)
    return evaluation.data == found.data


def _same_prefix(request: Request, cfg: Config) -> bool:
    evaluation = cfg.get('default_hooks', {}).get('evaluation', {})
    folders = (
        cfg.train_dataloader.dataset.data_prefix,
        evaluation.get('data', {}).get('img_path'),
    )
    return osp.abspath(osp.expanduser(request.prefix)) in folders


def _same_size(request: Request, cfg: Config) -> bool:
    return largest_size(read_views(cfg.train_dataloader.dataset.pipeline)) == request.options.size


def _same_imports(request: Request, cfg: Config) -> bool:
    return set(request.options.custom_imports) <= set(cfg.custom_imports['imports'])


def _same_value(name: str, key: str) -> Callable[[Request, Config], bool]:
    """Return a function that compares an option with a value of the config."""

    def compare(request: Request, cfg: Config) -> bool:
        value = cfg
        for part in key.split('.'):
            value = value[part]
        return value == getattr(request.options, name)

    return compare


# options that a config may override, each with a comparison
_AGREES: Dict[str, Callable[[Request, Config], bool]] = dict(
    method=_same_method,
    backbone=_same_backbone,
    epochs=_same_value('epochs', 'train_cfg.max_epochs'),
    batch_size=_same_value('batch_size', 'train_dataloader.batch_size'),
    workers=_same_value('workers', 'train_dataloader.num_workers'),
    size=_same_size,
    seed=_same_value('seed', 'randomness.seed'),
    init=_same_init,
    labels=_same_labels,
    ignore_label=_same_value('ignore_label', 'default_hooks.evaluation.data.ignore_index'),
    custom_imports=_same_imports,
    prefix=_same_prefix,
)
