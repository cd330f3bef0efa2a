# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Writes the backbone that a run starts from: python start.py CONFIG OUT

It is initialised as in the run, by its own code. Its BatchNorm has no statistics yet: it gets those
of the labelled training images, or frozen features would be worse than they have to be."""

import sys
import tempfile

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed
from mmpretrain.models import ResNet

from mmdense.checkpoints import save_backbone
from mmdense.engine.training import prepare_training, train_parser
from mmdense.evaluation import calibrate_on
from mmdense.registry import DATASETS, MODELS

# pixels, for a backbone without an algorithm
_PIXELS = dict(
    type='mmpretrain.SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)


def initialised(path: str):
    """The backbone, and what makes its inputs of pixels."""
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmdense'):
        if cfg.model.type == 'mmpretrain.ResNet':
            set_random_seed(cfg.randomness.seed)
            backbone = MODELS.build(cfg.model)
            backbone.init_weights()
            return backbone, MODELS.build(_PIXELS)
    with tempfile.TemporaryDirectory() as folder:
        runner = prepare_training(train_parser().parse_args([path, '--work-dir', folder]))
        runner._init_model_weights()
        runner.visualizer.close()
    model = runner.model
    backbone = model.get_product() if hasattr(model, 'get_product') else model.backbone
    return backbone, model.data_preprocessor


def main() -> None:
    path, out = sys.argv[1:]
    backbone, preprocessor = initialised(path)
    assert isinstance(backbone, ResNet)
    evaluation = Config.fromfile(path).default_hooks.evaluation
    calibrate_on(backbone, preprocessor, DATASETS.build(evaluation.data.to_dict()))
    save_backbone(backbone.state_dict(), out)


if __name__ == '__main__':
    main()
