# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from logging import WARNING
from typing import Optional

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop
from mmpretrain.utils import get_ori_model

from mmdense.registry import HOOKS
from mmdense.utils.checks import check_whole
from mmdense.utils.errors import InputError


@HOOKS.register_module()
class RegionWarmupHook(Hook):
    """Keep the weight of DenseSiam's region loss at 0 in the first epochs.

    The loss is computed all the same, so the statistics of its norms move and weight decay acts,
    as in the authors' code (https://github.com/ZwwWayne/DenseSiam), where it starts in epoch 8 of
    10.

    Args:
        epochs (int): Epochs with weight 0. Defaults to 8.
    """

    def __init__(self, epochs: int = 8) -> None:
        check_whole(0, epochs=epochs)
        self.epochs = epochs

    def before_train(self, runner) -> None:
        """Remember the weight of the config."""
        model = get_ori_model(runner.model)
        if getattr(model, 'region_head', None) is None:
            raise InputError(f'RegionWarmupHook: {type(model).__name__} has no region_head')
        self.model, self.weight = model, model.region_weight
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            raise InputError(
                'RegionWarmupHook counts epochs, and this run counts iterations: give it '
                "train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=…), or leave the hook out"
            )
        if self.epochs >= runner.max_epochs:
            print_log(
                f'The region loss never starts: the run has {runner.max_epochs} epochs, and its '
                f'weight is 0 for {self.epochs}. Set epochs of RegionWarmupHook in custom_hooks.',
                logger='current',
                level=WARNING,
            )
        elif runner.epoch < self.epochs:
            print_log(
                f'The region loss starts after {self.epochs} epochs: its weight is 0 before, and '
                f'{self.weight:g} from there on. The loss changes there by a step.',
                logger='current',
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Optional[dict] = None) -> None:
        """Set the weight for this iteration."""
        self.model.region_weight = self.weight if runner.epoch >= self.epochs else 0.0

    def after_train(self, runner) -> None:
        """Set the weight of the config again."""
        self.model.region_weight = self.weight
