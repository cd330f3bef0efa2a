# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
import os.path as osp
from contextlib import suppress
from typing import Dict, List, Optional, Sequence

import torch
from mmengine.dist import all_gather, get_rank, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import Tensor, nn

from mmdense.registry import HOOKS
from mmdense.utils.files import atomic_write, remove_parts

from ..events import log_event


class _WholeFiles(LocalBackend):
    """Write files under another name and rename them when they are complete.

    Args:
        failed (list, optional): A list that gets the errors, which are then not raised.
    """

    def __init__(self, failed: Optional[list] = None) -> None:
        self.failed = failed

    def put(self, obj: bytes, filepath: str) -> None:
        try:
            with atomic_write(str(filepath)) as part, open(part, 'wb') as f:
                f.write(obj)
        except OSError as e:
            if self.failed is None:
                raise
            self.failed.append(e)


register_backend('mmdense.whole_files', _WholeFiles, force=True)


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """Save as MMEngine's ``CheckpointHook``, in runs that may be killed at any moment.

    - A checkpoint, and ``last_checkpoint``, is written under another name, flushed and renamed:
      under their own names there are complete files only.
    - The oldest checkpoint is deleted when the new one is there, not before.
    - A checkpoint that cannot be written (a full disk) is an error line in the log and leaves
      the others alone; the last one of a run ends it with that error.
    - Every process's own buffers, BatchNorm's statistics and a
      :class:`~mmdense.models.FeatureQueue`, are in the file, as ``process_buffers``, where they
      differ; MMEngine keeps those of the first.

    This holds on local disks; elsewhere MMEngine's own way is used.

    Args:
        *args: Arguments of MMEngine's hook.
        **kwargs: Arguments of MMEngine's hook.
    """

    out_of_turn = ''  # the file that save_now wrote
    process_buffers: Dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder, and remove incomplete files of a killed run."""
        super().before_train(runner)
        self.local = isinstance(self.file_backend, LocalBackend)
        if not self.local:
            return
        self.backend_args = dict(backend='mmdense.whole_files')
        if is_main_process() and osp.isdir(self.out_dir):
            remove_parts(self.out_dir)
            # killed between writing a checkpoint and deleting the one it replaces
            self._remove(self._ours(runner.message_hub.runtime_info.get('outdated_ckpts', [])))
        out_of_turn = runner.message_hub.runtime_info.get('out_of_turn_ckpt', '')
        self.out_of_turn = ''.join(self._ours([out_of_turn]))

    def _ours(self, paths: List[str]) -> List[str]:
        """Return the paths of this run: a checkpoint of another run, which this one continues,
        stays."""
        here = osp.abspath(self.out_dir)
        return [path for path in paths if osp.dirname(osp.abspath(path)) == here]

    def save_now(self, runner: Runner) -> None:
        """Save after an iteration, at any interval: ``--resume`` starts from it, and the next
        checkpoint replaces it. All processes call it.

        Raises:
            OSError: It cannot be written.
        """
        step = runner.iter + 1
        before, path = self.out_of_turn, osp.join(self.out_dir, f'iter_{step}.pth')
        if path == self.last_ckpt:  # a regular one was due
            return
        runner.message_hub.update_info('out_of_turn_ckpt', path)
        self._write(runner, osp.basename(path), dict(epoch=runner.epoch, iter=step), by_epoch=False)
        self.out_of_turn = path
        if is_main_process() and before and before != path:
            self._remove([before])

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if not self.local:
            super()._save_checkpoint_with_step(runner, step, meta)
            log_event(runner, 'checkpoint', path=self.last_ckpt, iteration=meta.get('iter'))
            return
        outdated: List[str] = [self.out_of_turn] if self.out_of_turn else []
        if self.max_keep_ckpts > 0:
            before = list(self.keep_ckpt_ids)
            keep = [s for s in before if s != step] + [step]
            old, keep = keep[: -self.max_keep_ckpts], keep[-self.max_keep_ckpts :]
            outdated += [osp.join(self.out_dir, self.filename_tmpl.format(s)) for s in old]
            runner.message_hub.update_info('keep_ckpt_ids', keep)
        filename = self.filename_tmpl.format(step)
        outdated = [path for path in outdated if osp.basename(path) != filename]
        runner.message_hub.update_info('outdated_ckpts', outdated)
        runner.message_hub.update_info('out_of_turn_ckpt', '')
        try:
            self._write(runner, filename, meta, self.by_epoch)
        except OSError as e:
            if self.max_keep_ckpts > 0:
                runner.message_hub.update_info('keep_ckpt_ids', before)
            if self.is_last_train_iter(runner) or runner.iter >= runner.max_iters:
                raise
            log_event(
                runner,
                'checkpoint_failed',
                f'cannot write the checkpoint {filename} to {self.out_dir}: {e.strerror or e}; '
                'training continues, and the checkpoints that are there stay',
                'ERROR',
                path=osp.join(self.out_dir, filename),
                reason=e.strerror or str(e),
            )
            return
        self.out_of_turn = ''
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(keep)
        if is_main_process():
            self._remove(outdated)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.local:
            super()._save_best_checkpoint(runner, metrics)
            return
        before, later, failed = (self.file_backend, self.backend_args), _RemovesLater(), []
        self.file_backend, self.backend_args = later, dict(self.backend_args, failed=failed)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend, self.backend_args = before
        if failed:
            reason = failed[0].strerror or str(failed[0])
            log_event(
                runner,
                'checkpoint_failed',
                f'cannot write the best checkpoint to {self.out_dir}: {reason}; training '
                'continues, and the one before stays',
                'ERROR',
                path=self.out_dir,
                reason=reason,
            )
        else:
            self._remove(later.paths)

    def _write(self, runner: Runner, filename: str, meta: dict, by_epoch: bool) -> None:
        """Write the checkpoint, and then ``last_checkpoint``."""
        self.process_buffers = _gather_buffers(get_ori_model(runner.model))  # by all processes
        previous, self.last_ckpt = self.last_ckpt, osp.join(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                filename,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                last = osp.join(runner.work_dir, 'last_checkpoint')
                with atomic_write(last) as part, open(part, 'w') as f:
                    f.write(self.last_ckpt)
            log_event(runner, 'checkpoint', path=self.last_ckpt, iteration=meta.get('iter'))
        except OSError:
            self.last_ckpt = previous
            runner.message_hub.update_info('last_ckpt', previous)
            raise
        finally:
            self.process_buffers = {}  # the best checkpoint is written by one process alone

    @staticmethod
    def _remove(paths: List[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                os.remove(path)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add every process's own buffers."""
        if self.process_buffers:
            checkpoint['process_buffers'] = self.process_buffers

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take this process's own buffers."""
        # older checkpoints have the statistics of BatchNorm under their own name
        buffers = checkpoint.get('process_buffers') or checkpoint.get('bn_statistics')
        if not buffers:
            return
        written = len(next(iter(buffers.values())))
        if written != get_world_size():
            runner.logger.info(
                f'{written} processes wrote the checkpoint, {get_world_size()} continue: all take '
                "the first one's statistics of BatchNorm; a queue of each process begins empty"
            )
            return
        for name, by_process in buffers.items():
            checkpoint['state_dict'][name] = by_process[get_rank()]


class _RemovesLater(LocalBackend):
    """Note the files to remove."""

    def __init__(self) -> None:
        self.paths: List[str] = []

    def remove(self, filepath: str) -> None:
        self.paths.append(str(filepath))


def _gather_buffers(model: nn.Module) -> Dict[str, Tensor]:
    """Return the buffers that every process has of its own, W×…; {} if all W have equal ones."""
    buffers = dict(model.named_buffers())
    own = {
        f'{prefix}.{name}': buffers[f'{prefix}.{name}']
        for prefix, part in model.named_modules()
        for name in _names_of_own(part)
    }
    if get_world_size() == 1 or not own:
        return {}
    joined = torch.cat([buffer.flatten() for buffer in own.values()])
    by_process = torch.stack(all_gather(joined)).cpu()
    if (by_process == by_process[0]).all():
        return {}
    parts = by_process.split([buffer.numel() for buffer in own.values()], dim=1)
    return {
        name: part.reshape(-1, *buffer.shape).clone()
        for (name, buffer), part in zip(own.items(), parts)
    }


def _names_of_own(part: nn.Module) -> Sequence[str]:
    """Return the names of a module's buffers that differ between processes."""
    if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:
        return 'running_mean', 'running_var'
    return getattr(part, 'process_buffers', ())
