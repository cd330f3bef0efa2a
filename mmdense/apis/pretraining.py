# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Pretrain on images: plan, write the config, train, or continue what is there."""

import glob
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
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from mmengine.config import Config
from mmengine.dist import is_main_process

from mmdense.apis import hub
from mmdense.apis.inspection.fit import stock_lines
from mmdense.apis.planning import (
    Estimate,
    Needs,
    Options,
    Plan,
    Setting,
    Times,
    advise,
    choose_threads,
    estimate,
    estimate_needs,
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
from mmdense.apis.planning.survey import find_backbone, shorten_paths
from mmdense.apis.planning.view_settings import find_step
from mmdense.checkpoints import latest_complete_checkpoint, read_checkpoint
from mmdense.checkpoints.model_config import as_transferred
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
    *('method', 'backbone', 'epochs', 'out', 'init', 'teacher', 'batch_size', 'workers', 'gpus'),
    *('size', 'seed', 'prefix', 'exclude', 'value_range', 'in_channels'),
    *('labels', 'ignore_label', 'custom_imports'),
)


class Request(NamedTuple):
    """Hold what a user asks for.

    Attributes:
        images (str | tuple[str]): Images of :func:`~mmdense.apis.planning.survey_images`.
        options (Options): Options of the planner.
        out (str, optional): Folder of the run. Defaults to ``work_dirs/METHOD_IMAGES``.
        prefix (str, optional): The folder that a json's paths are relative to.
    """

    images: Union[str, Tuple[str, ...]]
    options: Options
    out: Optional[str] = None
    prefix: Optional[str] = None

    @property
    def paths(self) -> List[str]:
        """Return the paths of the images, with a pattern where a shell has replaced it."""
        return shorten_paths([self.images] if isinstance(self.images, str) else self.images)

    @property
    def folder(self) -> str:
        """Return the absolute path of the folder of the run."""
        if self.out is not None:
            return osp.abspath(osp.expanduser(self.out))
        path = self.paths[0]
        while glob.has_magic(osp.basename(path)) and not osp.exists(path):  # the folder before it
            path = osp.dirname(path)
        name = osp.basename(osp.abspath(path))
        if not osp.isdir(path):
            name = osp.splitext(name)[0]
        if len(self.paths) > 1:
            name += f'_and_{len(self.paths) - 1}_more'
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
        done (int): Epochs of its newest checkpoint that are complete.
        epochs (int, optional): Epochs of the run; None where its config does not say.
        before (int, optional): Epochs that its config had before ``--epochs``; None where they
            are unchanged.
        plan (Plan, optional): Plan of a new run.
    """

    config: str
    settings: List[Setting] = []
    ignored: List[str] = []
    begun: bool = False
    done: int = 0
    epochs: Optional[int] = None
    before: Optional[int] = None
    plan: Optional[Plan] = None

    @property
    def finished(self) -> bool:
        """Return whether no epoch is left."""
        return self.epochs is not None and self.done >= self.epochs


class Forecast(NamedTuple):
    """Hold how long a run takes.

    Attributes:
        cfg (Config): Config of the run.
        times (Times): Times of its steps.
        estimate (Estimate): Seconds of the run here, and on GPUs.
        gpus (int): Number of these GPUs.
        gpu_cfg (Config): Config of the run on them.
        advice (list[str]): What would change the result or the time most.
        single (Estimate, optional): Estimate whose ``there`` is one GPU; None where ``gpus`` is 1
            or this machine has GPUs.
        disk (int): Bytes of the files of the run at most.
    """

    cfg: Config
    times: Times
    estimate: Estimate
    gpus: int
    gpu_cfg: Config
    advice: List[str]
    single: Optional[Estimate] = None
    disk: int = 0


def plan_run(request: Request) -> Plan:
    """Survey the images and the machine, and derive all settings.

    Raises:
        MMDenseError: When the images or the options cannot be used, in one line.
    """
    keep_imports()
    return make_plan(request.paths, request.options, request.prefix)


def forecast_run(
    request: Request, plan: Plan, report: Callable[[str], None] = lambda what: None
) -> Forecast:
    """Time some steps of a plan, and estimate how long the run takes. It writes nothing.

    Args:
        request (Request): The request.
        plan (Plan): Its plan.
        report (Callable): Called with a few words whenever something begins.
    """
    command = format_command(request)
    text = plan_text(plan, request.folder, command)
    cfg, times = Config.fromstring(text, '.py'), time_steps(text, report=report)
    there = plan_for_gpus(plan)
    gpus, gpu_text = there.options.gpus, plan_text(there, request.folder, command)
    gpu_cfg = Config.fromstring(gpu_text, '.py')
    images, machine, processes = plan.images, plan.machine, plan.options.gpus
    guess = estimate(times, cfg, images, machine, processes, gpu_cfg, gpus)
    advice = advise(times, images, machine, cfg, processes, published_weights(plan))
    single = None
    if machine.device == 'cpu' and gpus > 1:
        one = Config.fromstring(plan_text(plan_for_gpus(plan, 1), request.folder, command), '.py')
        single = estimate(times, cfg, images, machine, processes, one, 1)
    disk = estimate_needs(plan, cfg).disk
    return Forecast(cfg, times, guess, gpus, gpu_cfg, advice, single, disk)


def run_needs(run: Run) -> Optional[Needs]:
    """Return what a new run needs; None for one that is resumed."""
    if run.plan is None:
        return None
    return estimate_needs(run.plan, Config.fromfile(run.config))


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
    return Run(request.config, plan.settings, plan=plan)


def find_run(request: Request) -> Run:
    """Find a run to continue.

    With more epochs than the config of the run has, and a checkpoint to continue from, the config
    gets the new number.

    Raises:
        InputError: When there is none, or one of other images; or the config does not take the
            number of epochs.
    """
    cfg = _read_run(request)
    if cfg is None:
        raise InputError(
            f'there is no run in {request.folder} to continue: leave --resume out, or name it by '
            '--out'
        )
    if not _has_images(request, cfg):
        raise InputError(f'{request.config} is of other images: give these, or another --out')
    done, epochs = _epochs_done(request), cfg.get('train_cfg', {}).get('max_epochs')
    before, wanted = None, request.options.epochs
    if done and wanted and isinstance(epochs, int) and wanted > epochs:
        _set_epochs(request.config, wanted)
        before, epochs, cfg = epochs, wanted, _read_run(request)
    ignored = find_ignored(request, cfg)
    return Run(request.config, [], ignored, _has_begun(request), done, epochs, before)


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
    if run.finished and osp.exists(request.backbone):
        pass  # nothing is left to train
    elif request.options.gpus > 1:
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
    lines = stock_lines(backbone, as_transferred(cfg.model.backbone.to_dict()))
    where = f'The backbone is {backbone}'
    if 'detector' in cfg.model:
        fill = f"dict(type='mmdense.SelfSupPretrained', part='detector', checkpoint={backbone!r})"
        lines = [f'model = dict(type={cfg.model.detector.type!r}, init_cfg={fill})', *lines]
        where = f'The detector is {backbone}; in a config of mmdet, all of it, or its backbone:'
    elif lines:
        where += '; in a config of mmdet, or of mmseg:'
    return [where, *lines]


def describe_next_steps(request: Request) -> List[str]:
    """Return what to do with the backbone of a finished run: commands, and lines of plain PyTorch.

    Args:
        request (Request): Request of the run.

    Returns:
        list[str]: Lines; empty where there is no backbone.
    """
    if not osp.exists(request.backbone):
        return []
    backbone, images = shlex.quote(request.backbone), shlex.quote(request.paths[0])
    lines = describe_pytorch(request)
    target, others = 'timm', 'for timm, torchvision, mmpretrain, onnx'
    if 'torchvision' not in lines[0]:
        target, others = 'mmpretrain', 'for mmpretrain, onnx'
    commands = {
        f'mmdense show {backbone} {images}': 'pictures of what the features see',
        f'mmdense report {shlex.quote(request.folder)}': 'one page of the run',
        f'mmdense check {backbone} --images {images}': 'whether the features collapsed',
        f'mmdense export {backbone} --to {target}': others,
    }
    channels = Config.fromfile(request.config).model.backbone.get('in_channels', 3)
    if channels != 3:  # pictures are drawn of colors alone
        del commands[f'mmdense show {backbone} {images}']
    width = max(map(len, commands))
    steps = [f'  {command:{width}}  {about}' for command, about in commands.items()]
    return ['Next:', *steps, 'In plain PyTorch:', *(f'  {line}' for line in lines)]


def describe_pytorch(request: Request) -> List[str]:
    """Return three lines of Python that build the backbone of a run and fill it."""
    model = Config.fromfile(request.config).model
    backbone = model.backbone.to_dict()
    backbone = _without_scopes(as_transferred(backbone))
    backbone.pop('init_cfg', None)
    kind = backbone.pop('type')
    kind = kind if isinstance(kind, str) else kind.__name__
    usual = {'depth', 'norm_cfg', 'out_indices', 'zero_init_residual', 'frozen_stages'}
    weights = f"torch.load({request.backbone!r}, weights_only=True)['state_dict']"
    if 'detector' in model:
        named = f'{weights}.items() if k[:9] == "backbone."'
        weights = f'{{k[9:]: v for k, v in {named}}}'
    if kind == 'mmpretrain.ResNet' and set(backbone) <= usual:
        return [
            'import torch, torchvision',
            f'model = torchvision.models.resnet{backbone["depth"]}()',
            f'model.load_state_dict({weights}, strict=False)  # all but fc, the classifier',
        ]
    arguments = ', '.join(f'{k}={v!r}' for k, v in backbone.items())
    package, _, name = kind.rpartition('.')
    package = package or 'mmpretrain'
    return [
        f'import torch, {package}.models',
        f'model = {package}.models.{name}({arguments})',
        f'model.load_state_dict({weights})',
    ]


def _without_scopes(value: Any) -> Any:
    """Return a value without what MMEngine adds to configs of other packages."""
    if not isinstance(value, dict):
        return value
    return {k: _without_scopes(v) for k, v in value.items() if k != '_scope_'}


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
    parts = ['mmdense', 'pretrain', *map(shlex.quote, request.paths), *words]
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


def _epochs_done(request: Request) -> int:
    """Return the complete epochs of the newest checkpoint; 0 without one."""
    path = latest_complete_checkpoint(request.folder)
    if path is None:
        return 0
    match = re.fullmatch(r'epoch_(\d+)\.pth', osp.basename(path))
    if match:
        return int(match[1])
    return int(read_checkpoint(path).get('meta', {}).get('epoch', 0))


def _set_epochs(config: str, epochs: int) -> None:
    """Set the epochs in the config of a run, and leave everything else as it is.

    Raises:
        InputError: The config names them in a way that is not understood.
    """
    with open(config, encoding='utf-8') as file:
        text = file.read()
    changed, number = re.subn(r'\bmax_epochs\s*=\s*\d+', f'max_epochs={epochs}', text)
    if number == 0:
        changed = f'{text}train_cfg = dict(max_epochs={epochs})\n'
    changed = re.sub(_REASON_OF_EPOCHS, '# epochs: set explicitly, to train longer', changed)
    with one_line_errors(*CONFIG_ERRORS):
        fits = number <= 1 and Config.fromstring(changed, '.py').train_cfg.max_epochs == epochs
    if not fits:
        raise InputError(
            f'--epochs {epochs}: {config} names max_epochs in a way that is not understood; set '
            'train_cfg.max_epochs there by hand, and leave --epochs out'
        )
    with report_write_errors(config):
        write_text(config, changed)


# The comment that `pretrain` writes above the number: its steps are those of the first run.
_REASON_OF_EPOCHS = re.compile(r'# epochs: .*(\n *# .*)*(?=\n *max_epochs)')


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
        paths = [osp.abspath(osp.expanduser(path)) for path in request.paths]
        if isinstance(dataset.get('data_prefix'), list):
            return sorted(dataset.data_prefix) == sorted(paths)
        return paths in ([dataset.get('data_root')], [dataset.get('ann_file')])


def _same_method(request: Request, cfg: Config) -> bool:
    method = find_method(request.options.method, request.options.custom_imports)
    return cfg.model.type == method.recipe.model.type


def _same_backbone(request: Request, cfg: Config) -> bool:
    options = request.options
    recipe = find_method(options.method, options.custom_imports, options.backbone).recipe
    usual = recipe.model.backbone.to_dict()
    wanted = dict(usual, **find_backbone(options.backbone, usual))
    keys = [key for key in ('type', 'depth', 'arch') if key in wanted]
    return all(cfg.model.backbone.get(key) == wanted[key] for key in keys)


def _same_init(request: Request, cfg: Config) -> bool:
    source = cfg.get('load_from') or cfg.model.get('pretrained') or cfg.model.get('init_cfg') or ''
    source = source if isinstance(source, str) else source.checkpoint
    return _same_source(request.options.init, source)


def _same_source(init: str, source: str) -> bool:
    """Return whether a path, a URL or a name is what a config has."""
    if source in (init, osp.abspath(osp.expanduser(init))):
        return True
    with suppress(InputError):  # no name of a recipe
        return source == getattr(hub.find_weights(init), 'url', None)
    return False


def _same_teacher(request: Request, cfg: Config) -> bool:
    return _same_source(request.options.teacher, cfg.model.teacher.checkpoint)


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


def _same_loading(name: str, key: str) -> Callable[[Request, Config], bool]:
    """Return a function that compares an option with an argument of ``LoadImage``."""

    def compare(request: Request, cfg: Config) -> bool:
        step = find_step(cfg.train_dataloader.dataset.pipeline, 'LoadImage')
        return step.config.get(key) == getattr(request.options, name)

    return compare


def _same_exclude(request: Request, cfg: Config) -> bool:
    return cfg.train_dataloader.dataset.exclude == list(request.options.exclude)


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
    teacher=_same_teacher,
    labels=_same_labels,
    ignore_label=_same_value('ignore_label', 'default_hooks.evaluation.data.ignore_index'),
    custom_imports=_same_imports,
    prefix=_same_prefix,
    exclude=_same_exclude,
    value_range=_same_loading('value_range', 'value_range'),
    in_channels=_same_loading('in_channels', 'channels'),
)
