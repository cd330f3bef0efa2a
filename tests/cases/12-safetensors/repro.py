# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where a safetensors file is not read."""

import json
import struct
import sys
import tempfile
import warnings

warnings.filterwarnings('ignore')
import torch
import torchvision
from mmpretrain.models import ResNet

import mmdense

header, data = {'__metadata__': {'format': 'pt'}}, b''
for name, tensor in torchvision.models.resnet18().state_dict().items():
    raw = tensor.contiguous().numpy().tobytes()
    header[name] = dict(
        dtype='F32' if tensor.is_floating_point() else 'I64',
        shape=list(tensor.shape),
        data_offsets=[len(data), len(data) + len(raw)],
    )
    data += raw
text = json.dumps(header).encode()
text += b' ' * (-len(text) % 8)
with tempfile.TemporaryDirectory() as d:
    open(f'{d}/model.safetensors', 'wb').write(struct.pack('<Q', len(text)) + text + data)
    net = ResNet(
        18, init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=f'{d}/model.safetensors')
    )
    try:
        net.init_weights()
        print('loaded')
    except Exception as error:
        print(str(error)[-160:])
        sys.exit(1)
