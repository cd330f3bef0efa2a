# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmpretrain.models import EfficientNet

from mmdense.registry import MODELS


@MODELS.register_module()
class EfficientNetLite(EfficientNet):
    """Encode images by EfficientNet-Lite0, EfficientNet-B0 with ReLU6 and without squeeze and
    excitation.

    mmpretrain's class with other layers. The images of the released weights are (x − 127) / 128.

    Args:
        arch (str): 'lite0', the only one. Defaults to 'lite0'.
        act_cfg (dict, optional): Defaults to ``dict(type='ReLU6')``.
        kwargs: Further arguments of mmpretrain's ``EfficientNet``, such as ``out_indices``, from 0
            (the stem, 1/2 of the image) to 6 (1280 channels, 1/32). Defaults to (6, ).
    """

    # those of B0, whose third number, the ratio of squeeze and excitation, is 0
    layer_settings = dict(
        l=[
            [[*block[:2], 0, *block[3:]] for block in stage]
            for stage in EfficientNet.layer_settings['b']
        ]
    )
    arch_settings = dict(lite0=(1.0, 1.0, 224))
    pixels = dict(mean=[127.0] * 3, std=[128.0] * 3, to_rgb=True)

    def __init__(self, arch: str = 'lite0', act_cfg: Optional[dict] = None, **kwargs) -> None:
        super().__init__(arch, act_cfg=act_cfg or dict(type='ReLU6'), **kwargs)
