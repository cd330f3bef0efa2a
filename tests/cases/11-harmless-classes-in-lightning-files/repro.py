# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where a Lightning/solo-learn file is refused for a class that it only names (and that can stay a placeholder)."""

import sys
import tempfile
import types
import warnings

warnings.filterwarnings('ignore')
import torch
import torchvision


def fake(path, base):
    module, name = path.rsplit('.', 1)
    parts = module.split('.')
    for i in range(1, len(parts) + 1):
        sys.modules.setdefault('.'.join(parts[:i]), types.ModuleType('.'.join(parts[:i])))
    kind = type(name, (base,), {'__module__': module})
    setattr(sys.modules[module], name, kind)
    return kind


callback = fake('pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint', object)
attributes = fake('pytorch_lightning.utilities.parsing.AttributeDict', dict)
config = fake('omegaconf.dictconfig.DictConfig', object)
state = {
    'backbone.' + k: v
    for k, v in torchvision.models.resnet18().state_dict().items()
    if not k.startswith('fc.')
}
node = config()
node.__dict__['_content'] = {'lr': 0.1}
kinds = {
    'callbacks by class': {'callbacks': {callback: {'best_model_score': 1.0}}},
    'AttributeDict': {'hyper_parameters': attributes(lr=0.1)},
    'OmegaConf': {'hyper_parameters': {'cfg': node}},
}
from mmdense.checkpoints import read_checkpoint
from mmdense.utils.errors import CheckpointError

bad = 0
with tempfile.TemporaryDirectory() as d:
    for name, extra in kinds.items():
        torch.save({'state_dict': state, **extra}, f'{d}/x.ckpt')
        try:
            found = read_checkpoint(f'{d}/x.ckpt')
            print(name, 'read,', len(found['state_dict']), 'tensors')
        except CheckpointError as error:
            print(name, '->', str(error)[-200:])
            bad = 1
sys.exit(bad)
