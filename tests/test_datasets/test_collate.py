# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import subprocess
import sys

import torch
from mmengine.registry import FUNCTIONS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from mmdense.datasets import default_collate


class Pairs(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        views = [torch.full((3, 2, 2), float(i)), torch.full((3, 2, 2), -float(i))]
        return dict(inputs=views, data_samples=BaseDataElement(metainfo=dict(i=i)))


def build(**collate_fn):
    return Runner.build_dataloader(
        dict(
            dataset=Pairs(),
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=collate_fn,
        )
    )


def check(dataloader):
    batch = next(iter(dataloader))
    assert [view.shape for view in batch['inputs']] == [(2, 3, 2, 2)] * 2
    assert [sample.i for sample in batch['data_samples']] == [0, 1]


def test_stacks_views_and_lists_samples():
    check(build(type='mmdense.default_collate'))


def test_takes_the_scope_that_inheritance_adds():
    check(build(type='mmdense.default_collate', _scope_='mmdense'))


def test_both_spellings_under_our_scope():
    with DefaultScope.overwrite_default_scope('mmdense'):
        check(build(type='mmdense.default_collate', _scope_='mmdense'))
        check(build(type='default_collate'))  # MMEngine's own: it takes no _scope_


def test_found_under_a_foreign_scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert FUNCTIONS.get('mmdense.default_collate') is default_collate


def test_found_before_mmdense_is_imported():
    code = (
        'from mmengine.registry import FUNCTIONS; print(FUNCTIONS.get("mmdense.default_collate"))'
    )
    out = subprocess.run(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, check=True
    )
    assert 'function default_collate' in out.stdout
