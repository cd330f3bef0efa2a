# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Fill a backbone or an algorithm from a checkpoint, strictly."""

import re
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn import functional as F

from mmdense.models.layers import MomentumEncoder
from mmdense.registry import WEIGHT_INITIALIZERS
from mmdense.utils.errors import CheckpointError, InputError
from mmdense.utils.mmengine_patches import mark_initialized

from .architectures import (
    LAST_STAGE,
    architecture,
    count_by_part,
    has_deep_stem,
    resnet_stages,
)
from .dialects import translate
from .formats import Recognised, check_finite, recognise
from .input_channels import adapt_weight, check_way, find_other_input
from .networks import describe_network


# Some backbones (mmpretrain's ResNet, which zeroes the last BatchNorm of every
# block) leave weights alone only if the type is literally 'Pretrained'.
@WEIGHT_INITIALIZERS.register_module(name=['SelfSupPretrained', 'Pretrained'])
class SelfSupPretrained:
    """Fill a backbone, or a complete algorithm, from a checkpoint, strictly.

    For any backbone of any OpenMMLab package, in that package's own configs::

        model = dict(backbone=dict(init_cfg=dict(
            type='mmdense.SelfSupPretrained',
            checkpoint='work_dirs/densecl_r50_coco/epoch_800.pth')))

    It finds the backbone in the file by itself (see
    :mod:`mmdense.checkpoints.formats`). Unlike MMEngine's ``Pretrained``, which
    only warns, it stops when a tensor of the backbone is missing from the
    file or has another shape, when the file holds more layers of a stage
    than the backbone does (another depth), or numbers that are not finite.
    Stages that the backbone does not have at all are left out: a C4 detector's
    backbone takes three, and its ``shared_head`` the fourth, with the same
    ``init_cfg``. ConvNeXt, Swin and their like have a norm for each map that they
    return: norms of maps that the training did not use begin anew, and the log
    names them.

    So do the layers that a detector adds to a backbone and no pretraining has: the offsets of
    deformable convolutions, those of DetectoRS, and ``plugins``; and those that ``new`` names. A
    deep stem (ResNetV1c, V1d) is filled in the names of mmpretrain, mmdet, mmseg and timm alike, as
    are the names in :mod:`mmdense.checkpoints.dialects`.

    A vision transformer's positions are resized (bicubic) to the size of the model's images, and
    the log says so. Into the blocks of mmseg's MAE and of mmpretrain's ViTSAM, which is ViTDet's,
    a plain vision transformer fills all but the scales, the biases by relative position and the
    relative positions: these begin anew, and the log names them.

    A complete detector is filled from the run that pretrained it, or from a file of that method's
    authors, by ``part='detector'``::

        model = dict(type='mmdense.PreNormDETR', init_cfg=dict(
            type='mmdense.SelfSupPretrained', part='detector',
            checkpoint='work_dirs/updetr_r50_in1k/epoch_60.pth'))

    All of it but the class head is as strict; the class head begins anew.

    One of mmdense's algorithms is filled completely, momentum encoder, queues
    and heads included, as strictly; parts that the model does not have, such as
    PixPro's instance branch, are left out. The momentum schedule begins anew:
    this is another run (``--resume`` continues the same one). tools/train.py
    does this with ``load_from``.

    Args:
        checkpoint (str): Path or URL.
        prefix (str, optional): Take the tensors below this prefix instead.
        map_location (str): As in ``torch.load``. Defaults to 'cpu'.
        new (Sequence[str]): Names of further layers of a backbone, or of parameters, that begin
            anew where the file has nothing of them: 'adapter' stands for every layer of this
            name. Defaults to ().
        in_channels (str, optional): Way to adapt the first convolution where the model takes
            images of another number of channels: 'sum', 'repeat' or 'mean', see
            :func:`~mmdense.checkpoints.input_channels.adapt_weight`. The log says so. Defaults to
            None: such a file is refused.
        part (str): 'backbone', or 'detector' for a complete detector, see above. Defaults to
            'backbone'.

    Raises:
        InputError: ``in_channels`` is no such way, or ``part`` no such part.
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: Optional[str] = None,
        map_location: str = 'cpu',
        new: Sequence[str] = (),
        in_channels: Optional[str] = None,
        part: str = 'backbone',
    ) -> None:
        check_way(in_channels)
        if part not in ('backbone', DETECTOR):
            raise InputError(
                f"SelfSupPretrained: part must be 'backbone' or 'detector', got {part!r}"
            )
        self.part = part
        self.in_channels = in_channels
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.map_location = map_location
        self.new = [new] if isinstance(new, str) else list(new)

    def __call__(self, module: nn.Module) -> None:
        """Fill ``module``.

        Raises:
            CheckpointError: One line: the fault of the file, or the tensors that
                do not fit and the likely reason.
        """
        init_cfg = getattr(module, 'init_cfg', None)
        if isinstance(init_cfg, (list, tuple)) and len(init_cfg) > 1:
            raise CheckpointError(
                f'init_cfg of {type(module).__name__} lists {len(init_cfg)} initialisers; '
                'any after SelfSupPretrained would overwrite what it fills: give it alone'
            )
        match = self.match(module)
        if match.problem:
            raise CheckpointError(match.problem)
        found, wanted, offered = match.found, match.wanted, match.offered
        check_finite(offered, self.checkpoint)
        module.load_state_dict(offered, strict=False)

        mark_initialized(module, _keep_weights)
        module.init_cfg = dict(
            type='Pretrained',
            _scope_='mmdense',
            checkpoint=self.checkpoint,
            prefix=self.prefix,
            map_location=self.map_location,
            new=self.new,
            in_channels=self.in_channels,
            part=self.part,
        )
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'SelfSupPretrained: {self.checkpoint}')
        text = (
            f'SelfSupPretrained: all {len(wanted)} tensors of {type(module).__name__} filled from '
            f'{self.checkpoint} (written by {found.writer}; {len(match.left)} of other parts left '
            'out'
        )
        text += f': {count_by_part(match.left)})' if match.left else ')'
        if match.new:
            text += f'; {len(match.new)} layers begin anew: {", ".join(match.new)}'
        for key, (before, channels) in match.adapted.items():
            text += f'; {key} adapted from {before} to {channels} channels ({self.in_channels})'
        if match.resized:
            text += f'; {match.resized}'
        print_log(text, logger='current')

    def match(self, module: nn.Module, found: Optional[Recognised] = None) -> 'Match':
        """Compare the file with a module, and change nothing.

        Args:
            module (nn.Module): A backbone, an algorithm, or a part of one.
            found (Recognised, optional): The file, where it was read already.

        Raises:
            CheckpointError: When the file is no checkpoint that is known.
        """
        found = found or self._read()
        wanted, new, resized = module.state_dict(), [], ''
        if self.part == DETECTOR:
            return self._match_detector(module, found)
        if hasattr(module, 'as_new_run'):  # an algorithm
            given = self._algorithm_tensors(module, found)
            offered = {k: v for k, v in given.items() if k in wanted or not _lacks_part(module, k)}
            wanted = module.fit_queues(wanted, offered)
        else:
            given = translate(found.backbone, wanted)
            given, resized = _resize_positions(given, wanted, module)
            new = _new_layers(module, given, self.new)
            wanted = {k: v for k, v in wanted.items() if not _is_below(k, new)}
            stages = {key.split('.')[0] for key in wanted}
            offered = {k: v for k, v in given.items() if k.split('.')[0] in stages}
        adapted = {}
        for key, channels in find_other_input(offered, wanted).items() if self.in_channels else ():
            adapted[key] = offered[key].size(1), channels
            offered[key] = adapt_weight(offered[key], channels, self.in_channels)
        left = [key for key in given if key not in offered]
        left += [] if hasattr(module, 'as_new_run') else found.dropped
        match = Match(found, wanted, offered, left, new=new, resized=resized, adapted=adapted)
        match.problem = self._describe_problem(module, match)
        return match

    def _read(self) -> Recognised:
        checkpoint = CheckpointLoader.load_checkpoint(
            self.checkpoint, self.map_location, logger='silent'
        )
        return recognise(checkpoint, name=self.checkpoint, prefix=self.prefix)

    def describe_network(self) -> dict:
        """Return the config of the file's backbone as ``backbone``, and ``mean``, ``std`` and
        ``to_rgb`` of its pixels.

        Raises:
            CheckpointError: One line: the file is no checkpoint that is known, or its tensors do
                not show the network.
        """
        return describe_network(self._read(), self.checkpoint)

    def _match_detector(self, module: nn.Module, found: Recognised) -> 'Match':
        """Compare the file's detector with a detector, whose class head begins anew."""
        given, name = found.detector, type(module).__name__
        if not given:
            raise CheckpointError(
                f"{self.checkpoint} ({found}) holds no detector: part='detector' needs a run that "
                'pretrains one, or a file of its authors. To fill the backbone alone, set init_cfg '
                'of model.backbone, without part'
            )
        heads = [path for path, _ in module.named_modules() if _CLASS_HEAD.search(path)]
        wanted = {k: v for k, v in module.state_dict().items() if not _is_below(k, heads)}
        offered = {k: v for k, v in given.items() if not _CLASS_HEAD.search(k)}
        left = [key for key in given if key not in offered] + [
            key for key in found.algorithm or () if not key.startswith('detector.')
        ]
        match = Match(found, wanted, offered, left, new=heads)
        kind, own = _detector_class(offered), _detector_class(wanted)
        bias, fault = 'neck.convs.0.conv.bias', ''
        if {kind, own} == {'PreNormDETR', 'DETR'}:
            norm = 'pre' if kind == 'PreNormDETR' else 'post'
            fault = f"The file's transformer is {norm}-norm: set type='mmdense.{kind}'."
        elif kind != own:
            fault = f"The file holds another detector: set type='mmdense.{kind}'."
        elif kind == 'DeformableDETR' and (bias in wanted) != (bias in offered):
            fault = f"Set bias={bias in offered} of the detector's neck, as in the file."
        elif not getattr(module, 'keeps_filled_weights', False) and hasattr(module, 'encoder'):
            fault = (
                "mmdet's class initializes its transformer again after it is filled: set "
                f"type='mmdense.{kind}', which is the same network."
            )
        match.problem = self._describe_problem(module, match)
        if fault:
            match.problem = (
                f'{self.checkpoint} ({found}) does not fit {name}; nothing was loaded. {fault}'
            )
        return match

    def _algorithm_tensors(self, module: nn.Module, found: Recognised) -> Dict[str, Tensor]:
        if found.algorithm is None:
            raise CheckpointError(
                f'{self.checkpoint} holds a backbone alone ({found}), not a complete '
                f'{type(module).__name__}: to start from a backbone, set model.pretrained to it '
                'and leave out load_from'
            )
        return module.as_new_run(found.algorithm)

    def _describe_problem(self, module: nn.Module, match: 'Match') -> str:
        wanted, offered, found = match.wanted, match.offered, match.found
        misshapen = [
            f'{k} ({_shape(offered[k])} in the file, {_shape(wanted[k])} in the model)'
            for k in match.misshapen
        ]
        problems = [
            f'{len(items)} {what}: {", ".join(items[:3])}{", …" if len(items) > 3 else ""}'
            for what, items in (
                ('missing from the file', match.missing),
                ('of another shape', misshapen),
                ('more in the file than in the model', match.extra),
            )
            if items
        ]
        name = type(module).__name__
        refusal = f'{self.checkpoint} ({found}) does not fit {name}; nothing was loaded.'
        if not problems:
            misfit = module.find_misfit(offered) if hasattr(module, 'find_misfit') else ''
            return misfit and f'{refusal} {misfit}'
        others = find_other_input(offered, wanted)
        if others and not match.missing and not match.extra:
            key, channels = next(iter(others.items()))
            best, *rest = ('sum', 'repeat', 'mean') if channels == 1 else ('repeat', 'sum', 'mean')
            reason = (
                f' {key} takes images of {offered[key].size(1)} channels in the file, of '
                f'{channels} in the model: in_channels={best!r} (or {rest[0]!r}, {rest[1]!r}) of '
                'SelfSupPretrained adapts it.'
            )
        elif hasattr(module, 'as_new_run'):
            reason = _other_settings(module, found)
        elif match.extra == ['patch_embed.projection.bias']:
            reason = ' The patch embedding of the file has a bias: set patch_bias=True.'
        else:
            reason = _likely_reason(wanted, found.backbone)
        return f'{refusal} Tensors {"; ".join(problems)}.{reason}'


def _detector_class(tensors: Dict[str, Tensor]) -> str:
    """Return the class of mmdense.models.detectors that a DETR's tensors belong to."""
    if 'level_embed' in tensors:
        return 'DeformableDETR'
    if 'encoder.post_norm.weight' in tensors:
        return 'PreNormDETR'
    conditional = any(name.startswith('decoder.ref_point_head.') for name in tensors)
    return 'ConditionalDETR' if conditional else 'DETR'


DETECTOR = 'detector'
# what classifies queries in the heads of DETR, Conditional DETR and Deformable DETR
_CLASS_HEAD = re.compile(r'^bbox_head\.(fc_cls|cls_branches)\b')


@dataclass
class Match:
    """Compare a file with a module that it is to fill.

    Attributes:
        found (Recognised): What the file is.
        wanted (Dict[str, Tensor]): The module's tensors, without those of ``new``.
        offered (Dict[str, Tensor]): Those of the file that are meant for it, named as in it.
        left (List[str]): Names in the file that are of other parts.
        problem (str): Why nothing is loaded, in one line; '' where all fits.
        new (List[str]): Layers of the module that the file's training did not have, and that
            begin anew.
    """

    found: Recognised
    wanted: Dict[str, Tensor]
    offered: Dict[str, Tensor]
    left: List[str]
    problem: str = ''
    new: List[str] = field(default_factory=list)
    adapted: Dict[str, Tuple[int, int]] = field(default_factory=dict)
    resized: str = ''

    @property
    def missing(self) -> List[str]:
        """List the tensors that the file lacks; BatchNorm's batch counter, absent from files of
        older PyTorch releases, is not counted."""
        lacks = (k for k in self.wanted if k not in self.offered)
        return [k for k in lacks if not k.endswith('num_batches_tracked')]

    @property
    def misshapen(self) -> List[str]:
        """List the tensors that have another shape in the file."""
        both = (k for k in self.wanted if k in self.offered)
        return [k for k in both if self.offered[k].shape != self.wanted[k].shape]

    @property
    def extra(self) -> List[str]:
        """List the tensors of such parts that the file has and the module has not."""
        return [k for k in self.offered if k not in self.wanted]


def _keep_weights() -> None:
    """Do nothing, in place of a filled module's ``init_weights()``."""


def _new_layers(module: nn.Module, given: Dict[str, Tensor], named: Sequence[str]) -> List[str]:
    """List the layers of a backbone that begin anew, as a file has nothing of them: norms of its
    maps, offsets of deformable convolutions, plugins, and what is named."""
    known = {*_ADDED_TO_RESNET, *named}
    for part in module.modules():
        for attribute in _PLUGINS:
            known.update(getattr(part, attribute, ()))
    paths = [*dict(module.named_modules()), *dict(module.named_parameters())]
    paths += dict(module.named_buffers())
    found = _new_norms(module, given)
    block = 'layers.0.attn.qkv.weight'
    if block in given and block in paths:  # vision transformers both
        inside = {key.rpartition('.')[2] for key in given}
        known.update(name for name in _ADDED_TO_VIT if name not in inside)
    found += [path for path in paths if path.rpartition('.')[2] in known]
    return [path for path in found if not any(_is_below(key, [path]) for key in given)]


# Layers in the blocks of detectors' ResNets: of deformable convolutions; and of DetectoRS, its
# recursive pyramid, switchable atrous convolutions, and the two numbers by which a convolution
# standardizes its weights and that it computes of those that it gets.
_ADDED_TO_RESNET = (
    *('conv_offset', 'rfp_conv', 'switch', 'weight_diff', 'pre_context', 'post_context'),
    *('offset_s', 'offset_l', 'weight_gamma', 'weight_beta'),
)

# Parameters and buffers in the blocks of vision transformers of detectors and segmenters, which a
# plain one has not. mmseg's MAE scales the output of each block (by 1.0 in its configs) and has
# biases by relative position (0 at first); mmpretrain's ViTSAM, for ViTDet, has relative positions
# (0 at first).
_ADDED_TO_VIT = (
    *('gamma_1', 'gamma_2', 'relative_position_bias_table', 'relative_position_index'),
    *('rel_pos_h', 'rel_pos_w'),
)

# Lists of names, in the blocks of mmdet's and mmseg's ResNets.
_PLUGINS = [f'after_conv{i}_plugin_names' for i in (1, 2, 3)]


def _is_below(key: str, paths: Sequence[str]) -> bool:
    return any(key == path or key.startswith(f'{path}.') for path in paths)


def _new_norms(module: nn.Module, given: Dict[str, Tensor]) -> List[str]:
    """List a backbone's ``norm0``, ``norm1``, …, one for each of ``out_indices``, that a file with
    another of them lacks."""
    outputs = getattr(module, 'out_indices', None)
    if not isinstance(outputs, (list, tuple)):
        return []
    there, parts = {key.split('.')[0] for key in given}, dict(module.named_children())
    new = [name for name in map('norm{}'.format, outputs) if name in parts and name not in there]
    return new if any(re.fullmatch(r'norm\d+', name) for name in there) else []


def _resize_positions(
    given: Dict[str, Tensor], wanted: Dict[str, Tensor], module: nn.Module
) -> Tuple[Dict[str, Tensor], str]:
    """Resize the positions of a vision transformer, 1×tokens×C, to the images of the model, as the
    papers do; return the tensors, and what was resized in words."""
    file, model = given.get('pos_embed'), wanted.get('pos_embed')
    if file is None or model is None or file.dim() != 3 or file.shape == model.shape:
        return given, ''
    as_map = model.dim() == 4  # ViTDet's, 1×H×W×C
    tokens = [name for name in ('cls_token', 'dist_token') if name in given]
    extra, kept = len(tokens), 0 if as_map else sum(name in wanted for name in tokens)
    side = round((file.size(1) - extra) ** 0.5)
    height, width = model.shape[1:3]
    if not as_map:
        height, width = _count_patches(module, wanted, model.size(1) - kept)
    fits = side**2 + extra == file.size(1) and (as_map or height * width + kept == model.size(1))
    if not fits or file.size(2) != model.size(-1):
        return given, ''
    resized, words = file[:, extra:].float().reshape(1, side, side, -1), ''
    if (side, side) != (height, width):
        resized = resized.permute(0, 3, 1, 2)
        resized = F.interpolate(resized, (height, width), mode='bicubic', align_corners=False)
        resized = resized.permute(0, 2, 3, 1)
        words = f'pos_embed resized from {side}×{side} to {height}×{width} patches'
    if not as_map:
        resized = torch.cat([file[:, extra - kept : extra].float(), resized.flatten(1, 2)], dim=1)
    return dict(given, pos_embed=resized), words


def _count_patches(module: nn.Module, wanted: Dict[str, Tensor], patches: int) -> Tuple[int, int]:
    """Return the rows and columns of patches of a vision transformer."""
    size, weight = getattr(module, 'img_size', None), wanted.get('patch_embed.projection.weight')
    if isinstance(size, (list, tuple)) and len(size) == 2 and weight is not None:
        return size[0] // weight.size(-2), size[1] // weight.size(-1)
    return round(patches**0.5), round(patches**0.5)


def _lacks_part(module: nn.Module, key: str) -> bool:
    """Return whether an algorithm has no such part, neither itself nor in a momentum encoder."""
    for name, part in module.named_children():
        encoder = f'{name}.module.'
        if isinstance(part, MomentumEncoder) and key.startswith(encoder):
            module, key = part.module, key[len(encoder) :]
            break
    return key.split('.')[0] not in dict(module.named_children())


def _shape(tensor: Tensor) -> str:
    return '×'.join(map(str, tensor.shape)) or 'scalar'


def _other_settings(module: nn.Module, found: Recognised) -> str:
    name, model = type(module).__name__, architecture(module.get_product().state_dict())
    if found.algorithm_type not in ('', name):
        what = f'The file holds {found.algorithm_type}, the model is {name}'
    elif model != architecture(found.backbone):
        what = f'The file holds {architecture(found.backbone)}, the model has {model}'
    else:
        what = 'The file is not complete, or its config was another'
    return (
        f" {what}: give the model the file's settings, or start from its backbone alone by "
        'model.pretrained, without load_from.'
    )


def _likely_reason(wanted: Dict[str, Tensor], backbone: Dict[str, Tensor]) -> str:
    model, file = architecture(wanted), architecture(backbone)
    in_file, in_model = resnet_stages(backbone), resnet_stages(wanted)
    if in_file and in_model:
        deep = 'a deep stem', 'a plain one'
        if has_deep_stem(wanted) and not has_deep_stem(backbone):
            return f" The model has {deep[0]}, the file {deep[1]}: use type='ResNet'."
        if has_deep_stem(backbone) and not has_deep_stem(wanted):
            return f" The file has {deep[0]}, the model {deep[1]}: use type='ResNetV1c' or V1d."
        stages = min(len(in_file), len(in_model))
        if in_file[:stages] != in_model[:stages]:
            return f' The file holds {file}, the model is {model}: set depth.'
    elif file != model and not (in_file and model.kind == LAST_STAGE):
        return f' The file holds {file}, the model is {model}: they must be of one architecture.'
    return (
        ' The file is not complete, or of a network with other settings (width, norm): use another '
        'file, or set those; layers that the file cannot have begin anew by new=[NAME, …] of '
        'SelfSupPretrained.'
    )
