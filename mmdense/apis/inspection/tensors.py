# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Describe a checkpoint, and check its tensors without running the network."""

import re
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmdense.checkpoints.architectures import count_by_part
from mmdense.checkpoints.formats import Recognised, recognise
from mmdense.checkpoints.model_config import saved_backbone_config
from mmdense.checkpoints.networks import find_network

_SETTLED = 100  # steps after which little of BatchNorm's first statistics is left, 0.9 ** 100


class Note(NamedTuple):
    """Report one finding.

    Attributes:
        level (str): 'ok', 'note' or 'warning'; 'error' where the file cannot be used like that.
        text (str): One line.
        loads_strictly (bool): Whether it says that the config loads the file by
            ``SelfSupPretrained`` itself.
    """

    level: str
    text: str
    loads_strictly: bool = False


def read(checkpoint: str, prefix: Optional[str] = None) -> Recognised:
    """Read and recognise a checkpoint, path or URL.

    Raises:
        CheckpointError: As :func:`recognise`.
    """
    content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
    return recognise(content, name=checkpoint, prefix=prefix)


def describe(found: Recognised) -> Dict[str, str]:
    """Describe a checkpoint.

    Returns:
        Dict[str, str]: Facts by name, in words; unknown ones are left out.
    """
    meta, tensors = found.meta, found.backbone
    own = meta.get('mmdense') if isinstance(meta.get('mmdense'), dict) else {}
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    weights = sum(v.numel() for k, v in tensors.items() if not k.endswith(statistics))
    facts = {'what': str(found), 'method': found.algorithm_type or own.get('algorithm', '')}
    facts['backbone'] = f'{len(tensors)} tensors, {weights / 1e6:.1f} M parameters'
    facts['product'] = own.get('product', '')
    if found.dropped:
        facts['next to it'] = f'{len(found.dropped)} tensors ({count_by_part(found.dropped)})'
    facts['queue'] = ', '.join(_describe_queues(found.algorithm or {}))
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


def _describe_queues(tensors: Dict[str, Tensor]) -> Iterator[str]:
    """Yield how full each queue is."""
    for name, keys in tensors.items():
        path, _, last = name.rpartition('.')
        if last == 'keys' and f'{path}.filled' in tensors and keys.dim() == 2:
            length, filled = keys.size(1), int(tensors[f'{path}.filled'].flatten()[0])
            yield f'{path} {filled} of {length} keys ({filled / max(length, 1):.0%})'
        elif f'{name}_ptr' in tensors and keys.dim() == 2:
            yield f'{name} {keys.size(1)} keys (the file does not say how many are real)'


def tensor_health(found: Recognised) -> List[Note]:
    """Check that the backbone's tensors are those of a training that went well.

    A new network's BatchNorm has means 0 and variances 1, scales 1 (0 where blocks begin as
    identities) and shifts 0: a file like that was not trained. A channel whose variance is less
    than a millionth of its layer's median gives the same everywhere.
    """
    tensors, notes = found.backbone, []
    floats = {k: v for k, v in tensors.items() if v.is_floating_point()}
    bad = [k for k, v in floats.items() if not torch.isfinite(v).all()]
    if bad:
        text = f'{len(bad)} of {len(tensors)} tensors hold NaN or infinity: {_first_names(bad)}'
        return [Note('error', text)]
    notes.append(Note('ok', f'all {len(tensors)} tensors are finite'))
    network = find_network(tensors, found.meta)
    if network is not None and network.missed:
        missed = network.missed
        text = f'not a whole {network.name}: {len(missed)} missed: {_first_names(missed)}'
        notes.append(Note('error', text))
    zero = [k for k, v in floats.items() if v.dim() > 1 and not v.any()]
    if zero:
        notes.append(Note('warning', f'weights that are 0 throughout: {_first_names(zero)}'))
    norms = [k[: -len('running_var')] for k in floats if k.endswith('running_var')]
    if not norms:
        text = 'no BatchNorm: its tensors do not show whether it was trained'
        if saved_backbone_config(found.meta) or (network is not None and network.config):
            text += '; try --images'
        return [*notes, Note('note', text)]
    steps = [int(v.flatten()[0]) for k, v in tensors.items() if k.endswith('num_batches_tracked')]
    notes.append(_check_training(floats, norms))
    if steps and 0 < max(steps) < _SETTLED:
        text = f'BatchNorm has seen {max(steps)} steps only: its statistics are not settled'
        notes.append(Note('warning', text))
    return [*notes, _check_channels(floats, norms)]


def _check_training(floats: Dict[str, Tensor], norms: List[str]) -> Note:
    """Compare BatchNorms, given by the beginnings of their names, with those of a new network."""
    start = {'running_mean': (0,), 'running_var': (1,), 'weight': (0, 1), 'bias': (0,)}
    untouched = {
        kind: sum(_is_constant(floats.get(f'{norm}{kind}'), values) for norm in norms)
        for kind, values in start.items()
    }
    statistics = min(untouched['running_mean'], untouched['running_var'])
    affine = min(untouched['weight'], untouched['bias'])
    if statistics == len(norms):
        return Note(
            'warning',
            f'NOT TRAINED: the statistics of all {len(norms)} BatchNorms are those of a new '
            'network',
        )
    if affine == len(norms):
        return Note(
            'warning',
            f'NOT TRAINED: the scales and shifts of all {len(norms)} BatchNorms are those of a '
            'new network, though images went through it',
        )
    if statistics or affine:
        return Note(
            'note',
            f'of {len(norms)} BatchNorms {statistics} have the statistics and {affine} the scales '
            'of a new network',
        )
    return Note('ok', f'trained: all {len(norms)} BatchNorms differ from a new network')


def _check_channels(floats: Dict[str, Tensor], norms: List[str]) -> Note:
    """Count the channels that are constant by their BatchNorm's variance."""
    dead, most = 0, ('', 0.0)
    total = 0
    for norm in norms:
        var = floats[f'{norm}running_var']
        if not var.dim():
            continue
        count = int((var <= 1e-6 * var.max() + 1e-12).sum())
        dead, total = dead + count, total + len(var)
        most = max(most, (norm.rstrip('.'), count / max(len(var), 1)), key=lambda pair: pair[1])
    if not dead:
        return Note('ok', f'none of {total} channels is constant')
    return Note(
        'warning' if most[1] > 0.25 else 'note',
        f'{dead} of {total} channels are constant (running_var near 0), most in {most[0]}: '
        f'{most[1]:.0%}',
    )


def _is_constant(tensor: Optional[Tensor], values: Tuple[float, ...]) -> bool:
    if tensor is None:
        return False
    return any(bool((tensor == value).all()) for value in values)


def _first_names(names: List[str]) -> str:
    """Join the first three names."""
    return ', '.join(names[:3]) + (', …' if len(names) > 3 else '')
