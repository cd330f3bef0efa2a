# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import copy
import os
import re
from contextlib import suppress
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmdense.checkpoints.architectures import architecture
from mmdense.checkpoints.model_config import saved_model_config
from mmdense.checkpoints.self_sup_pretrained import Match, SelfSupPretrained
from mmdense.models.utils import map_channels
from mmdense.utils.errors import InputError
from mmdense.utils.log_level import log_level

_INITIALISERS = ('init_cfg', 'pretrained')

_TRAINED = ('frozen_stages', 'norm_eval')


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


def _style(match: Match) -> str:
    """Where the ResNet of the file has its strides."""
    saved = saved_model_config(match.found.meta, parts=[]) or {}
    return (saved.get('backbone') or {}).get('style', 'pytorch')


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
