# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re

import pytest
from mmpretrain.models import ResNet


@pytest.fixture(scope='session')
def detectron2_name():
    """torchvision's name of a ResNet's tensor to detectron2's."""

    def rename(key):
        key = re.sub(r'^layer(\d)', lambda m: f'res{int(m[1]) + 1}', key)
        key = key if key.startswith('res') else f'stem.{key}'
        key = key.replace('downsample.0', 'shortcut').replace('downsample.1', 'shortcut.norm')
        return re.sub(r'bn(\d)', r'conv\1.norm', key)

    return rename


@pytest.fixture(scope='session')
def randomize():
    """Changes all numbers of a state dict, in place, to what no model has by itself; returns it."""

    def fill(state):
        for value in state.values():
            value.normal_() if value.is_floating_point() else value.fill_(3)
        return state

    return fill


@pytest.fixture(scope='session')
def random_backbone(randomize):
    """The state dict of a ResNet, none of whose tensors a model has by itself."""
    return lambda depth=18: randomize(ResNet(depth=depth).state_dict())
