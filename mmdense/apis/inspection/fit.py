# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch
from mmengine.config import Config
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from mmdense.apis.inspection.suggest import _INITIALISERS, _build, _change, _lines, _style
from mmdense.apis.inspection.tensors import Note
from mmdense.checkpoints.model_config import saved_backbone_config, saved_model_config
from mmdense.checkpoints.self_sup_pretrained import Match, SelfSupPretrained
from mmdense.utils.errors import InputError
from mmdense.utils.log_level import log_level

_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True)  # mean, std, RGB


class Fit(NamedTuple):
    """What one part of a config takes of a checkpoint.

    Attributes:
        path (str): Of the part in the config, such as ``model.backbone``.
        filled (int): Of its tensors those that hold the file's numbers after ``init_weights()``,
            with ``SelfSupPretrained``. All of them or none.
        total (int): How many tensors it has, without ``match.new``.
        match (Match): The file beside it.
        notes (list[Note]): On the config's own settings.
        lines (str): What to put into the config; '' where nothing makes the file fit that is
            known, or where it loads the file already.
    """

    path: str
    filled: int
    total: int
    match: Match
    notes: List[Note]
    lines: str


def read_config(config: str) -> Config:
    """A config by its path, or by ``package::name`` among those of an installed package; of the
    name the file alone is enough. Nothing is installed or downloaded.

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
    package, separator, name = config.partition('::')
    if not separator:
        if not os.path.isfile(config):
            raise InputError(f'there is no config {config}: give its path, or mmdet::NAME')
        return config
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InputError(f'{config}: the package {package} is not installed')
    folder = Path(spec.origin).parent
    roots = [root for root in (folder / '.mim' / 'configs', folder.parent / 'configs')]
    root = next((root for root in roots if root.is_dir()), None)
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


_STRICTLY = 'the config loads this file itself, strictly'


def check_fit(
    checkpoint: str, cfg: Config, prefix: Optional[str] = None, backbone: Optional[dict] = None
) -> List[Fit]:
    """Builds what a config would fill from a checkpoint, fills it, and looks what is in it.

    Args:
        checkpoint (str): Path or URL.
        cfg (Config): Of mmdet, mmseg, mmpretrain or any other package.
        prefix (str, optional): Take the tensors below this prefix instead.
        backbone (dict, optional): Config of the backbone in the file. Defaults to what the file
            says of it.

    Returns:
        List[Fit]: Of every ``backbone``, and of a C4 detector's ``shared_head``.

    Raises:
        InputError: When the config has no backbone, or it cannot be built.
        CheckpointError: When the file is no checkpoint that is known.
    """
    model = cfg.get('model')
    parts = [part for part in _parts(model, 'model') if isinstance(part[2].get('type'), str)]
    if not parts:
        raise InputError(f'{cfg.filename} has no model.backbone to be filled')
    scope = cfg.get('default_scope') or 'mmengine'
    fits = []
    for path, parent, part in parts:
        part_cfg = {k: v for k, v in part.items() if k not in _INITIALISERS}
        initialiser = SelfSupPretrained(checkpoint, prefix)
        match = initialiser.match(_build(part_cfg, scope, path))
        filled = 0
        if not match.problem:
            init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=checkpoint, prefix=prefix)
            module = _build(dict(part_cfg, init_cfg=init_cfg), scope, path)
            with log_level('CRITICAL'):
                module.init_weights()
            filled = _equal(module.state_dict(), match)
        notes = [
            *_own_initialiser(checkpoint, cfg, path, parent, part, scope),
            *_settings(cfg, path, part, match),
        ]
        lines = ''
        known = backbone or saved_backbone_config(match.found.meta)
        if any(path.endswith('.shared_head') for path, _, _ in parts):
            known = None  # a backbone of another kind has none
        change = _change(part, match, scope, initialiser, known)
        loads_it = any(note.text.startswith(_STRICTLY) for note in notes)
        done = loads_it and not match.problem and all(n.level in ('ok', 'note') for n in notes)
        if change is not None and not done:
            lines = _lines(checkpoint, prefix, path, parent, part, match, change, cfg.model)
        fits.append(Fit(path, filled, len(match.wanted), match, notes, lines))
    return fits


def _parts(node, path: str) -> Iterator[Tuple[str, dict, dict]]:
    """(path, what it is in, config) of all that takes a backbone's weights."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ('backbone', 'shared_head') and isinstance(value, dict):
                yield f'{path}.{key}', node, value
            else:
                yield from _parts(value, f'{path}.{key}')


def _equal(tensors: Dict[str, Tensor], match: Match) -> int:
    """How many are the file's; one that it need not have, a counter, counts as such."""
    offered = match.offered
    return sum(
        key not in offered or torch.equal(tensors[key], offered[key].to(tensors[key]))
        for key in match.wanted
    )


def filled_by_mmengine(module: nn.Module, checkpoint: str, prefix: Optional[str]) -> Set[str]:
    """The tensors that MMEngine's own ``Pretrained`` would fill, which never is an error there:
    found out by letting it."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.fill_(float('nan'))
    with log_level('CRITICAL'), suppress(AssertionError):  # nothing below the prefix
        PretrainedInit(checkpoint, prefix)(module)
    tensors = module.state_dict()
    empty = {k for k, v in tensors.items() if v.is_floating_point() and v.isnan().all()}
    # BatchNorm's counter, which PyTorch may set to 0 without a file, is as its statistics
    return {k for k in tensors if k.replace('num_batches_tracked', 'running_mean') not in empty}


def _own_initialiser(checkpoint, cfg, path, parent, part, scope) -> Iterator[Note]:
    """What the config does by itself."""
    if cfg.get('load_from'):
        yield Note(
            'warning', f'load_from={cfg.load_from!r} replaces all weights after init_cfg: unset it'
        )
    init_cfg = part.get('init_cfg')
    pretrained = part.get('pretrained') or parent.get('pretrained')
    if isinstance(init_cfg, (list, tuple)) and len(init_cfg) == 1:
        init_cfg = init_cfg[0]
    if isinstance(pretrained, str):
        init_cfg, how = dict(type='Pretrained', checkpoint=pretrained), f'pretrained={pretrained!r}'
    elif isinstance(init_cfg, dict) and init_cfg.get('checkpoint'):
        how = f'init_cfg of type {init_cfg.get("type")!r} from {init_cfg["checkpoint"]!r}'
    else:
        yield Note('note', 'as it is the config begins with random weights')
        return
    source = init_cfg['checkpoint']
    if not _same_file(source, checkpoint):
        yield Note('note', f'as it is the config loads another file: {how}')
        return
    if 'SelfSupPretrained' in str(init_cfg['type']) or init_cfg.get('_scope_') == 'mmdense':
        yield Note('ok', f'{_STRICTLY}: {how}')
        return
    module = _build({k: v for k, v in part.items() if k not in _INITIALISERS}, scope, path)
    wanted = module.state_dict()
    filled = filled_by_mmengine(module, source, init_cfg.get('prefix'))
    text = f"MMEngine's Pretrained fills {len(filled)} of {len(wanted)} tensors: {how}"
    if len(filled) == len(wanted):
        yield Note('ok', text)
    else:
        more = f', prefix={init_cfg["prefix"]!r}' if init_cfg.get('prefix') else ''
        yield Note('error', f'{text}{more}; it only warns of it in the log: use other lines')


def _same_file(one: str, other: str) -> bool:
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return one == other


def _settings(cfg: Config, path: str, part: dict, match: Match) -> Iterator[Note]:
    """Settings that undo what was loaded, or use it for what it is not."""
    frozen = part.get('frozen_stages', -1)
    if isinstance(frozen, int) and frozen >= 0:
        kept = 'the stem' + (f' and stage{"s" * (frozen > 1)} {_range(frozen)}' if frozen else '')
        stay = 'stay RANDOM, for nothing is loaded' if match.problem else 'stay as loaded'
        yield Note(
            'warning' if match.problem else 'note',
            f'frozen_stages={frozen}: {kept} {stay}; the published protocols train all, '
            'frozen_stages=-1',
        )
    if part.get('norm_eval', False):
        yield Note(
            'note',
            "norm_eval=True: BatchNorm keeps the file's statistics; the published protocols use "
            'SyncBN with norm_eval=False',
        )
    saved = saved_model_config(match.found.meta, parts=[]) or {}
    style = _style(match)
    if part.get('style', style) != style:
        yield Note(
            'warning',
            f'style={part["style"]!r}, and the file is of style={style!r}: it fits and computes '
            f'something else; set style={style!r}',
        )
    if path.endswith('shared_head'):  # gets what the backbone gives
        return
    model = cfg.get('model') or {}
    ours, theirs = _pixels(saved.get('data_preprocessor')), _pixels(model.get('data_preprocessor'))
    if theirs is not None and not _near(theirs, ours or _IMAGENET):
        mean, std, rgb = ours or _IMAGENET
        yield Note(
            'warning',
            'data_preprocessor differs from what the file was trained with: set '
            f'mean={list(mean)}, std={list(std)}, bgr_to_rgb={rgb}',
        )


def _range(last: int) -> str:
    return '1' if last == 1 else f'1 to {last}'


def _pixels(cfg: Optional[dict]) -> Optional[tuple]:
    """(mean, std, RGB) of a data preprocessor."""
    if not isinstance(cfg, dict) or not cfg.get('mean') or not cfg.get('std'):
        return None
    rgb = bool(cfg.get('bgr_to_rgb') or cfg.get('to_rgb'))
    return tuple(cfg['mean']), tuple(cfg['std']), rgb


def _near(one: tuple, other: tuple) -> bool:
    pairs = zip((*one[0], *one[1]), (*other[0], *other[1]))
    return one[2] == other[2] and all(abs(a - b) < 1 for a, b in pairs)


# What matters here of the stock configs of mmdet, with an FPN, and of mmseg.
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
    """What puts a checkpoint into the stock configs of mmdet, and of mmseg.

    Args:
        checkpoint (str): Path or URL.
        backbone (dict, optional): As of :func:`check_fit`.

    Returns:
        List[str]: A line for each; empty where nothing is known that makes the file fit.
    """
    configs = [Config(dict(model=m, default_scope='mmpretrain')) for m in (_DETECTOR, _SEGMENTER)]
    fits = [check_fit(checkpoint, cfg, backbone=backbone)[0] for cfg in configs]
    return [fit.lines for fit in fits if fit.lines]


def groups(match: Match) -> str:
    """The tensors of a part, by group: 'conv1 1 of 1, layer1 15 of 15'."""
    lost = {*match.missing, *match.misshapen}
    counts: Dict[str, List[int]] = {}
    for name in match.wanted:
        count = counts.setdefault(name.split('.')[0], [0, 0])
        count[0] += name not in lost
        count[1] += 1
    return ', '.join(f'{group} {fit} of {all_}' for group, (fit, all_) in counts.items())
