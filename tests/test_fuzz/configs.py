# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Configs as a fuzz target: a shipped recipe with a mistake in it trains, or tools/train.py ends
with one line."""

import copy
import io
import os
import random
import runpy
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from mmengine.config import Config, DictAction
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import runner as mmengine_runner
from mmengine.visualization import Visualizer
from PIL import Image
from tiny_algorithms import algorithms, tiny_form

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / 'tests'))
from processes import leave_configs_unformatted  # noqa: E402

VALUES = [None, -1, 0, 3, 0.5, -0.5, True, False, 'text', '', [], {}, [1, 'a'], dict(a=1)]
VALUES += [dict(type='ResNett'), dict(type='mmdense.NoSuch'), [None], [[]], 'mean', float('nan')]
KINDS = ['value', 'value', 'value', 'remove', 'unknown', 'misspell', 'nest', 'flatten', 'swap']
SECONDS = 300


def recipes(data_root: str) -> dict:
    """Return the COCO recipe of every algorithm, at a tiny size."""
    configs = {}
    for name in algorithms():
        form = tiny_form(name)
        config = Config.fromfile(str(form.config))
        options = dict(option.split('=') for option in form.recipe_options)
        config.merge_from_dict(
            {key: DictAction._parse_iterable(value) for key, value in options.items()}
        )
        dataset = dict(data_root=data_root, data_prefix='')
        config.merge_from_dict(
            {
                'train_dataloader.batch_size': 2,
                'train_dataloader.dataset': dataset,
                'train_cfg.max_epochs': 1,
                'default_hooks.checkpoint': dict(interval=9, save_last=False),
            }
        )
        configs[name] = config.to_dict()
    return configs


def places(node, path=()):
    """The paths of all values, at any depth."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list, tuple)):
            yield from places(value, (*path, key))


def edit(config: dict, path: tuple, kind: str, value, other: tuple) -> None:
    """One mistake, in place."""

    def find(path):
        node = config
        for key in path:
            node = node[key]
        return node

    parent, key = find(path[:-1]), path[-1]
    if isinstance(parent, tuple):
        return
    old = parent[key]
    if kind == 'value':
        parent[key] = value
    elif kind == 'remove':
        del parent[key]
    elif kind == 'unknown' and isinstance(parent, dict):
        parent['no_such_key'] = value
    elif kind == 'misspell':
        if isinstance(old, str):
            parent[key] = old[1:] + old[:1]
        elif isinstance(key, str):
            parent[key + 's'] = parent.pop(key)
    elif kind == 'nest':
        parent[key] = [old]
    elif kind == 'flatten' and isinstance(old, (dict, list)) and old:
        parent[key] = next(iter(old.values())) if isinstance(old, dict) else old[0]
    elif kind == 'swap':
        parent[key] = copy.deepcopy(find(other))


def prepare(folder):
    images = folder / 'images'
    images.mkdir(exist_ok=True)
    rng = np.random.RandomState(0)
    for i in range(4):
        small = Image.fromarray(rng.randint(0, 255, (6, 8, 3)).astype(np.uint8))
        small.resize((96, 72), Image.BICUBIC).save(images / f'{i}.jpg')
    configs = recipes(str(images))
    os.chdir(folder)
    # Half of the time: MMEngine asks compilers for their versions, and formats each config.
    mmengine_runner.collect_env = dict
    leave_configs_unformatted()
    path = folder / 'edited.py'

    def make(number):
        rng = random.Random(number)
        name = rng.choice(list(configs))
        config, done = copy.deepcopy(configs[name]), []
        for _ in range(rng.choice([1, 1, 1, 2])):
            paths = list(places(config))
            step = rng.choice(paths), rng.choice(KINDS), rng.choice(VALUES), rng.choice(paths)
            edit(config, *copy.deepcopy(step))
            done.append(step)
        lines = [f'# {name}: {done}', 'nan = float("nan")']
        lines += [f'{key} = {value!r}' for key, value in config.items()]
        return name, '\n'.join(lines).encode()

    def cases():
        return st.integers(0, 2**62).map(make)

    def check(name, content):
        path.write_bytes(content)
        out, code = io.StringIO(), 0
        sys.argv = ['train.py', str(path), '--work-dir', str(folder / 'work')]
        with redirect_stdout(out), redirect_stderr(out), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                runpy.run_path(str(REPO / 'tools' / 'train.py'), run_name='__main__')
            except SystemExit as ended:
                code = ended.code
            except BaseException:
                code = traceback.format_exc()
        _forget()
        if not code:
            return 'trained'
        last = out.getvalue().strip().splitlines()[-1]
        if code == 1 and last.startswith('mmdense: error: ') and last.isprintable():
            with open(folder / 'lines', 'a') as file:
                file.write(last + '\n')
            return 'refused'
        with open(folder / 'tracebacks', 'a') as file:
            file.write(f'{content.decode().splitlines()[0]}\n{code}\n')
        return 'traceback'

    def _forget():
        """What MMEngine keeps for the process."""
        for log in MMLogger._instance_dict.values():
            for handler in log.handlers:
                handler.close()
        for kind in (MessageHub, MMLogger, DefaultScope, Visualizer, *Visualizer.__subclasses__()):
            kind._instance_dict.clear()

    example = tiny_form().algorithm
    text = ''.join(f'{key} = {value!r}\n' for key, value in configs[example].items())
    return cases, check, (example, text.encode())
