# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re
from typing import Dict, List, Optional, Tuple

from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmdense.registry import WEIGHT_INITIALIZERS
from mmdense.utils.errors import CheckpointError

from .formats import recognise


# Some backbones (mmpretrain's ResNet, which zeroes the last BatchNorm of every
# block) leave weights alone only if the type is literally 'Pretrained'.
@WEIGHT_INITIALIZERS.register_module(name=['SelfSupPretrained', 'Pretrained'])
class SelfSupPretrained:
    """Fills a backbone from a pretraining checkpoint, strictly.

    For any backbone of any OpenMMLab package, in that package's own configs::

        model = dict(backbone=dict(init_cfg=dict(
            type='mmdense.SelfSupPretrained',
            checkpoint='work_dirs/densecl_r50_coco/epoch_800.pth')))

    It finds the backbone in the file by itself (see
    :mod:`mmdense.checkpoints.formats`). Unlike MMEngine's ``Pretrained``, which
    only warns, it stops when a tensor of the backbone is missing from the
    file or has another shape, or when the file holds more layers of a stage
    than the backbone does (another depth). Stages that the backbone does not
    have at all are left out: a C4 detector's backbone takes three, and its
    ``shared_head`` the fourth, with the same ``init_cfg``.

    Args:
        checkpoint (str): Path or URL.
        prefix (str, optional): Take the tensors below this prefix instead.
        map_location (str): As in ``torch.load``. Defaults to 'cpu'.
    """

    def __init__(
        self, checkpoint: str, prefix: Optional[str] = None, map_location: str = 'cpu'
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.map_location = map_location

    def __call__(self, module: nn.Module) -> None:
        """Fills ``module``.

        Raises:
            CheckpointError: One line: what is wrong with the file, or what does
                not fit, and the likely reason.
        """
        init_cfg = getattr(module, 'init_cfg', None)
        if isinstance(init_cfg, (list, tuple)) and len(init_cfg) > 1:
            raise CheckpointError(
                f'init_cfg of {type(module).__name__} lists {len(init_cfg)} initialisers; '
                'any after SelfSupPretrained would overwrite what it fills: give it alone'
            )
        checkpoint = CheckpointLoader.load_checkpoint(
            self.checkpoint, self.map_location, logger='silent'
        )
        found = recognise(checkpoint, name=self.checkpoint, prefix=self.prefix)
        wanted = module.state_dict()
        stages = {key.split('.')[0] for key in wanted}
        offered = {k: v for k, v in found.backbone.items() if k.split('.')[0] in stages}
        self._check(type(module).__name__, wanted, offered, found.backbone)
        module.load_state_dict(offered, strict=False)

        # What was filled must survive the rest of init_weights().
        for part in module.modules():
            if hasattr(part, '_is_init'):
                part._is_init = True
        module.init_cfg = dict(
            type='Pretrained',
            _scope_='mmdense',
            checkpoint=self.checkpoint,
            prefix=self.prefix,
            map_location=self.map_location,
        )
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'SelfSupPretrained: {self.checkpoint}')
        left = len(found.dropped) + len(found.backbone) - len(offered)
        print_log(
            f'SelfSupPretrained: all {len(wanted)} tensors of {type(module).__name__} filled from '
            f'{self.checkpoint} (written by {found.writer}; {left} of other parts left out)',
            logger='current',
        )

    def _check(self, name: str, wanted: dict, offered: dict, backbone: dict) -> None:
        # BatchNorm's batch counter is absent from files of older PyTorch releases.
        missing = [k for k in wanted if k not in offered and not k.endswith('num_batches_tracked')]
        misshapen = [
            f'{k} ({_shape(offered[k])} in the file, {_shape(wanted[k])} in the model)'
            for k in wanted
            if k in offered and offered[k].shape != wanted[k].shape
        ]
        extra = [k for k in offered if k not in wanted]
        problems = [
            f'{len(items)} {what}: {", ".join(items[:3])}{", …" if len(items) > 3 else ""}'
            for what, items in (
                ('missing from the file', missing),
                ('of another shape', misshapen),
                ('more in the file than in the model', extra),
            )
            if items
        ]
        if problems:
            raise CheckpointError(
                f'{self.checkpoint} does not fit {name}; nothing was loaded. Tensors '
                f'{"; ".join(problems)}.{_likely_reason(wanted, backbone)}'
            )


def _shape(tensor: Tensor) -> str:
    return '×'.join(map(str, tensor.shape)) or 'scalar'


def _likely_reason(wanted: Dict[str, Tensor], backbone: Dict[str, Tensor]) -> str:
    if any(k.startswith('stem.') for k in wanted) and 'conv1.weight' in backbone:
        return " The model has a deep stem, the file a plain one: use type='ResNet'."
    in_file, in_model = _resnet(backbone), _resnet(wanted)
    stages = min(len(in_file), len(in_model))
    if in_file[:stages] != in_model[:stages]:
        return f' The file holds {_depth(in_file)}, the model is {_depth(in_model)}: set depth.'
    return ''


def _resnet(tensors: Dict[str, Tensor]) -> List[Tuple[int, int]]:
    """(blocks, convolutions of a block) of each stage; [] if it is no ResNet."""
    stages = []
    while True:
        match = [re.match(rf'layer{len(stages) + 1}\.(\d+)\.conv(\d)\.', k) for k in tensors]
        found = [(int(m.group(1)) + 1, int(m.group(2))) for m in match if m]
        if not found:
            return stages
        stages.append((max(b for b, _ in found), max(c for _, c in found)))


def _depth(stages: List[Tuple[int, int]]) -> str:
    if len(stages) == 4:
        return f'a ResNet-{sum(b * c for b, c in stages) + 2}'
    return f'a network with {[b for b, _ in stages]} blocks'
