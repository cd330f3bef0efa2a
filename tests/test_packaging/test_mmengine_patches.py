# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""One file changes what is MMEngine's: the next release of MMEngine has one place to look at."""

import re
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook, IterTimerHook
from torch import nn
from torch.utils.data import DataLoader

import mmdense
from mmdense.utils import mmengine_patches as patches

ROOT = Path(mmdense.__file__).parent
# Private names of MMEngine's runner, config, loaders and table, and of PyTorch's data loader.
PRIVATE = re.compile(
    r'\b(runner|cfg|config|loader|dataloader|logger|visualizer|CheckpointLoader)\._(?!_)[a-z]'
    r'|MODULE2PACKAGE|_is_init\b|object\.__setattr__|mmengine\w*(\.\w+)* = '
)


def test_no_other_file_does():
    found = []
    for path in sorted(ROOT.rglob('*.py')):
        name = path.relative_to(ROOT).as_posix()
        if name == 'utils/mmengine_patches.py' or name.startswith('.mim/'):
            continue
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            if PRIVATE.search(line):
                found.append(f'{name}:{number} {line.strip()}')
    assert not found, '\n'.join(found)


def test_hooks_of_a_class_are_removed():
    class Timer(IterTimerHook):
        pass

    class Runner:
        hooks = property(lambda self: self._hooks)

    runner = Runner()
    other = Hook()
    runner._hooks = [Timer(), other, IterTimerHook()]
    patches.remove_hooks(runner, IterTimerHook)
    assert runner.hooks == [other]


def test_a_configs_file(tmp_path):
    (tmp_path / 'a.py').write_text('a = 1')
    cfg = Config.fromfile(str(tmp_path / 'a.py'))
    patches.set_config_file(cfg, 'b.py')
    assert cfg.filename == 'b.py' and cfg.to_dict() == dict(a=1)


def test_workers_end():
    loader = DataLoader([1, 2, 3], num_workers=1, persistent_workers=True)
    assert len(list(loader)) == 3
    (worker,) = loader._iterator._workers
    patches.end_workers(loader)
    worker.join(10)
    assert not worker.is_alive()
    assert len(list(loader)) == 3  # by new ones


def test_marked_parts_keep_their_weights():
    from mmcv.cnn import ConvModule
    from mmengine.model import BaseModule

    class Net(BaseModule):
        def __init__(self):
            super().__init__()
            self.conv = ConvModule(1, 1, 1, bias=True)

    model = Net()
    nn.init.constant_(model.conv.conv.bias, 3.0)
    patches.mark_initialized(model, lambda: None)
    model.init_weights()
    model.conv.init_weights()
    assert model.conv.conv.bias.item() == 3.0
    again = Net()
    nn.init.constant_(again.conv.conv.bias, 3.0)
    again.conv.init_weights()
    assert again.conv.conv.bias.item() == 0.0


def test_a_config_is_formatted_once(monkeypatch):
    from mmengine.config import config
    from yapf.yapflib import yapf_api

    calls = []

    def format_code(text, style_config=None, **_):
        calls.append(text)
        return f'{style_config}: {text}', True

    for module in (yapf_api, config):
        monkeypatch.setattr(module, 'FormatCode', format_code, raising=False)
    patches.format_configs_once()
    patches.format_configs_once()  # of a second run in this process
    format_once = config.FormatCode
    assert yapf_api.FormatCode is format_once
    assert format_once('a', style_config='x') == ('x: a', True)
    assert format_once('a', style_config='x') == ('x: a', True)
    assert calls == ['a']
    assert format_once('a', style_config='y') == ('y: a', True)
    for text in 'bcdef':
        format_once(text)
    format_once('a', style_config='x')  # forgotten by then
    assert calls == ['a', 'a', *'bcdef', 'a']


def test_batches_of_one_epoch_are_numbered_from_another():
    from mmengine.runner import EpochBasedTrainLoop

    class Runner:
        model, train_dataloader = nn.Identity(), None

        def call_hook(self, name, batch_idx=None, **_):
            if name == 'before_train_iter':
                seen.append(batch_idx)

    seen = []
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    loop._runner, loop.dataloader, loop._epoch, loop._iter = Runner(), 'abc', 0, 0
    Runner.model.train_step = lambda batch, optim_wrapper: {}
    Runner.optim_wrapper = None
    patches.number_batches_from(loop, 4)
    loop.run_epoch()
    loop.run_epoch()
    assert seen == [4, 5, 6, 0, 1, 2]
