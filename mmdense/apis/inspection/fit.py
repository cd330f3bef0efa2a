# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Build the backbone of a detector's or segmenter's config, and fill it from a checkpoint."""

import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch
from mmengine.config import Config
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from mmdense.apis.inspection.suggest import (
    build_module,
    find_change,
    find_style,
    settings_of,
    write_lines,
)
from mmdense.apis.inspection.tensors import Note
from mmdense.checkpoints.model_config import saved_backbone_config, saved_model_config
from mmdense.checkpoints.self_sup_pretrained import Match, SelfSupPretrained
from mmdense.utils.errors import InputError
from mmdense.utils.imagenet import IMAGENET_PIXELS
from mmdense.utils.log_level import log_level
from mmdense.utils.model_index import find_package_folder


class Fit(NamedTuple):
    """Tell how much of a checkpoint one part of a config takes.

    Attributes:
        path (str): Path of the part in the config, such as ``model.backbone``.
        filled (int): Number of tensors that hold the file's numbers after ``init_weights()``
            with ``SelfSupPretrained``. All of them or none.
        total (int): Number of tensors, without ``match.new``.
        match (Match): The file compared with the part.
        notes (list[Note]): Notes on the config's own settings.
        lines (str): Lines to put into the config; '' where nothing makes the file fit that is
            known, or where it loads the file already.
    """

    path: str
    filled: int
    total: int
    match: Match
    notes: List[Note]
    lines: str


def read_config(config: str) -> Config:
    """Read a config by its path, or by ``package::name`` among those of an installed package; the
    file's name is enough. Nothing is installed or downloaded.

    Raises:
        InputError: When there is none, or it cannot be read.
    """
    path = _find_config(config)
    try:
        return Config.fromfile(path)
    except Exception as error:  # it is a program
        raise InputError(
            f'the config {config} cannot be read: {type(error).__name__}: {error}'
        ) from error


def _find_config(config: str) -> str:
    """Return the path of a config that is given as for :func:`read_config`."""
    package, separator, name = config.partition('::')
    if not separator:
        if not os.path.isfile(config):
            raise InputError(f'there is no config {config}: give its path, or mmdet::NAME')
        return config
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InputError(f'{config}: the package {package} is not installed')
    folder = Path(spec.origin).parent
    root = find_package_folder(folder, 'configs')
    if root is None:
        raise InputError(f'{config}: {folder} has no configs')
    name = name if name.endswith('.py') else f'{name}.py'
    if (root / name).is_file():
        return str(root / name)
    found = sorted(path for path in root.rglob('*.py') if path.name == name)
    if len(found) != 1:
        raise InputError(
            f'{package} has {len(found) or "no"} configs {name}; they are below {root}'
        )
    return str(found[0])


def check_fit(
    checkpoint: str, cfg: Config, prefix: Optional[str] = None, backbone: Optional[dict] = None
) -> List[Fit]:
    """Build the parts that a config would fill from a checkpoint, fill them, and compare.

    Args:
        checkpoint (str): Path or URL.
        cfg (Config): A config of mmdet, mmseg, mmpretrain or any other package.
        prefix (str, optional): Take the tensors below this prefix instead.
        backbone (dict, optional): Config of the backbone in the file. Defaults to the one that
            the file holds.

    Returns:
        List[Fit]: One of every ``backbone``, and of a C4 detector's ``shared_head``.

    Raises:
        InputError: When the config has no backbone, or it cannot be built.
        CheckpointError: When the file is no checkpoint that is known.
    """
    parts = [part for part in _find_parts(cfg.get('model'), 'model') if part.has_type]
    if not parts:
        raise InputError(f'{cfg.filename} has no model.backbone to be filled')
    # a backbone of another kind has no shared_head
    replaceable = not any(part.is_shared_head for part in parts)
    return [
        _fit_part(SelfSupPretrained(checkpoint, prefix), cfg, part, backbone, replaceable)
        for part in parts
    ]


class _Part(NamedTuple):
    """Name a part of a config that takes a backbone's weights.

    Attributes:
        path (str): Path in the config.
        parent (dict): The config around it.
        cfg (dict): Its own config.
    """

    path: str
    parent: dict
    cfg: dict

    @property
    def has_type(self) -> bool:
        """Return whether it can be built from a registry."""
        return isinstance(self.cfg.get('type'), str)

    @property
    def is_shared_head(self) -> bool:
        """Return whether it is the last stage, in a C4 detector's head."""
        return self.path.endswith('.shared_head')


def _fit_part(
    initialiser: SelfSupPretrained,
    cfg: Config,
    part: _Part,
    backbone: Optional[dict],
    replaceable: bool,
) -> Fit:
    """Fill one part of a config, see :func:`check_fit`; ``replaceable`` says whether the file's
    backbone may take its place."""
    scope = cfg.get('default_scope') or 'mmengine'
    settings = settings_of(part.cfg)
    match = initialiser.match(build_module(settings, scope, part.path))
    filled = 0
    if not match.problem:
        init_cfg = dict(
            type='mmdense.SelfSupPretrained',
            checkpoint=initialiser.checkpoint,
            prefix=initialiser.prefix,
        )
        module = build_module(dict(settings, init_cfg=init_cfg), scope, part.path)
        with log_level('CRITICAL'):
            module.init_weights()
        filled = _count_equal(module.state_dict(), match)
    notes = [
        *_check_initialiser(initialiser.checkpoint, cfg, part, scope),
        *_check_settings(cfg, part, match),
    ]
    known = backbone or saved_backbone_config(match.found.meta)
    change = find_change(part.cfg, match, scope, initialiser, known if replaceable else None)
    loads_it = any(note.loads_strictly for note in notes)
    done = loads_it and not match.problem and all(n.level in ('ok', 'note') for n in notes)
    lines = ''
    if change is not None and not done:
        lines = write_lines(initialiser, part.path, part.parent, part.cfg, match, change, cfg.model)
    return Fit(part.path, filled, len(match.wanted), match, notes, lines)


def _find_parts(node, path: str) -> Iterator[_Part]:
    """Yield all parts of a config that take a backbone's weights."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ('backbone', 'shared_head') and isinstance(value, dict):
                yield _Part(f'{path}.{key}', node, value)
            else:
                yield from _find_parts(value, f'{path}.{key}')


def _count_equal(tensors: Dict[str, Tensor], match: Match) -> int:
    """Count the tensors that are the file's; a counter that it need not have is one of them."""
    offered = match.offered
    return sum(
        key not in offered or torch.equal(tensors[key], offered[key].to(tensors[key]))
        for key in match.wanted
    )


def filled_by_mmengine(module: nn.Module, checkpoint: str, prefix: Optional[str]) -> Set[str]:
    """Return the tensors that MMEngine's own ``Pretrained`` fills when it is called: it raises no
    error where it fills none."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.fill_(float('nan'))
    with log_level('CRITICAL'), suppress(AssertionError):  # nothing below the prefix
        PretrainedInit(checkpoint, prefix)(module)
    tensors = module.state_dict()
    empty = {k for k, v in tensors.items() if v.is_floating_point() and v.isnan().all()}
    # BatchNorm's counter, which PyTorch may set to 0 without a file, is as its statistics
    return {k for k in tensors if k.replace('num_batches_tracked', 'running_mean') not in empty}


def _check_initialiser(checkpoint: str, cfg: Config, part: _Part, scope: str) -> Iterator[Note]:
    """Yield notes on the weights that the config loads by itself."""
    if cfg.get('load_from'):
        yield Note(
            'warning', f'load_from={cfg.load_from!r} replaces all weights after init_cfg: unset it'
        )
    init_cfg, how = _read_initialiser(part)
    if init_cfg is None:
        yield Note('note', 'as it is the config begins with random weights')
        return
    source = init_cfg['checkpoint']
    if not _is_same_file(source, checkpoint):
        yield Note('note', f'as it is the config loads another file: {how}')
        return
    if 'SelfSupPretrained' in str(init_cfg['type']) or init_cfg.get('_scope_') == 'mmdense':
        text = f'the config loads this file itself, strictly: {how}'
        yield Note('ok', text, loads_strictly=True)
        return
    module = build_module(settings_of(part.cfg), scope, part.path)
    wanted = module.state_dict()
    filled = filled_by_mmengine(module, source, init_cfg.get('prefix'))
    text = f"MMEngine's Pretrained fills {len(filled)} of {len(wanted)} tensors: {how}"
    if len(filled) == len(wanted):
        yield Note('ok', text)
    else:
        more = f', prefix={init_cfg["prefix"]!r}' if init_cfg.get('prefix') else ''
        yield Note('error', f'{text}{more}; it only warns of it in the log: use other lines')


def _read_initialiser(part: _Part) -> Tuple[Optional[dict], str]:
    """Return the ``init_cfg`` with a checkpoint that a part has, and its setting in words; (None,
    '') where it has none."""
    init_cfg = part.cfg.get('init_cfg')
    pretrained = part.cfg.get('pretrained') or part.parent.get('pretrained')
    if isinstance(init_cfg, (list, tuple)) and len(init_cfg) == 1:
        init_cfg = init_cfg[0]
    if isinstance(pretrained, str):
        return dict(type='Pretrained', checkpoint=pretrained), f'pretrained={pretrained!r}'
    if isinstance(init_cfg, dict) and init_cfg.get('checkpoint'):
        how = f'init_cfg of type {init_cfg.get("type")!r} from {init_cfg["checkpoint"]!r}'
        return init_cfg, how
    return None, ''


def _is_same_file(one: str, other: str) -> bool:
    """Return whether two paths or URLs are those of one file."""
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return one == other


def _check_settings(cfg: Config, part: _Part, match: Match) -> Iterator[Note]:
    """Yield notes on settings that undo the loading, or that the file was not trained with."""
    frozen = part.cfg.get('frozen_stages', -1)
    if isinstance(frozen, int) and frozen >= 0:
        kept = _FROZEN.get(frozen, f'the stem and stages 1 to {frozen}')
        stay = 'stay RANDOM, for nothing is loaded' if match.problem else 'stay as loaded'
        yield Note(
            'warning' if match.problem else 'note',
            f'frozen_stages={frozen}: {kept} {stay}; the published protocols train all, '
            'frozen_stages=-1',
        )
    if part.cfg.get('norm_eval', False):
        yield Note(
            'note',
            "norm_eval=True: BatchNorm keeps the file's statistics; the published protocols use "
            'SyncBN with norm_eval=False',
        )
    saved = saved_model_config(match.found.meta, parts=[]) or {}
    style = find_style(match)
    if part.cfg.get('style', style) != style:
        yield Note(
            'warning',
            f'style={part.cfg["style"]!r}, and the file is of style={style!r}: it fits and '
            f'computes something else; set style={style!r}',
        )
    if part.is_shared_head:  # the backbone's maps are its input
        return
    model = cfg.get('model') or {}
    ours = _read_pixels(saved.get('data_preprocessor')) or _read_pixels(IMAGENET_PIXELS)
    theirs = _read_pixels(model.get('data_preprocessor'))
    if theirs is not None and not _is_close(theirs, ours):
        yield Note(
            'warning',
            'data_preprocessor differs from what the file was trained with: set '
            f'mean={list(ours.mean)}, std={list(ours.std)}, bgr_to_rgb={ours.rgb}',
        )


_FROZEN = {0: 'the stem', 1: 'the stem and stage 1'}


class _Pixels(NamedTuple):
    """Hold the settings of a data preprocessor: RGB or BGR, and its normalisation."""

    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    rgb: bool


def _read_pixels(cfg: Optional[dict]) -> Optional[_Pixels]:
    """Return the settings of a data preprocessor's config, None where it does not normalise."""
    if not isinstance(cfg, dict) or not cfg.get('mean') or not cfg.get('std'):
        return None
    rgb = bool(cfg.get('bgr_to_rgb') or cfg.get('to_rgb'))
    return _Pixels(tuple(cfg['mean']), tuple(cfg['std']), rgb)


def _is_close(one: _Pixels, other: _Pixels) -> bool:
    """Return whether two normalisations differ by less than one grey level."""
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std))
    return one.rgb == other.rgb and all(abs(a - b) < 1 for a, b in pairs)


# Parts of the stock configs of mmdet, with an FPN, and of mmseg, that decide how a file fits.
_DETECTOR = dict(
    backbone=dict(
        type='ResNet', depth=50, out_indices=(0, 1, 2, 3), frozen_stages=1, norm_eval=True
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)

_SEGMENTER = dict(
    pretrained='open-mmlab://resnet50_v1c',
    backbone=dict(type='ResNetV1c', depth=50, out_indices=(0, 1, 2, 3)),
    decode_head=dict(in_channels=2048, in_index=3),
    auxiliary_head=dict(in_channels=1024, in_index=2),
)


def stock_lines(checkpoint: str, backbone: Optional[dict] = None) -> List[str]:
    """Return the lines that put a checkpoint into the stock configs of mmdet, and of mmseg.

    Args:
        checkpoint (str): Path or URL.
        backbone (dict, optional): See :func:`check_fit`.

    Returns:
        List[str]: A line for each; empty where nothing is known that makes the file fit.
    """
    configs = [Config(dict(model=m, default_scope='mmpretrain')) for m in (_DETECTOR, _SEGMENTER)]
    fits = [check_fit(checkpoint, cfg, backbone=backbone)[0] for cfg in configs]
    return [fit.lines for fit in fits if fit.lines]


def groups(match: Match) -> str:
    """Count the fitting tensors of a part by group: 'conv1 1 of 1, layer1 15 of 15'."""
    lost = {*match.missing, *match.misshapen}
    counts: Dict[str, List[int]] = {}
    for name in match.wanted:
        count = counts.setdefault(name.split('.')[0], [0, 0])
        count[0] += name not in lost
        count[1] += 1
    return ', '.join(f'{group} {fit} of {all_}' for group, (fit, all_) in counts.items())
