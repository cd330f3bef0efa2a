# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os.path as osp

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmpretrain.utils import get_ori_model

from mmdense.checkpoints import describe_product, save_backbone
from mmdense.registry import HOOKS


@HOOKS.register_module()
class BackboneExportHook(Hook):
    """Marks every checkpoint with what the product of the run is, and writes
    the product alone when training ends.

    Args:
        filename (str, optional): File in the work directory. None writes only
            the mark. Defaults to 'backbone.pth'.
    """

    def __init__(self, filename: str = 'backbone.pth') -> None:
        self.filename = filename

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds ``meta['mmdense']``; tensors lie in memory as everybody expects
        them, with their channels first."""
        model = get_ori_model(runner.model)
        if hasattr(model, 'product'):
            checkpoint['meta']['mmdense'] = describe_product(model)
            checkpoint['state_dict'] = _contiguous(checkpoint['state_dict'])

    def after_train(self, runner) -> None:
        """Writes the backbone, if anything was trained."""
        model = get_ori_model(runner.model)
        if self.filename is None or not hasattr(model, 'product') or not is_main_process():
            return
        if runner.iter == 0:
            return
        path = osp.join(runner.work_dir, self.filename)
        about = {k: v for k, v in describe_product(model).items() if k != 'product'}
        save_backbone(
            _contiguous(model.get_product().state_dict()),
            path,
            epoch=runner.epoch,
            iter=runner.iter,
            **about,
        )
        runner.logger.info(
            f'Backbone alone: {path}. In mmdet or mmseg: backbone=dict(init_cfg=dict('
            f"type='mmdense.SelfSupPretrained', checkpoint='{path}'))"
        )


def _contiguous(tensors: dict) -> dict:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
