# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re
from typing import Dict

from torch import Tensor

_LAYERS = (
    (r'\bpatch_embed\.proj\.', 'patch_embed.projection.'),
    (r'\bblocks\.(?=\d)', 'layers.'),
    (r'(^|\bbackbone\.|\bmodule\.0\.)norm\.', r'\1ln1.'),
    (r'(\.\d+)\.norm([12])\.', r'\1.ln\2.'),
    (r'(\.\d+)\.mlp\.fc1\.', r'\1.ffn.layers.0.0.'),
    (r'(\.\d+)\.mlp\.fc2\.', r'\1.ffn.layers.1.'),
)


def name_vit_layers(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Return tensors of vision transformers, whose layers have timm's names, with mmpretrain's.

    Args:
        tensors (Dict[str, Tensor]): Of an algorithm: networks are below ``backbone.`` and
            ``encoder_k.module.0.``. Names of other networks stay.
    """
    for theirs, ours in _LAYERS:
        tensors = {re.sub(theirs, ours, name): value for name, value in tensors.items()}
    return tensors


def mlp_names(theirs: str, ours: str, layers: int = 3) -> Dict[str, str]:
    """Return the beginnings of an MLP's names in an ``nn.Sequential`` of the authors, and those in
    mmpretrain's ``NonLinearNeck``: linear layer, BatchNorm and ReLU of each layer are numbered.

    Args:
        theirs (str): Beginning of the authors' names, ``encoder.fc.``.
        ours (str): Beginning of ours, ``neck.``.
        layers (int): Largest number of layers. Defaults to 3.
    """
    names = {}
    for i in range(layers):
        names[f'{theirs}{3 * i}.'] = f'{ours}fc{i}.'
        names[f'{theirs}{3 * i + 1}.'] = f'{ours}bn{i}.'
    return names


def name_detectron2_layers(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Return tensors of ResNets and of FPNs, whose layers have detectron2's names, with those of
    mmpretrain and mmdet. Other names stay."""
    for theirs, ours in _DETECTRON2:
        tensors = {re.sub(theirs, ours, name): value for name, value in tensors.items()}
    return tensors


_DETECTRON2 = (
    (r'\bstem\.conv1\.norm\.', 'bn1.'),
    (r'\bstem\.conv1\.', 'conv1.'),
    (r'\bres([2-5])\.', lambda match: f'layer{int(match[1]) - 1}.'),
    (r'\.conv([1-3])\.norm\.', r'.bn\1.'),
    (r'\.shortcut\.norm\.', '.downsample.1.'),
    (r'\.shortcut\.', '.downsample.0.'),
    (r'\bfpn_lateral([2-5])\.', lambda match: f'lateral_convs.{int(match[1]) - 2}.'),
    (r'\bfpn_output([2-5])\.', lambda match: f'fpn_convs.{int(match[1]) - 2}.'),
    (r'(_convs\.\d\.)norm\.', r'\1bn.'),
    (r'(_convs\.\d\.)(?!bn\.)', r'\1conv.'),
)
