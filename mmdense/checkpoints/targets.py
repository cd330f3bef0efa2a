# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Write backbones for other software. Files of weights are those of :func:`convert_checkpoint`,
whose names torchvision, timm and mmpretrain share; only the line that loads them differs."""

import inspect
import os
import warnings
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import urlparse

import torch
import torchvision
from mmengine.runner import CheckpointLoader
from mmpretrain.models import ResNet
from torch import Tensor, nn

from mmdense.utils.errors import CheckpointError, InputError
from mmdense.utils.files import atomic_write, report_write_errors

from .architectures import has_deep_stem, resnet_config, resnet_stages
from .export import convert_checkpoint
from .formats import Recognised, recognise
from .io import cached_path
from .model_config import saved_model_config

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
              theirs, which the file fills strictly, but for the classifier.
            - ``mmpretrain``: any backbone, for MMEngine's ``Pretrained``.
            - ``onnx``: a ResNet's feature maps ``c2`` to ``c5``, of strides 4
              to 32, of images N×3×H×W of any N, H and W. The file is run by
              onnxruntime, at two sizes, and compared with PyTorch.
        path (str, optional): File to write. Defaults to one in the current
            folder, named after the checkpoint and the target.
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
        path = f'{stem}_{target}{".onnx" if target == "onnx" else ".pth"}'
    if target == 'onnx':
        return _export_onnx(checkpoint, path, prefix, size)
    content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
    found = recognise(content, name=checkpoint, prefix=prefix)
    code = TARGETS[target](found, checkpoint, path)  # before anything is written
    return Exported(path, convert_checkpoint(checkpoint, path, prefix), code)


# ---------------------------------------------------------------- files of weights


def _torchvision(found: Recognised, checkpoint: str, path: str) -> str:
    name = _torchvision_name(found, checkpoint, 'torchvision')
    return (
        'import torch, torchvision\n'
        f'model = torchvision.models.{name}()\n'
        'model.fc = torch.nn.Identity()  # the file has no classifier; put yours here afterwards\n'
        f"model.load_state_dict(torch.load({path!r}, weights_only=True)['state_dict'])"
    )


def _timm(found: Recognised, checkpoint: str, path: str) -> str:
    name = _torchvision_name(found, checkpoint, 'timm')
    return (
        f'import timm\nmodel = timm.create_model({name!r}, num_classes=0, checkpoint_path={path!r})'
    )


def _torchvision_name(found: Recognised, checkpoint: str, target: str) -> str:
    """Name the network of torchvision, and of timm, that has such tensors and computes the same."""
    model = saved_model_config(found.meta, checkpoint, parts=[]) or {}
    style = (model.get('backbone') or {}).get('style', 'pytorch')
    if style == 'pytorch':
        shapes = _shapes(found.backbone)
        for name in torchvision.models.list_models(module=torchvision.models):
            if 'resne' in name and shapes == _shapes_of_torchvision(name):
                return name
    other = 'has a deep stem' if has_deep_stem(found.backbone) else 'has other tensors'
    if style != 'pytorch':
        other = f"has its strides elsewhere (style={style!r} in the run's config)"
    elif not resnet_stages(found.backbone):
        other = 'is no ResNet'
    raise CheckpointError(
        f'{checkpoint} ({found}) {other}: {target} has no such network by these names. Export it '
        '--to mmpretrain'
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


def _mmpretrain(found: Recognised, checkpoint: str, path: str) -> str:
    model = saved_model_config(found.meta, checkpoint, parts=[]) or {}
    backbone = {k: v for k, v in (model.get('backbone') or {}).items() if k != '_scope_'}
    if not backbone.get('type'):
        backbone = resnet_config(found.backbone)
    if not backbone:
        raise CheckpointError(
            f'{checkpoint} ({found}) holds a backbone of unknown kind: it has no config of its '
            'run, and is no ResNet by its tensors. Export a checkpoint of the run (epoch_*.pth)'
        )
    kind = str(backbone.pop('type')).split('.')[-1]
    settings = ''.join(f'{key}={value!r}, ' for key, value in backbone.items())
    return (
        '# no prefix=: the file holds the backbone alone\n'
        f'model = dict(backbone=dict(type={kind!r}, {settings.rstrip()}\n'
        f"    init_cfg=dict(type='Pretrained', checkpoint={path!r})))"
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
    backbone, _, preprocessor, about = load_backbones(checkpoint, prefix)
    if not isinstance(backbone, ResNet):
        raise CheckpointError(
            f'{checkpoint} holds a {type(backbone).__name__}: ONNX files are made of ResNets only. '
            'Export it --to mmpretrain'
        )
    stages = _Stages(backbone)
    names = STAGES[: len(backbone.res_layers)]
    with report_write_errors(path), atomic_write(path) as part:
        _write_onnx(stages, part, names, size)
        error = max(
            _difference(stages, part, shape)
            for shape in ((1, 3, *size), (2, 3, size[1] + 32, size[0]))
        )
        if not error <= _TOLERANCE:
            raise CheckpointError(
                f'{checkpoint}: onnxruntime and PyTorch differ by {error:.1e} of the largest '
                'value: nothing was written. Try other versions of torch and onnxruntime'
            )
    order = 'RGB' if preprocessor._channel_conversion else 'BGR'
    pixels = 'pixels from 0 to 255'
    if preprocessor._enable_normalize:
        mean, std = (_numbers(getattr(preprocessor, name)) for name in ('mean', 'std'))
        pixels = f'(pixels - {mean}) / {std}'
    return Exported(
        path,
        f'{path}: {about}, stages {", ".join(names)}; onnxruntime and PyTorch differ by '
        f'{error:.0e} of the largest value at most',
        'import onnxruntime\n'
        f'session = onnxruntime.InferenceSession({path!r})\n'
        f'# image: float32, N×3×H×W, {order}, {pixels}\n'
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
            (torch.zeros(1, 3, *size),),
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


def _numbers(values: Tensor) -> List[float]:
    return [round(float(value), 3) for value in values.flatten()]


TARGETS: Dict[str, Optional[Callable[[Recognised, str, str], str]]] = dict(
    torchvision=_torchvision, timm=_timm, mmpretrain=_mmpretrain, onnx=None
)
