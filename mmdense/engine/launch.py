# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Arguments and runner of tools/train.py and tools/test.py."""

import os
import os.path as osp
import warnings
from typing import List, Optional, Type

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner
from torch import nn

import mmdense.checkpoints  # noqa: F401 - its loader replaces MMEngine's from here on
from mmdense.models.selfsup import SelfSupervisor
from mmdense.registry import MODEL_WRAPPERS
from mmdense.utils.errors import one_line_errors
from mmdense.utils.mmengine_patches import end_workers
from mmdense.utils.plugins import import_modules


def add_common_arguments(parser) -> None:
    """Add the flags that every OpenMMLab tool has."""
    parser.add_argument('--work-dir', help='the directory for logs and checkpoints')
    parser.add_argument('--amp', action='store_true', help='enable automatic mixed precision')
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='disable pin_memory in the data loaders'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as xxx=yyy; a list as key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--custom-imports',
        nargs='+',
        action='extend',
        metavar='MODULE',
        help='modules to import, as custom_imports of a config; their folder is on PYTHONPATH',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def merge_common_arguments(cfg: Config, args) -> None:
    """Apply the flags of :func:`add_common_arguments` to a config."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if getattr(args, 'custom_imports', None):
        _merge_custom_imports(cfg, args.custom_imports)
    loaders = [cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')]
    for loader in filter(None, loaders):
        if cfg.get('default_scope') in ('mmdense', 'mmpretrain'):  # mmdet and mmseg stack no images
            loader.setdefault('collate_fn', dict(type='mmdense.default_collate'))
        if args.no_pin_memory or not torch.cuda.is_available():
            loader.pin_memory = False
        if loader.get('num_workers', 0) == 0:  # PyTorch refuses the combination
            loader.persistent_workers = False


def _merge_custom_imports(cfg: Config, modules: List[str]) -> None:
    """Import modules, and name them in the config, for its copy in the work directory."""
    import_modules(modules)
    found = cfg.get('custom_imports') or {}
    names = found.get('imports', [])
    names = [names] if isinstance(names, str) else names
    cfg.custom_imports = dict(found, imports=list(dict.fromkeys([*names, *modules])))


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, also for several processes without a GPU.

    MMEngine does not support those by itself.
    """
    # mmcv warns at the first color jitter of every worker; harmless
    warnings.filterwarnings('ignore', message="Only use 'alpha' for pillow backend")
    kind = algorithm_class(cfg)
    if kind is not None:
        kind.adapt_config(cfg)
    if cfg.launcher != 'none' and get_device() == 'cpu':
        _prepare_cpu_processes(cfg)
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)


def algorithm_class(cfg: Config) -> Optional[Type[SelfSupervisor]]:
    """Return the class of the config's model; None where it has not mmdense's contract."""
    model = cfg.get('model')
    kind = model.get('type') if isinstance(model, dict) else None
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            kind = registry.get(kind)
    return kind if isinstance(kind, type) and issubclass(kind, SelfSupervisor) else None


class _FirstStep(Hook):
    """Note whether the first step has ended."""

    done = False

    def after_train_iter(self, *_, **__) -> None:
        self.done = True


def train(runner: Runner) -> None:
    """Call ``Runner.train()``; an error before the end of the first step is one line.

    ``Runner.train()`` builds the rest of the config and tries all of it in the first step, so an
    error until then is the config's.
    """
    first = _FirstStep()
    runner.register_hook(first, 'LOWEST')
    try:
        runner.train()
        # Python would end persistent workers by a signal, which PyTorch takes for a fault
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            end_workers(loop.dataloader)
    except Exception:
        with one_line_errors(*(() if first.done else (Exception,))):
            raise


def _prepare_cpu_processes(cfg: Config) -> None:
    """Set gloo instead of nccl, no device ids, and no synchronized BatchNorm."""
    if cfg.launcher == 'slurm':
        # as MMEngine does, without its calls of CUDA
        os.environ['RANK'] = os.environ['SLURM_PROCID']
        os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
        os.environ['LOCAL_RANK'] = os.environ.get('SLURM_LOCALID', '0')
        os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
        os.environ.setdefault('MASTER_PORT', '29500')
    if not is_distributed():
        torch.distributed.init_process_group('gloo')
    cfg.env_cfg = cfg.get('env_cfg', ConfigDict())
    cfg.env_cfg.dist_cfg = ConfigDict(backend='gloo')
    cfg.model_wrapper_cfg = ConfigDict(
        type='mmdense.CPUDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """Wrap a model whose synchronised BatchNorm, which needs a GPU, becomes plain BatchNorm.

    The config does not say everything: a layer's own default may be SyncBN, on maps or on vectors.

    Args:
        module (nn.Module): The model.
        kwargs: Arguments of MMEngine's class.
    """

    def __init__(self, module: nn.Module, **kwargs) -> None:
        number = sum(isinstance(part, nn.SyncBatchNorm) for part in module.modules())
        if number:
            print_log(
                f'No GPU: {number} SyncBN became BN, with statistics per process.',
                logger='current',
            )
        super().__init__(revert_sync_batchnorm(module), **kwargs)
