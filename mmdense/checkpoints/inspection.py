# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What a checkpoint is, whether it is healthy, and what a detector or segmenter takes of it."""

import copy
import os
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmdense.models.utils import map_channels
from mmdense.utils.errors import InputError
from mmdense.utils.log_level import log_level

from .formats import (
    Recognised,
    architecture,
    count_by_part,
    missed_tensors,
    recognise,
)
from .io import cached_path
from .model_config import saved_backbone_config, saved_model_config
from .self_sup_pretrained import Match, SelfSupPretrained

_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True)  # mean, std, RGB
_SETTLED = 100  # steps after which little of BatchNorm's first statistics is left, 0.9 ** 100


class Note(NamedTuple):
    """One finding.

    Attributes:
        level (str): 'ok', 'note' or 'warning'; 'error' where the file cannot be used like that.
        text (str): One line.
    """

    level: str
    text: str


def read(checkpoint: str, prefix: Optional[str] = None) -> Recognised:
    """Reads and recognises a checkpoint, path or URL.

    Raises:
        CheckpointError: As :func:`recognise`.
    """
    content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
    return recognise(content, name=checkpoint, prefix=prefix)


# ---------------------------------------------------------------- what it is


def describe(found: Recognised) -> Dict[str, str]:
    """What a checkpoint is.

    Returns:
        Dict[str, str]: Facts by name, for people; those that it does not say are left out.
    """
    meta, tensors = found.meta, found.backbone
    own = meta.get('mmdense') if isinstance(meta.get('mmdense'), dict) else {}
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    weights = sum(v.numel() for k, v in tensors.items() if not k.endswith(statistics))
    facts = {'what': str(found), 'method': found.algorithm_type or own.get('algorithm', '')}
    facts['backbone'] = f'{len(tensors)} tensors, {weights / 1e6:.1f} M parameters'
    facts['product'] = own.get('product', '')
    if found.dropped:
        facts['beside it'] = f'{len(found.dropped)} tensors ({count_by_part(found.dropped)})'
    facts['queue'] = ', '.join(_queues(found.algorithm or {}))
    about = {**own, **meta}
    trained = [f'{name} {about[key]}' for name, key in _PROGRESS.items() if _is_plain(about, key)]
    facts['trained'] = ', '.join(trained)
    versions = {name: about.get(key) for name, key in _VERSIONS.items()}
    # MMEngine's has the commit of the current folder behind it
    versions = {k: re.sub('[0-9a-f]{40}$', '', str(v)) for k, v in versions.items() if v}
    facts['written by'] = ', '.join(f'{k} {v}' for k, v in versions.items())
    when = str(meta.get('time', ''))
    facts['written'] = re.sub(
        r'^(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)$', r'\1-\2-\3 \4:\5:\6', when
    )
    # a run is named after its config and the time
    name = re.sub(r'_\d{8}_\d{6}$', '', str(meta.get('experiment_name', '')))
    name = re.sub('_whole$', '.py', name)  # see mmdense.engine.training.keep_config
    facts['config'] = name or ('in the file' if meta.get('cfg') else '')
    return {name: ' '.join(str(value).split()) for name, value in facts.items() if value}


_PROGRESS = {'epoch': 'epoch', 'iteration': 'iter'}
_VERSIONS = {'mmdense': 'version', 'mmengine': 'mmengine_version', 'mmcv': 'mmcv_version'}


def _is_plain(meta: dict, key: str) -> bool:
    return isinstance(meta.get(key), (int, float, str))


def _queues(tensors: Dict[str, Tensor]) -> Iterator[str]:
    """How full each is."""
    for name, keys in tensors.items():
        path, _, last = name.rpartition('.')
        if last == 'keys' and f'{path}.filled' in tensors and keys.dim() == 2:
            length, filled = keys.size(1), int(tensors[f'{path}.filled'].flatten()[0])
            yield f'{path} {filled} of {length} keys ({filled / max(length, 1):.0%})'
        elif f'{name}_ptr' in tensors and keys.dim() == 2:
            yield f'{name} {keys.size(1)} keys (the file does not say how many are real)'


# ---------------------------------------------------------------- its tensors


def tensor_health(found: Recognised) -> List[Note]:
    """Whether the backbone's tensors are those of a training that went well.

    A new network's BatchNorm has means 0 and variances 1, scales 1 (0 where blocks begin as
    identities) and shifts 0: a file like that was not trained. A channel whose variance is less
    than a millionth of its layer's median gives the same everywhere.
    """
    tensors, notes = found.backbone, []
    floats = {k: v for k, v in tensors.items() if v.is_floating_point()}
    bad = [k for k, v in floats.items() if not torch.isfinite(v).all()]
    if bad:
        notes.append(
            Note('error', f'{len(bad)} of {len(tensors)} tensors hold NaN or infinity: {_few(bad)}')
        )
        return notes
    notes.append(Note('ok', f'all {len(tensors)} tensors are finite'))
    network, missed = missed_tensors(tensors)
    if missed:
        notes.append(Note('error', f'not a whole {network}: {len(missed)} missed: {_few(missed)}'))
    zero = [k for k, v in floats.items() if v.dim() > 1 and not v.any()]
    if zero:
        notes.append(Note('warning', f'weights that are 0 throughout: {_few(zero)}'))
    norms = [k[: -len('running_var')] for k in floats if k.endswith('running_var')]
    if not norms:
        text = 'no BatchNorm: its tensors do not show whether it was trained'
        text += '; try --images' * bool(saved_backbone_config(found.meta))
        return [*notes, Note('note', text)]
    return [*notes, *_norm_health(floats, tensors, norms)]


def _norm_health(floats: Dict[str, Tensor], tensors: Dict[str, Tensor], norms: List[str]):
    start = {'running_mean': (0,), 'running_var': (1,), 'weight': (0, 1), 'bias': (0,)}
    untouched = {
        kind: sum(_is_constant(floats.get(f'{norm}{kind}'), values) for norm in norms)
        for kind, values in start.items()
    }
    statistics = min(untouched['running_mean'], untouched['running_var'])
    affine = min(untouched['weight'], untouched['bias'])
    steps = [int(tensors[k].flatten()[0]) for k in tensors if k.endswith('num_batches_tracked')]
    if statistics == len(norms):
        yield Note(
            'warning',
            f'NOT TRAINED: the statistics of all {len(norms)} BatchNorms are those of a new '
            'network',
        )
    elif affine == len(norms):
        yield Note(
            'warning',
            f'NOT TRAINED: the scales and shifts of all {len(norms)} BatchNorms are those of a '
            'new network, though images went through it',
        )
    elif statistics or affine:
        yield Note(
            'note',
            f'of {len(norms)} BatchNorms {statistics} have the statistics and {affine} the scales '
            'of a new network',
        )
    else:
        yield Note('ok', f'trained: all {len(norms)} BatchNorms differ from a new network')
    if steps and 0 < max(steps) < _SETTLED:
        yield Note(
            'warning',
            f'BatchNorm has seen {max(steps)} steps only: its statistics are not settled',
        )
    dead, most = 0, ('', 0.0)
    total = 0
    for norm in norms:
        var = floats[f'{norm}running_var']
        if not var.dim():
            continue
        count = int((var <= 1e-6 * var.max() + 1e-12).sum())
        dead, total = dead + count, total + len(var)
        most = max(most, (norm.rstrip('.'), count / max(len(var), 1)), key=lambda pair: pair[1])
    if dead:
        yield Note(
            'warning' if most[1] > 0.25 else 'note',
            f'{dead} of {total} channels are constant (running_var near 0), most in {most[0]}: '
            f'{most[1]:.0%}',
        )
    else:
        yield Note('ok', f'none of {total} channels is constant')


def _is_constant(tensor: Optional[Tensor], values: Tuple[float, ...]) -> bool:
    if tensor is None:
        return False
    return any(bool((tensor == value).all()) for value in values)


def _few(names: List[str]) -> str:
    return ', '.join(names[:3]) + (', …' if len(names) > 3 else '')


# ---------------------------------------------------------------- its features


def feature_health(
    checkpoint: str,
    folder: str,
    prefix: Optional[str] = None,
    num_images: int = 32,
    size: int = 224,
) -> Tuple[List[str], List[Note]]:
    """How the last stage's features of images are spread, beside a random network's.

    Args:
        checkpoint (str): Path or URL.
        folder (str): Of images, searched with its sub-folders.
        prefix (str, optional): Take the tensors below this prefix instead.
        num_images (int): At most, from all over the folder, at least 2. Defaults to 32.
        size (int): Side in pixels that images are cut to. Defaults to 224.

    Returns:
        tuple[list[str], list[Note]]: Rows of a table, and what they mean. ``std`` and ``rank``
        are those of :class:`~mmdense.engine.hooks.HealthMonitorHook`, of features before any
        projection, normalised to length 1: ``dense`` of cells, ``global`` of images.

    Raises:
        DataError: When there are no images, or fewer than two can be read.
    """
    from torch.utils.data import DataLoader, Subset

    from mmdense.datasets import default_collate
    from mmdense.engine.hooks.health import SIGNS, spread
    from mmdense.utils.errors import DataError
    from mmdense.visualization.levels import calibrate, load_backbones, stage_maps
    from mmdense.visualization.slots import image_loader

    dataset = image_loader(folder, size).dataset
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).round().int()
    images = []
    for batch in DataLoader(Subset(dataset, chosen.tolist()), 1, collate_fn=default_collate):
        if not batch['data_samples'][0].get('unreadable'):
            images.append(batch['inputs'])
    if len(images) < 2:
        raise DataError(f'{folder} has {len(images)} image that can be read: two are needed')
    backbones = load_backbones(_local(checkpoint), prefix)
    inputs = [backbones.preprocessor(dict(inputs=x, data_samples=None))['inputs'] for x in images]
    calibrate(backbones.random, inputs)
    values = {}
    for name in ('pretrained', 'random'):
        maps = stage_maps(getattr(backbones, name), inputs)[-1]
        cells = torch.cat([m.flatten(1).t() for m in maps])
        features = {'dense': cells, 'global': torch.stack([m.mean((1, 2)) for m in maps])}
        for kind, x in features.items():
            for key, value in spread(normalize(x, dim=1)).items():
                values[name, f'{kind}_{key}'] = float(value)
    keys = [key for name, key in values if name == 'random']
    rows = [f'{"":10}  ' + '  '.join(f'{key:>11}' for key in keys)]
    for name in ('pretrained', 'random'):
        rows.append(f'{name:10}  ' + '  '.join(f'{values[name, key]:11.3g}' for key in keys))
    rows.append(
        'std: spread of the features, 0 all alike, 1 all around; rank: directions in which they '
        f'differ, 1 to {cells.size(1)};'
    )
    rows.append(
        'dense: of cells, global: of whole images; more is better; random: as without training'
    )
    notes = []
    for key in keys:
        value = values['pretrained', key]
        sign = next(sign for sign in SIGNS if key.endswith(sign.name))
        if sign.beyond(value, sign.bound):
            # images of one kind are alike without any fault
            level = 'warning' if key.startswith('dense') else 'note'
            notes.append(Note(level, f'{key} is {value:.3g}: {sign.meaning}'))
    if not notes:
        notes.append(Note('ok', f'no collapse: the features of {len(images)} images differ'))
    return rows, notes


def _local(checkpoint: str) -> str:
    """The path of a file that was read already."""
    return cached_path(checkpoint) if '://' in checkpoint else checkpoint


# ---------------------------------------------------------------- a detector or segmenter


_INITIALISERS = ('init_cfg', 'pretrained')
_TRAINED = ('frozen_stages', 'norm_eval')


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


def _build(cfg: dict, scope: str, path: str) -> nn.Module:
    try:
        with DefaultScope.overwrite_default_scope(scope), log_level('CRITICAL'):
            return MODELS.build(copy.deepcopy(cfg))
    except Exception as error:  # whatever a wrong value raises
        text = ' '.join(str(error).split())
        if 'mmcv._ext' in text:
            raise InputError(
                f"{path} of the config needs mmcv's compiled operators, which the mmcv that is "
                'installed does not have: install one that does (docs/faq.md)'
            ) from error
        raise InputError(
            f'{path} of the config cannot be built: {type(error).__name__}: {text[:300]}'
        ) from error


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


def _style(match: Match) -> str:
    """Where the ResNet of the file has its strides."""
    saved = saved_model_config(match.found.meta, parts=[]) or {}
    return (saved.get('backbone') or {}).get('style', 'pytorch')


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


def _lines(checkpoint, prefix, path, parent, part, match, change, model) -> str:
    """Of the config, for this part."""
    if '://' not in checkpoint:  # the config is used elsewhere
        checkpoint = os.path.abspath(os.path.expanduser(checkpoint))
    init_cfg = f"type='mmdense.SelfSupPretrained', checkpoint={checkpoint!r}"
    if prefix is not None:
        init_cfg += f', prefix={prefix!r}'
    if change.settings.get('_delete_'):
        part = {}
    own = part.get('init_cfg')
    if isinstance(own, dict) and set(own) - {'type', 'checkpoint', *({'prefix'} if prefix else ())}:
        init_cfg += ', _delete_=True'  # or the rest of the config's own would stay
    settings = f'init_cfg=dict({init_cfg})'
    style = _style(match)
    if part.get('style', style) != style:
        settings = f'style={style!r}, {settings}'
    if part.get('norm_eval'):
        settings = f'norm_eval=False, {settings}'
    if isinstance(part.get('frozen_stages'), int) and part['frozen_stages'] >= 0:
        settings = f'frozen_stages=-1, {settings}'
    if part.get('pretrained'):
        settings = f'pretrained=None, {settings}'
    settings = ''.join(f'{key}={value!r}, ' for key, value in change.settings.items()) + settings
    *outer, last = path.split('.')[1:]
    line = f'{last}=dict({settings})'
    if parent.get('pretrained'):
        line = f'pretrained=None, {line}'
    for name in reversed(outer):
        line = f'{name}=dict({line})'
    users = _users(model if path == 'model.backbone' else {}, change)
    line += ''.join(f', {name}=dict(in_channels={value})' for name, value in (users or {}).items())
    comment = '  # in_channels of neck and heads are yours to set'
    if change.channels:
        comment += f': the maps have {list(change.channels)} channels'
    return f'model = dict({line}){comment if users is None else ""}'


class _Change(NamedTuple):
    """What makes a part of a config that of the file.

    Attributes:
        settings (dict): Of the part; with ``_delete_`` they are all of it.
        channels (Sequence[int], optional): Of its maps, () where that is not known. None: as
            before.
        strides (Sequence[int]): Of its maps.
    """

    settings: dict
    channels: Optional[Sequence[int]] = None
    strides: Sequence[int] = ()


_STRIDES = (4, 8, 16, 32)  # of four stages


def _change(part, match, scope, initialiser, backbone) -> Optional[_Change]:
    """It was tried; None where there is none. ``backbone`` is the config of that in the file, if
    it may take the place of the config's own."""
    if not match.problem:
        return _Change({})
    kept = {k: v for k, v in part.items() if k not in _INITIALISERS}
    settings = _resnet_change(part, match)
    changed = _try({**kept, **settings}, scope, initialiser) if settings else None
    if changed:
        same = _maps(changed)[0] == _maps(_build(kept, scope, 'backbone'))[0]
        return _Change(settings) if same else _Change(settings, *_maps(changed))
    if not backbone:
        return None
    # what the lines set themselves is left out
    skipped = (*_INITIALISERS, *_TRAINED, '_scope_')
    own = {'type': backbone['type'], **{k: v for k, v in backbone.items() if k not in skipped}}
    if '.' not in own['type']:
        own['type'] = f'{backbone.get("_scope_", "mmpretrain")}.{own["type"]}'
    outputs = part.get('out_indices')
    number = len(outputs if isinstance(outputs, (list, tuple)) else _STRIDES)
    for settings in _with_stages(own, scope, initialiser, number):
        changed = _try(settings, scope, initialiser)
        if changed:
            return _Change(dict(_delete_=True, **settings), *_maps(changed))
    return None


def _try(settings: dict, scope: str, initialiser: SelfSupPretrained) -> Optional[nn.Module]:
    """A backbone, if the file fits it."""
    with suppress(InputError):
        module = _build(settings, scope, 'backbone')
        return None if initialiser.match(module).problem else module
    return None


def _maps(module: nn.Module) -> Tuple[Sequence[int], Sequence[int]]:
    """Channels and strides of a backbone's maps; () where it gives none of a small image."""
    size, sizes = 64, []
    hook = module.register_forward_hook(lambda _module, _args, maps: sizes.extend(maps))
    try:
        channels = map_channels(module, size)
        return channels, tuple(size // map_.size(3) for map_ in sizes)
    except Exception:  # whatever a backbone raises
        return (), ()
    finally:
        hook.remove()


def _with_stages(own: dict, scope: str, initialiser, number: int) -> Iterator[dict]:
    """A backbone's settings, with its last stages as maps where it takes ``out_indices``."""
    module = _try(own, scope, initialiser)
    outputs = getattr(module, 'out_indices', None)
    if isinstance(outputs, (list, tuple)) and outputs:
        every = dict(own, out_indices=tuple(range(outputs[-1] + 1)))
        module = _try(every, scope, initialiser)
        strides = _maps(module)[1] if module else ()
        last = {stride: i for i, stride in enumerate(strides)}
        if len(strides) == len(every['out_indices']) and last.keys() >= set(_STRIDES[-number:]):
            yield dict(own, out_indices=tuple(last[stride] for stride in _STRIDES[-number:]))
    yield own


def _resnet_change(part: dict, match: Match) -> dict:
    """What makes a ResNet of the config that of the file."""
    kinds = [architecture(tensors) for tensors in (match.wanted, match.found.backbone)]
    if not all(kind.startswith('a ResNet-') for kind in kinds):
        return {}
    change = {}
    deep = ['deep stem' in kind for kind in kinds]
    if deep[0] != deep[1]:
        change['type'] = 'ResNetV1c' if deep[1] else 'ResNet'
    model, file = (int(re.match(r'a ResNet-(\d+)', kind).group(1)) for kind in kinds)
    if model != file and 'depth' in part:
        change['depth'] = file
    return change


def _users(model: dict, change: _Change) -> Optional[Dict[str, Union[int, List[int]]]]:
    """``in_channels``, where they have to be others, of what takes the backbone's maps: the neck,
    or without one a segmenter's heads. None where that is not known."""
    channels, users = change.channels, {}
    if channels is None:
        return users
    if change.settings.get('_delete_') and change.strides != _STRIDES[-len(channels) :]:
        return None
    for name in ('neck',) if model.get('neck') else ('decode_head', 'auxiliary_head'):
        part = model.get(name)
        if part is None and name == 'auxiliary_head':
            continue
        old = part.get('in_channels') if isinstance(part, dict) else None
        if isinstance(old, int) and (name != 'neck' or len(channels) == 1):
            indices = [part.get('in_index', -1)]
        elif isinstance(old, (list, tuple)) and (name != 'neck' or len(channels) == len(old)):
            indices = part.get('in_index', range(len(old)))
        else:
            return None
        try:
            new = [channels[i] for i in indices]
        except (IndexError, TypeError):
            return None
        new = new[0] if isinstance(old, int) else new
        if new != (old if isinstance(old, int) else list(old)):
            users[name] = new
    return users


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
