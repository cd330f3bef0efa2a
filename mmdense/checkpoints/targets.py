# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Write backbones for other software: files of :func:`convert_checkpoint`, and the lines that load
them."""

import inspect
import os
import warnings
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import urlparse

import torch
import torchvision
from mmengine.runner import CheckpointLoader
from mmpretrain.models import ConvNeXt, ResNet, VisionTransformer
from torch import Tensor, nn

from mmdense.utils.errors import CheckpointError, InputError
from mmdense.utils.files import atomic_write, report_write_errors
from mmdense.utils.imagenet import IMAGENET_PIXELS

from .architectures import RESNET, architecture, has_deep_stem, resnet_stages
from .export import convert_checkpoint
from .formats import Recognised, recognise
from .io import cached_path
from .model_config import as_transferred, saved_model_config
from .networks import build_empty, find_network

# Version of ONNX: onnxruntime reads it since 1.10, and PyTorch 2.1 writes none later.
_OPSET = 17
_TOLERANCE = 1e-4  # of the largest value
STAGES = ('c2', 'c3', 'c4', 'c5')


class Exported(NamedTuple):
    """Describe a file that was written.

    Attributes:
        path (str): The file.
        about (str): One line on its content.
        code (str): Lines of python that load it.
    """

    path: str
    about: str
    code: str


def export_checkpoint(
    checkpoint: str,
    target: str,
    path: Optional[str] = None,
    prefix: Optional[str] = None,
    size: Sequence[int] = (224, 224),
) -> Exported:
    """Write the backbone of a checkpoint for other software.

    Args:
        checkpoint (str): Path or URL of any that :func:`recognise` knows.
        target (str): One of :data:`TARGETS`.

            - ``torchvision``, ``timm``: a ResNet, ResNeXt or Wide ResNet of
              theirs, for timm also a vision transformer or ConvNeXt, which
              the file fills strictly, but for the classifier.
            - ``detectron2``: a ResNet or ResNeXt, a pickle in its names.
            - ``mmpretrain``: any backbone, for MMEngine's ``Pretrained``.
            - ``onnx``: a ResNet's feature maps ``c2`` to ``c5``, of strides 4
              to 32, of images N×3×H×W of any N, H and W. The file is run by
              onnxruntime, at two sizes, and compared with PyTorch.
        path (str, optional): File to write, of the format safetensors if it
            ends so. Defaults to one in the current folder, named after the
            checkpoint and the target.
        prefix (str, optional): Take the tensors below this prefix instead.
        size (Sequence[int]): For ONNX, height and width in pixels, at least
            32, that it is traced and tested at. Defaults to (224, 224).

    Raises:
        CheckpointError: As of :func:`convert_checkpoint`, or when the target
            has no such network.
        InputError: When the target is unknown, or a package is not installed.
    """
    if target not in TARGETS:
        raise InputError(f'there is no target {target!r}; there are: {", ".join(TARGETS)}')
    if path is None:
        stem = os.path.splitext(os.path.basename(urlparse(checkpoint).path))[0] or 'backbone'
        path = f'{stem}_{target}{dict(onnx=".onnx", detectron2=".pkl").get(target, ".pth")}'
    if target == 'onnx':
        if not path.endswith('.onnx'):
            raise InputError(f'{path} must end in .onnx')
        return _export_onnx(checkpoint, path, prefix, size)
    content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
    found = recognise(content, name=checkpoint, prefix=prefix)
    code = TARGETS[target](found, checkpoint, path)  # before anything is written
    names = dict(detectron2='detectron2', timm='' if resnet_stages(found.backbone) else 'timm')
    names = names.get(target) or 'mmpretrain'
    return Exported(path, convert_checkpoint(checkpoint, path, prefix, names=names), code)


# ---------------------------------------------------------------- files of weights


def _torchvision(found: Recognised, checkpoint: str, path: str) -> str:
    name = _torchvision_name(found, checkpoint, 'torchvision')
    first = found.backbone['conv1.weight']
    other = f'model.conv1 = torch.nn.Conv2d({first.size(1)}, {len(first)}, 7, 2, 3, bias=False)\n'
    return (
        'import torch, torchvision\n'
        f'model = torchvision.models.{name}()\n'
        f'{other if first.size(1) != 3 else ""}'
        'model.fc = torch.nn.Identity()  # the file has no classifier; put yours here afterwards\n'
        f'{_load(path)}'
    )


def _load(path: str) -> str:
    """Write the lines that read the tensors of a file into a model."""
    if path.endswith('.safetensors'):
        imported = 'from safetensors.torch import load_file\n'
        return f'{imported}model.load_state_dict(load_file({path!r}))'
    tensors = f"torch.load({path!r}, weights_only=True)['state_dict']"
    return f'model.load_state_dict({tensors})'


def _timm(found: Recognised, checkpoint: str, path: str) -> str:
    if not resnet_stages(found.backbone):
        kind, settings = _timm_settings(found, checkpoint)
        return (
            f'import timm, torch\nmodel = timm.models.{kind}({settings}, num_classes=0)\n'
            f'{_load(path)}'
        )
    name = _torchvision_name(found, checkpoint, 'timm')
    channels = found.backbone['conv1.weight'].size(1)
    other = f'in_chans={channels}, ' if channels != 3 else ''
    return (
        f'import timm\nmodel = timm.create_model({name!r}, {other}num_classes=0, '
        f'checkpoint_path={path!r})'
    )


def _timm_settings(found: Recognised, checkpoint: str) -> Tuple[str, str]:
    """Return the class of timm that computes what a vision transformer or a ConvNeXt does, and its
    settings in words."""
    network = find_network(found.backbone, found.meta)
    fits = network is not None and network.fits and network.config is not None
    module = build_empty(network.config) if fits else None
    kind, tensors = type(module), found.backbone
    plain = not any(norm.eps != 1e-6 for norm in _list_modules(module, nn.LayerNorm))
    if kind is ConvNeXt and plain:
        scaled = 'stages.0.0.gamma' in tensors
        settings = dict(depths=tuple(module.depths), dims=tuple(module.channels))
        settings.update(
            patch_size=tensors['downsample_layers.0.0.weight'].size(-1),
            use_grn='stages.0.0.grn.gamma' in tensors,
            ls_init_value=1e-6 if scaled else None,
            conv_mlp=tensors['stages.0.0.pointwise_conv1.weight'].dim() == 4,
        )
        fits = 'norm3.weight' in tensors
    elif kind is VisionTransformer and plain:
        settings = dict(
            img_size=tuple(module.img_size),
            patch_size=tensors['patch_embed.projection.weight'].size(-1),
            embed_dim=module.embed_dims,
            depth=module.num_layers,
            num_heads=module.layers[0].attn.num_heads,
            mlp_ratio=tensors['layers.0.ffn.layers.0.0.weight'].size(0) / module.embed_dims,
            qkv_bias='layers.0.attn.qkv.bias' in tensors,
            init_values=1.0 if 'layers.0.attn.gamma1.weight' in tensors else None,
            pre_norm='pre_norm.weight' in tensors,
        )
        fits = 'ln1.weight' in tensors and 'cls_token' in tensors
    else:
        fits = False
    activations = {type(layer) for layer in _list_modules(module, nn.GELU)}
    if not fits or activations != {nn.GELU}:
        raise CheckpointError(
            f'{checkpoint} ({found}) is no ResNet, vision transformer or ConvNeXt that timm has '
            f'too. {_other_way(found, checkpoint)}'
        )
    return kind.__name__, ', '.join(f'{key}={value!r}' for key, value in settings.items())


def _list_modules(module: Optional[nn.Module], kind: type) -> List[nn.Module]:
    return [part for part in module.modules() if isinstance(part, kind)] if module else []


def _detectron2(found: Recognised, checkpoint: str, path: str) -> str:
    """Write the settings of detectron2's config. Those of MoCo's repository are the same, but for
    the schedule."""
    network = find_network(found.backbone, found.meta)
    tensors, kind = found.backbone, architecture(found.backbone)
    first = tensors.get('layer1.0.conv1.weight')
    second = tensors.get('layer1.0.conv2.weight')
    batch_norm = 'bn1.weight' in tensors
    named = network is not None and network.name.startswith(('ResNet-', 'ResNeXt-'))
    if not (named and kind.kind == RESNET and kind.depth and not kind.deep_stem and batch_norm):
        raise CheckpointError(
            f'{checkpoint} ({found}) is no ResNet with a plain stem and BatchNorm: detectron2 has '
            f'no such network by these names. {_other_way(found, checkpoint)}'
        )
    model = saved_model_config(found.meta, checkpoint, parts=[]) or {}
    caffe = (model.get('backbone') or {}).get('style', 'pytorch') != 'pytorch'
    pixels = dict(IMAGENET_PIXELS, **(model.get('data_preprocessor') or {}))
    groups = len(first) // second.size(1) if kind.depth >= 50 else 1
    blocks = max(i for i in range(99) if f'layer1.{i}.conv1.weight' in tensors)
    last = tensors[f'layer1.{blocks}.conv{3 if kind.depth >= 50 else 2}.weight']
    rgb = bool(pixels.get('to_rgb') or pixels.get('bgr_to_rgb'))
    return (
        'MODEL:  # of the config\n'
        f'  WEIGHTS: {path}\n'
        f'  PIXEL_MEAN: {_numbers(pixels["mean"])}\n'
        f'  PIXEL_STD: {_numbers(pixels["std"])}\n'
        '  BACKBONE: {FREEZE_AT: 0}\n'
        f'  RESNETS: {{DEPTH: {kind.depth}, NUM_GROUPS: {groups}, '
        f'WIDTH_PER_GROUP: {len(first) // groups}, STEM_OUT_CHANNELS: '
        f'{len(tensors["conv1.weight"])}, RES2_OUT_CHANNELS: {len(last)}, '
        f'STRIDE_IN_1X1: {caffe}, NORM: SyncBN}}\n'
        f'INPUT: {{FORMAT: {"RGB" if rgb else "BGR"}}}'
    )


def _torchvision_name(found: Recognised, checkpoint: str, target: str) -> str:
    """Name the network of torchvision, and of timm, that has such tensors and computes the same."""
    model = saved_model_config(found.meta, checkpoint, parts=[]) or {}
    style = (model.get('backbone') or {}).get('style', 'pytorch')
    if style == 'pytorch':
        shapes = _shapes(found.backbone)
        if 'conv1.weight' in shapes:  # of images of any number of channels
            first = shapes['conv1.weight']
            shapes['conv1.weight'] = torch.Size((first[0], 3, *first[2:]))
        for name in torchvision.models.list_models(module=torchvision.models):
            if 'resne' in name and shapes == _shapes_of_torchvision(name):
                return name
    other = 'has a deep stem' if has_deep_stem(found.backbone) else 'has other tensors'
    if style != 'pytorch':
        other = f"has its strides elsewhere (style={style!r} in the run's config)"
    elif not resnet_stages(found.backbone):
        other = 'is no ResNet'
    raise CheckpointError(
        f'{checkpoint} ({found}) {other}: {target} has no such network by these names. '
        f'{_other_way(found, checkpoint)}'
    )


def _shapes(tensors: Dict[str, Tensor]) -> Dict[str, torch.Size]:
    """Return the shapes of all tensors but those that old files do not have."""
    names = (name for name in tensors if not name.endswith('num_batches_tracked'))
    return {name: tensors[name].shape for name in names}


def _shapes_of_torchvision(name: str) -> Dict[str, torch.Size]:
    with torch.device('meta'):
        model = torchvision.models.get_model(name)
    del model.fc
    return _shapes(model.state_dict())


_TAKE_RUN = 'Export a checkpoint of the run (epoch_*.pth)'


def _find_config(found: Recognised, checkpoint: str) -> Optional[dict]:
    """Return the config of a backbone, by its run or its tensors; None where neither shows it."""
    model = saved_model_config(found.meta, checkpoint, parts=[]) or {}
    backbone = {k: v for k, v in (model.get('backbone') or {}).items() if k != '_scope_'}
    if backbone.get('type'):
        return as_transferred(backbone)
    network = find_network(found.backbone)
    if network is None or network.missed or network.config is None:
        return None
    return dict(network.config)


def _other_way(found: Recognised, checkpoint: str) -> str:
    """Return the export that works where another does not."""
    return 'Export it --to mmpretrain' if _find_config(found, checkpoint) else _TAKE_RUN


def _mmpretrain(found: Recognised, checkpoint: str, path: str) -> str:
    backbone = _find_config(found, checkpoint)
    if backbone is None:
        raise CheckpointError(
            f'{checkpoint} ({found}) holds a backbone of unknown kind: it has no config of its '
            f'run, and its tensors do not show which network of mmpretrain it is. {_TAKE_RUN}'
        )
    kind = str(backbone.pop('type')).split('.')[-1]
    settings = ''.join(f'{key}={value!r}, ' for key, value in backbone.items())
    # MMEngine alone reads no safetensors
    loader = 'mmdense.SelfSupPretrained' if path.endswith('.safetensors') else 'Pretrained'
    return (
        '# no prefix=: the file holds the backbone alone\n'
        f'model = dict(backbone=dict(type={kind!r}, {settings.rstrip()}\n'
        f'    init_cfg=dict(type={loader!r}, checkpoint={path!r})))'
    )


# ---------------------------------------------------------------- ONNX


class _Stages(nn.Module):
    """Return the maps of all stages as a tuple, in eval mode."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        backbone.out_indices = tuple(range(len(backbone.res_layers)))
        self.backbone = backbone
        self.eval()

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        return self.backbone(image)


def _export_onnx(
    checkpoint: str, path: str, prefix: Optional[str], size: Sequence[int]
) -> Exported:
    try:
        import onnx  # noqa: F401 - what PyTorch's exporter needs
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'{error.name} is not installed, which ONNX needs: pip install onnx onnxruntime'
        ) from None
    if len(size) != 2 or min(size) < 32:
        raise InputError(f'size must be a height and a width of at least 32 pixels, got {size}')
    from .backbones import load_backbones

    if '://' in checkpoint:
        CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
        checkpoint = cached_path(checkpoint)
    backbone, _, preprocessor, about, load = load_backbones(checkpoint, prefix)
    if not isinstance(backbone, ResNet):
        raise CheckpointError(
            f'{checkpoint} holds a {type(backbone).__name__}: ONNX files are made of ResNets only. '
            'Export it --to mmpretrain'
        )
    stages = _Stages(backbone)
    names = STAGES[: len(backbone.res_layers)]
    with report_write_errors(path), atomic_write(path) as part:
        _write_onnx(stages, part, names, (load.channels, *size))
        error = max(
            _difference(stages, part, shape)
            for shape in ((1, load.channels, *size), (2, load.channels, size[1] + 32, size[0]))
        )
        if not error <= _TOLERANCE:
            raise CheckpointError(
                f'{checkpoint}: onnxruntime and PyTorch differ by {error:.1e} of the largest '
                'value: nothing was written. Try other versions of torch and onnxruntime'
            )
    order = 'RGB' if preprocessor._channel_conversion else 'BGR'
    order = order if load.channels == 3 else 'bands as in the files'
    pixels = 'pixels from 0 to 255'
    if preprocessor._enable_normalize:
        mean, std = (_numbers(getattr(preprocessor, k).flatten()) for k in ('mean', 'std'))
        pixels = f'(pixels - {mean}) / {std}'
    return Exported(
        path,
        f'{path}: {about}, stages {", ".join(names)}; onnxruntime and PyTorch differ by '
        f'{error:.0e} of the largest value at most',
        'import onnxruntime\n'
        f'session = onnxruntime.InferenceSession({path!r})\n'
        f'# image: float32, N×{load.channels}×H×W, {order}, {pixels}\n'
        f'{", ".join(names)} = session.run(None, dict(image=image))',
    )


def _write_onnx(stages: nn.Module, path: str, names: Sequence[str], size: Sequence[int]) -> None:
    axes = {'image': {0: 'batch', 2: 'height', 3: 'width'}}
    axes.update({name: {0: 'batch', 2: f'{name}_height', 3: f'{name}_width'} for name in names})
    options = {}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        options['dynamo'] = False  # by tracing, which PyTorch 2.1 has too, and which needs less
    with warnings.catch_warnings(), open(path, 'wb') as file:
        warnings.simplefilter('ignore')  # that there is another exporter
        torch.onnx.export(
            stages,
            (torch.zeros(1, *size),),
            file,
            input_names=['image'],
            output_names=list(names),
            dynamic_axes=axes,
            opset_version=_OPSET,
            **options,
        )


@torch.no_grad()
def _difference(stages: nn.Module, path: str, shape: Sequence[int]) -> float:
    """Return the largest difference between the maps of noise by PyTorch and by onnxruntime,
    divided by the largest value; NaN where there is one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = map(torch.from_numpy, session.run(None, {'image': image.numpy()}))
    pairs = list(zip(stages(image), found))
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


def _numbers(values: Iterable[float]) -> List[float]:
    return [round(float(value), 3) for value in values]


TARGETS: Dict[str, Optional[Callable[[Recognised, str, str], str]]] = dict(
    torchvision=_torchvision, timm=_timm, detectron2=_detectron2, mmpretrain=_mmpretrain, onnx=None
)
