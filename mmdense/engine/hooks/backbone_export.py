# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os.path as osp

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.utils import get_ori_model

from mmdense.checkpoints import describe_product, save_backbone
from mmdense.checkpoints.model_config import saved_backbone_config
from mmdense.registry import HOOKS
from mmdense.utils.errors import MMDenseError

from ..channels import find_loader
from ..events import log_event


@HOOKS.register_module()
class BackboneExportHook(Hook):
    """Name the product of the run in every checkpoint, and write the product alone when
    training ends. Both say how images were loaded: other channels than three, a range of values.

    During the run it keeps the product as ``snapshots/epoch_N.pth``, weights in half precision:
    only the last few checkpoints stay, and ``mmdense report`` shows how features develop.

    Args:
        filename (str, optional): File in the work directory, of the format safetensors if it ends
            so. None writes no file at the end. Defaults to 'backbone.pth'.
        snapshots (int): Number of snapshots, evenly spread over the epochs before the last.
            Defaults to 4.
    """

    def __init__(self, filename: str = 'backbone.pth', snapshots: int = 4) -> None:
        self.filename = filename
        self.snapshots = snapshots

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add ``meta['mmdense']``, and store tensors with their channels first, which other
        programs expect."""
        model = get_ori_model(runner.model)
        if hasattr(model, 'product'):
            checkpoint['meta']['mmdense'] = dict(
                describe_product(model), **_describe_loading(runner)
            )
            checkpoint['state_dict'] = _contiguous(checkpoint['state_dict'])

    def after_train_epoch(self, runner) -> None:
        """Keep a snapshot, if one is due."""
        epoch, last = runner.epoch + 1, runner.max_epochs
        turns = {-(-last * i // (self.snapshots + 1)) for i in range(1, self.snapshots + 1)}
        if not isinstance(runner.train_loop, EpochBasedTrainLoop) or epoch not in turns - {last}:
            return
        path = osp.join(runner.work_dir, 'snapshots', f'epoch_{epoch}.pth')
        try:
            self._write(runner, path, epoch, runner.iter, half=True, cfg=runner.cfg.pretty_text)
        except MMDenseError as error:
            log_event(runner, 'snapshot_failed', f'{error}; training continues', 'ERROR', path=path)

    def after_train(self, runner) -> None:
        """Write the backbone, or what else is the product, if anything was trained."""
        if self.filename is None or runner.iter == 0:
            return
        path = osp.join(runner.work_dir, self.filename)
        # checkpoints hold the complete config; paths in it are private to the user
        backbone = saved_backbone_config(dict(cfg=runner.cfg.pretty_text))
        about = dict(backbone=backbone) if backbone else {}
        if not self._write(runner, path, runner.epoch, runner.iter, **about):
            return
        text = (
            f'Backbone alone: {path}. In mmdet or mmseg: backbone=dict(init_cfg=dict('
            f"type='mmdense.SelfSupPretrained', checkpoint='{path}'))"
        )
        if get_ori_model(runner.model).product == 'detector':
            text = (
                f'Detector alone: {path}. In mmdet: model=dict(init_cfg=dict('
                f"type='mmdense.SelfSupPretrained', part='detector', checkpoint='{path}'))"
            )
        log_event(runner, 'backbone_exported', text, path=path)

    @staticmethod
    def _write(runner, path: str, epoch: int, step: int, half: bool = False, **more) -> bool:
        """Write the product, if there is one; return whether this process wrote it."""
        model = get_ori_model(runner.model)
        if not hasattr(model, 'product') or not is_main_process():
            return False
        tensors = _contiguous(model.get_product().state_dict())
        if half:  # statistics may be out of the range of float16
            tensors = {k: v.half() if v.dim() > 1 else v for k, v in tensors.items()}
        about = {k: v for k, v in describe_product(model).items() if k != 'product'}
        about.update(_describe_loading(runner))
        save_backbone(tensors, path, epoch=epoch, iter=step, **about, **more)
        return True


def _describe_loading(runner) -> dict:
    """Return how images were loaded and normalised, where that is not as usual."""
    load = find_loader(getattr(runner.train_dataloader, 'dataset', None))
    if load is None or (load.channels, load.value_range) == (3, None):
        return {}
    images: dict = dict(channels=load.channels, value_range=load.value_range)
    if load.channels != 3:
        pixels = get_ori_model(runner.model).data_preprocessor
        images.update({name: getattr(pixels, name).flatten().tolist() for name in ('mean', 'std')})
    return dict(images=images)


def _contiguous(tensors: dict) -> dict:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
