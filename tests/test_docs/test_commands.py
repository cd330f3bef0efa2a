# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Every command of the documentation is run, or where that takes GPUs, downloads or days its
arguments are read: :file:`pages.py` says which.

bash reads a block, with programs that only write down how they were called; then each call is done
in this process. The world that they are run in:

- ``photos``, 16 images, ``labelled.json`` with boxes of them, ``configs`` and ``tools``;
- ``work_dirs/densecl_photos``, what ``mmdense pretrain photos`` left, a ResNet-50 after an epoch,
  and ``work_dirs/slotcon_photos/epoch_1.pth``;
- where they are run, ``mmdense pretrain`` and ``plan`` get options that make them small, and each
  run a folder of its own.
"""

import argparse
import itertools
import json
import os
import re
import runpy
import shlex
import stat
import subprocess
import sys
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, MODELS, VISUALIZERS, DefaultScope
from pages import CODE, REPO, blocks, english
from tiny_algorithms import tiny_form

from mmdense.apis import hub
from mmdense.cli import main
from mmdense.cli.main import build_parser
from mmdense.compat import FIXES
from mmdense.engine.training import train_parser

EXAMPLE = tiny_form()

# Where a command is run; they come last, so they win.
SMALL = ['--size', '64', '--workers', '0']
SMALL_OF = {
    'pretrain': [*SMALL, '--backbone', 'resnet18', '--epochs', '1'],
    'plan': [*SMALL, '--backbone', 'resnet18'],
    'show': ['--size', '64', '--number', '1'],
}
NEEDS = {
    '--for mmdet': 'mmdet',
    '--to timm': 'timm',
    '--to onnx': 'onnxruntime',
    ' completion ': 'shtab',
}
# What a block may call. All of them only write down their arguments.
PROGRAMS = ['mmdense', 'python', 'bash', 'make', 'pip', 'mim', 'pip-audit', 'mkdir', 'ln', 'ls']

BLOCKS = [b for path in english() for b in blocks(path) if b.language in CODE]
SHELL = [b for b in BLOCKS if b.language != 'python']
RUN = [b for b in SHELL if b.how == 'run']


def place(block):
    return block.place


# ---------------------------------------------------------------- reading


@pytest.fixture(scope='session')
def recorder(tmp_path_factory):
    """Runs a script; the programs that it called, with their arguments."""
    folder = tmp_path_factory.mktemp('programs')
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\0" {name} "$@" "" >> "$RECORD"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def record(script):
        path = folder / 'record'
        path.write_bytes(b'')
        done = subprocess.run(
            ['/bin/bash', '-euc', script],
            env={'PATH': str(folder), 'RECORD': str(path), 'HOME': str(folder)},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f'{script}\n{done.stderr}'
        calls = path.read_bytes().decode().split('\0\0')[:-1]
        return [call.split('\0') for call in calls]

    return record


def script_of(block):
    """What a reader would type; of synopses, with everything that is optional."""
    text = block.text
    if text.startswith('$ '):  # with output
        lines = text.replace('\\\n', ' ').splitlines()
        text = '\n'.join(line[2:] for line in lines if line.startswith('$ '))
    if block.how == 'parsed':
        text = text.replace('[the same flags]', '')
        for _ in range(2):  # one in another
            text = re.sub(r' \[(--[^\[\]]*|[A-Z]+(?: …)?|…)\]', r' \1', text)
        text = re.sub(r'(?<=\w)(\|\w+)+', '', text)  # --to a|b|c
        text = re.sub(r' …| CONFIG(?= --help)', '', text)
        text = re.sub(r'(?<=-gpus) N\b', ' 2', text)
    # variables of blocks before this one
    assignment = r'(?m)^[A-Z]+=(?:"[^"]*"|\$\([^\n]*\)\S*|[^\s"$]\S*)$'
    earlier = [b.text for b in SHELL if b.page == block.page and b.line < block.line]
    return '\n'.join([*re.findall(assignment, '\n'.join(earlier)), text])


class _ReadError(Exception):
    pass


@contextmanager
def only_parsing(seen):
    """Programs end where they have read their arguments."""
    parse = argparse.ArgumentParser.parse_args

    class Parsed(BaseException):
        pass

    def parse_args(self, *args, **kwargs):
        seen.append(parse(self, *args, **kwargs))
        raise Parsed

    def error(self, message):
        raise _ReadError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
        patch.setattr(argparse.ArgumentParser, 'error', error)
        with suppress(Parsed):
            yield


def read_arguments(call, monkeypatch):
    """Checks what can be checked of a call without doing it."""
    program, *arguments = call
    for argument in arguments:
        if re.match(r'(configs|tools|tests|benchmarks|requirements)/[\w./*-]+$', argument):
            assert (REPO / argument).exists(), f'{argument} does not exist'
    if program == 'mmdense' or arguments[:2] == ['-m', 'mmdense']:
        read_mmdense(arguments[2:] if program == 'python' else arguments)
    elif program == 'python':
        read_python(arguments, monkeypatch)
    elif program == 'bash':
        assert arguments[0] in ('tools/dist_train.sh', 'tools/slurm_train.sh', 'tools/dist_test.sh')
        slurm = 'slurm' in arguments[0]
        config, flags = (arguments[3], arguments[5:]) if slurm else (arguments[1], arguments[3:])
        assert slurm or re.fullmatch(r'\d+|GPUS', arguments[2])
        read_training([config, *flags])
    elif program == 'make':
        targets = (REPO / 'Makefile').read_text()
        for target in arguments:
            assert '=' in target or re.search(rf'(?m)^[\w\- ]*\b{target}\b[\w\- ]*:', targets), (
                target
            )
    elif program in ('pip', 'mim'):
        pins = {p for line in FIXES.values() for packages in line.values() for p in packages}
        for pin in arguments:
            assert '==' not in pin or pin in pins, f'{pin} is not what mmdense was tried with'


def read_mmdense(arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'error', _raise)
        args = build_parser().parse_args(arguments)
    for published in (getattr(args, 'init', None), args.command == 'download' and args.name):
        if published and published != 'NAME':
            hub.find_weights(published)


def _raise(parser, message):
    raise _ReadError(message)


def read_python(arguments, monkeypatch):
    script = arguments[0]
    if script == '-c':
        return compile(arguments[1], '-c', 'exec')
    if script == 'tools/train.py':
        return read_training(arguments[1:])
    if re.search(r'(^mmdetection|\.mim)/tools/train\.py$', script):  # mmdet's or mmseg's
        assert (REPO / arguments[1]).exists()
        return read_training(arguments[1:])
    assert (REPO / script).exists(), script
    if script.startswith('tests/'):
        return None
    seen = []
    monkeypatch.setattr(sys, 'argv', arguments)
    monkeypatch.syspath_prepend(str(REPO / 'tools'))
    monkeypatch.syspath_prepend(str(REPO / Path(script).parent))
    monkeypatch.chdir(REPO)
    with only_parsing(seen):
        try:
            runpy.run_path(str(REPO / script), run_name='__main__')
        except SystemExit as ended:
            assert '--help' in arguments and not ended.code
            return None
    assert seen, f'{script} read no arguments'
    for task in getattr(seen[0], 'to', None) or ():
        assert task == 'TASK' or list(REPO.glob(f'configs/transfer/mm*/{task}.py')), task


def read_training(arguments):
    """Of tools/train.py; mmdet's and mmseg's take the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'error', _raise)
        args = train_parser().parse_args(arguments)
    if args.config.startswith('configs/'):
        cfg = Config.fromfile(str(REPO / args.config))
        for key, value in (args.cfg_options or {}).items():
            at = cfg
            for part in key.split('.')[:-1]:  # the last may be new
                at = at[int(part)] if isinstance(at, (list, tuple)) else at[part]
            cfg.merge_from_dict({key: value})


@pytest.mark.parametrize('block', SHELL, ids=place)
def test_arguments(block, recorder, monkeypatch, capsys):
    """Of what is run, too: the other test makes it small, and would not notice all."""
    calls = recorder(script_of(block))
    assert calls, f'{block.place} calls nothing'
    for call in calls:
        try:
            read_arguments(call, monkeypatch)
        except _ReadError as error:
            pytest.fail(f'{block.place}: {shlex.join(call)}: {error}')


def test_a_mistake_is_seen(monkeypatch):
    recipe = f'configs/{EXAMPLE.recipe}.py'
    for wrong in (
        'mmdense pretrain photos --epoch-number 3',
        'mmdense check',
        'mmdense download algorithm_r77',
        'python tools/train.py configs/algorithm_r77.py',
        'python tools/convert_dataset.py photos',
        f'bash tools/dist_train.sh {recipe} 8 --no-such-flag',
        f'python tools/train.py {recipe} --cfg-options model.haed.temperature=1',
        'python tools/transfer.py a.pth --to fcn_r77',
        'make no-such-target',
        'pip install onedl-mmcv==1.0',
    ):
        with pytest.raises((_ReadError, AssertionError, LookupError, ValueError)):
            read_arguments(wrong.split(), monkeypatch)


# ---------------------------------------------------------------- running


@pytest.fixture(scope='session')
def world(tmp_path_factory, images, with_prototypes):
    """See above."""
    from mmdense.checkpoints import describe_product

    folder = tmp_path_factory.mktemp('world')
    for link in ('configs', 'tools', 'mmdense'):
        (folder / link).symlink_to(REPO / link)
    (folder / 'photos').symlink_to(images)
    names = dict(enumerate(sorted(os.listdir(images))))
    labelled = dict(
        images=[dict(id=i, file_name=name) for i, name in names.items()],
        annotations=[dict(image_id=i, category_id=1, bbox=[8, 8, 30, 30]) for i in names],
        categories=[dict(id=1, name='thing')],
    )
    (folder / 'labelled.json').write_text(json.dumps(labelled))
    command = ['pretrain', 'photos', '--epochs', '1', '-q', *SMALL]
    done = subprocess.run(
        [sys.executable, '-m', 'mmdense', *command],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=f'{REPO}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    config, model, _ = with_prototypes(16)
    path = folder / 'work_dirs' / f'{config.model.type.lower()}_photos' / 'epoch_1.pth'
    path.parent.mkdir()
    meta = dict(cfg=config.pretty_text, mmdense=describe_product(model))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return folder


_number = itertools.count()
PRINTED = {}  # by the calls of this session


def run_call(call, capfd, monkeypatch):
    """Does it in this process; what it printed."""
    program, *arguments = call
    capfd.readouterr()
    code = 0
    try:
        if program == 'mmdense':
            command = arguments[0]
            arguments = arguments + SMALL_OF.get(command, [])
            if command == 'pretrain' and '--resume' not in arguments:
                arguments += ['--out', f'work_dirs/run{next(_number)}']
            main(arguments)
        elif program == 'python' and arguments[0].startswith('tools/'):
            monkeypatch.setattr(sys, 'argv', arguments)
            runpy.run_path(str(REPO / arguments[0]), run_name='__main__')
        else:
            pytest.fail(f'{shlex.join(call)} is not run: say why by <!-- test: parsed, WHY -->')
    except SystemExit as ended:
        code = ended.code
    printed = capfd.readouterr()
    assert not code, f'{shlex.join(call)}\n{printed.out}{printed.err}'
    return printed.out + printed.err


def first_words(text):
    words = (re.findall(r'[A-Za-z_]+', line) for line in text.splitlines())
    return {line[0] for line in words if line}


@pytest.mark.parametrize('block', RUN, ids=place)
def test_runs(block, recorder, world, monkeypatch, capfd, require):
    for words, package in NEEDS.items():
        if words in block.text:
            require(package)
    monkeypatch.chdir(world)
    monkeypatch.delenv('MMDENSE_TRACEBACK', raising=False)
    printed = ''
    for call in recorder(script_of(block)):
        key = tuple(call)
        if key not in PRINTED:  # pages repeat themselves
            PRINTED[key] = run_call(call, capfd, monkeypatch)
        printed += PRINTED[key]
    if '$ ' in block.text[:2]:  # the lines shown are of the kind that is printed
        shown = '\n'.join(line for line in block.text.splitlines() if not line.startswith('$ '))
        assert shown.strip(), f'{block.place} shows no output'
        unknown = first_words(shown) - first_words(printed)
        assert not unknown, f'{block.place} shows lines that begin with {unknown}\n{printed}'


# ---------------------------------------------------------------- configs


CONFIGS = [b for b in BLOCKS if b.language == 'python' and b.how != 'module']


@pytest.mark.parametrize('block', CONFIGS, ids=place)
def test_configs(block, world, monkeypatch, require, request):
    """Python in the documentation is configs: they load, and what they say is built."""
    base = block.directive.partition(' ')[2]
    monkeypatch.chdir(world)
    text = block.text
    if block.how == 'config':
        require(base.split('::')[0])
        if not text.startswith('_base_'):
            text = f"_base_ = __import__('mmdense') and {base!r}\n{text}"
    path = world / f'config{next(_number)}.py'
    path.write_text(text)
    cfg = Config.fromfile(str(path))
    if block.how == 'parsed':
        return
    scope = base.split('::')[0]
    if scope == 'mmdense':
        with DefaultScope.overwrite_default_scope(scope):
            MODELS.build(cfg.model)
            if 'photos' in text:
                assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 16
            if 'Hook' in text:
                if not (world / 'data').exists():
                    (world / 'data').symlink_to(request.getfixturevalue('data_root'))
                for hook in cfg.default_hooks.values():
                    HOOKS.build(hook)
            if 'vis_backends' in text:
                require('tensorboard')
                folder = world / f'vis{next(_number)}'
                visualizer = dict(cfg.visualizer, name=folder.name, save_dir=str(folder))
                visualizer = VISUALIZERS.build(visualizer)
                visualizer.add_scalar('loss', 1.0)
                visualizer.close()
                assert len(list(folder.rglob('events.out*'))) == 1
                assert len(list(folder.rglob('scalars.json'))) == 1
        return
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    parts = [cfg.model.backbone]
    if 'shared_head' in text:
        parts.append(cfg.model.roi_head.shared_head)
    file = torch.load(f'work_dirs/{EXAMPLE.method}_photos/backbone.pth', weights_only=False)[
        'state_dict'
    ]
    with DefaultScope.overwrite_default_scope(scope):
        for part in parts:
            model = MODELS.build(part)
            model.init_weights()
            state = model.state_dict()
            assert len(state) > 50
            for name, tensor in state.items():
                assert torch.equal(tensor, file[name]), name
