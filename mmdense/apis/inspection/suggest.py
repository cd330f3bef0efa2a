# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Suggest the lines that make a checkpoint fit into a config of a detector or segmenter."""

import copy
import os
from contextlib import suppress
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmdense.checkpoints.architectures import architecture
from mmdense.checkpoints.model_config import saved_model_config
from mmdense.checkpoints.networks import find_network
from mmdense.checkpoints.self_sup_pretrained import Match, SelfSupPretrained
from mmdense.models.utils import map_channels
from mmdense.utils.errors import InputError
from mmdense.utils.log_level import log_level

_INITIALISERS = ('init_cfg', 'pretrained')

_TRAINED = ('frozen_stages', 'norm_eval')


def settings_of(part: dict) -> dict:
    """Return the settings of a part of a config without those that load weights."""
    return {key: value for key, value in part.items() if key not in _INITIALISERS}


def build_module(cfg: dict, scope: str, path: str) -> nn.Module:
    """Build a part of a config.

    Args:
        cfg (dict): The part.
        scope (str): Default scope of the config.
        path (str): Path of the part in the config, for messages.

    Raises:
        InputError: When it cannot be built.
    """
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


def find_style(match: Match) -> str:
    """Return the ``style`` of the file's ResNet, which says where it has its strides."""
    saved = saved_model_config(match.found.meta, parts=[]) or {}
    return (saved.get('backbone') or {}).get('style', 'pytorch')


def write_lines(
    initialiser: SelfSupPretrained,
    path: str,
    parent: dict,
    part: dict,
    match: Match,
    change: 'Change',
    model: dict,
) -> str:
    """Write the lines that make a part of a config load the file.

    Args:
        initialiser (SelfSupPretrained): The initialiser of the file.
        path (str): Path of the part in the config.
        parent (dict): The config around the part.
        part (dict): The part.
        match (Match): The file compared with the part.
        change (Change): The settings that make the file fit.
        model (dict): The config's model.
    """
    settings = _write_settings(initialiser, part, match, change)
    *outer, last = path.split('.')[1:]
    line = f'{last}=dict({settings})'
    if parent.get('pretrained'):
        line = f'pretrained=None, {line}'
    for name in reversed(outer):
        line = f'{name}=dict({line})'
    users = _find_users(model if path == 'model.backbone' else {}, change)
    if users is not None:
        line += ''.join(f', {name}=dict(in_channels={value})' for name, value in users.items())
        return f'model = dict({line})'
    comment = '# in_channels of neck and heads are yours to set'
    if change.channels:
        comment += f': the maps have {list(change.channels)} channels'
    return f'model = dict({line})  {comment}'


def _write_settings(
    initialiser: SelfSupPretrained, part: dict, match: Match, change: 'Change'
) -> str:
    """Write the settings of a part that make it load the file."""
    checkpoint, prefix = initialiser.checkpoint, initialiser.prefix
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
    style = find_style(match)
    if part.get('style', style) != style:
        settings = f'style={style!r}, {settings}'
    if part.get('norm_eval'):
        settings = f'norm_eval=False, {settings}'
    if isinstance(part.get('frozen_stages'), int) and part['frozen_stages'] >= 0:
        settings = f'frozen_stages=-1, {settings}'
    if part.get('pretrained'):
        settings = f'pretrained=None, {settings}'
    return ''.join(f'{key}={value!r}, ' for key, value in change.settings.items()) + settings


class Change(NamedTuple):
    """Hold the change that makes a part of a config that of the file.

    Attributes:
        settings (dict): Settings of the part; with ``_delete_`` they are all of it.
        channels (Sequence[int], optional): Channels of the maps, () where they are not known.
            None: as before.
        strides (Sequence[int]): Strides of the maps in pixels.
    """

    settings: dict
    channels: Optional[Sequence[int]] = None
    strides: Sequence[int] = ()


_STRIDES = (4, 8, 16, 32)  # of four stages


def find_change(
    part: dict,
    match: Match,
    scope: str,
    initialiser: SelfSupPretrained,
    backbone: Optional[dict],
) -> Optional[Change]:
    """Find the change that makes a part fit the file, by building it.

    Args:
        part (dict): A part of a config.
        match (Match): The file compared with the part.
        scope (str): Default scope of the config.
        initialiser (SelfSupPretrained): The initialiser of the file.
        backbone (dict, optional): Config of the file's backbone, if it may take the place of the
            config's own.

    Returns:
        Change, optional: None where none is found.
    """
    if not match.problem:
        return Change({})
    kept = settings_of(part)
    settings = _change_resnet(part, match)
    changed = _build_fitting({**kept, **settings}, scope, initialiser) if settings else None
    if changed:
        same = _measure_maps(changed)[0] == _measure_maps(build_module(kept, scope, 'backbone'))[0]
        return Change(settings) if same else Change(settings, *_measure_maps(changed))
    if not backbone:
        return None
    # the lines set these themselves
    skipped = (*_INITIALISERS, *_TRAINED, '_scope_')
    own = {'type': backbone['type'], **{k: v for k, v in backbone.items() if k not in skipped}}
    if '.' not in own['type']:
        own['type'] = f'{backbone.get("_scope_", "mmpretrain")}.{own["type"]}'
    outputs = part.get('out_indices')
    number = len(outputs if isinstance(outputs, (list, tuple)) else _STRIDES)
    for settings in _choose_stages(own, scope, initialiser, number):
        changed = _build_fitting(settings, scope, initialiser)
        if changed:
            return Change(dict(_delete_=True, **settings), *_measure_maps(changed))
    return None


def _build_fitting(
    settings: dict, scope: str, initialiser: SelfSupPretrained
) -> Optional[nn.Module]:
    """Build a backbone, and return it if the file fits."""
    with suppress(InputError):
        module = build_module(settings, scope, 'backbone')
        return None if initialiser.match(module).problem else module
    return None


def _measure_maps(module: nn.Module) -> Tuple[Sequence[int], Sequence[int]]:
    """Return channels and strides of a backbone's maps; () where it gives none of a small image."""
    size, sizes = 64, []
    hook = module.register_forward_hook(lambda _module, _args, maps: sizes.extend(maps))
    try:
        channels = map_channels(module, size)
        return channels, tuple(size // map_.size(3) for map_ in sizes)
    except Exception:  # whatever a backbone raises
        return (), ()
    finally:
        hook.remove()


def _choose_stages(
    own: dict, scope: str, initialiser: SelfSupPretrained, number: int
) -> Iterator[dict]:
    """Yield a backbone's settings, first with its last stages as maps where it takes
    ``out_indices``."""
    module = _build_fitting(own, scope, initialiser)
    outputs = getattr(module, 'out_indices', None)
    if isinstance(outputs, (list, tuple)) and outputs:
        every = dict(own, out_indices=tuple(range(outputs[-1] + 1)))
        module = _build_fitting(every, scope, initialiser)
        strides = _measure_maps(module)[1] if module else ()
        last = {stride: i for i, stride in enumerate(strides)}
        if len(strides) == len(every['out_indices']) and last.keys() >= set(_STRIDES[-number:]):
            yield dict(own, out_indices=tuple(last[stride] for stride in _STRIDES[-number:]))
    yield own


def _change_resnet(part: dict, match: Match) -> dict:
    """Return the settings that make the config's ResNet that of the file, {} for others."""
    model, file = architecture(match.wanted), architecture(match.found.backbone)
    network = find_network(match.found.backbone) if file.depth and model.depth else None
    if network is None or network.missed or network.config is None:
        return {}
    config, change = network.config, {}
    if model.deep_stem != file.deep_stem:
        change['type'] = config['type'].rpartition('.')[2]
    if model.depth != config['depth'] and 'depth' in part:
        change['depth'] = config['depth']
    return change


def _find_users(model: dict, change: Change) -> Optional[Dict[str, Union[int, List[int]]]]:
    """Return ``in_channels``, where they have to change, of the parts that take the backbone's
    maps: the neck, or without one a segmenter's heads. None where they are not known."""
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
