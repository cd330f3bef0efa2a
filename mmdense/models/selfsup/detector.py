# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define algorithms that pretrain a complete detector of mmdet.

mmdet is imported only when such an algorithm is built.
"""

import copy
from typing import Any, Iterable, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from mmdense.models.detectors import import_mmdet
from mmdense.models.utils.map_channels import map_channels
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .base import SelfSupervisor, _use_format, with_pretrained


class DetectorSelfSupervisor(SelfSupervisor, BaseModel):
    """Hold a detector of mmdet, which is what the run is for.

    With ``frozen_backbone`` the backbone is frozen completely: no parameter has a gradient, and it
    stays in eval mode. Building reads no file; ``init_weights()`` fills the backbone by its
    ``init_cfg``.

    The detector's head matches predictions and targets on the host (SciPy's
    ``linear_sum_assignment``), as mmdet does: a step waits for the device there
    (``matching_on_host``).

    Args:
        detector (dict): Config of the detector: ``mmdet.DETR``, ``mmdense.PreNormDETR``, … Types
            inside without a prefix are mmdet's. Where ``neck`` has no ``in_channels``, these are
            the channels of the backbone's maps.
        backbone (dict, optional): Backbone of the detector, where ``detector`` has none: here the
            planner and ``--backbone`` find it.
        pretrained (str | dict, optional): Checkpoint that fills the backbone, as for
            :class:`SelfSupervisor`.
        kwargs: Arguments of :class:`SelfSupervisor`.

    Raises:
        InputError: mmdet is not installed, or there is no backbone, or two.

    Attributes:
        frozen_backbone (bool): Whether nothing of the backbone trains. If not, its own config
            says what trains.
    """

    product = 'detector'
    matching_on_host = True
    frozen_backbone = True

    def __init__(
        self,
        detector: dict,
        backbone: Optional[dict] = None,
        pretrained: Union[None, str, dict] = None,
        **kwargs,
    ) -> None:
        import_mmdet(type(self).__name__)
        super().__init__(**kwargs)
        detector = copy.deepcopy(detector)  # mmdet's classes change theirs
        if (backbone is None) == (detector.get('backbone') is None):
            raise InputError(
                f'{type(self).__name__} needs one backbone: in model.backbone, or in '
                'model.detector.backbone'
            )
        backbone = with_pretrained(backbone or detector['backbone'], pretrained)
        with DefaultScope.overwrite_default_scope('mmdet'):
            if 'in_channels' not in (detector.get('neck') or {'in_channels': None}):
                channels = list(map_channels(MODELS.build(backbone)))
                detector['neck'] = dict(detector['neck'], in_channels=channels)
            self.detector = MODELS.build(dict(detector, backbone=backbone))
        if self.frozen_backbone:
            self.detector.backbone.requires_grad_(False)
        if self.channels_last:
            _use_format(self, torch.channels_last)
        self.matches = MatchRecorder.install(self.detector.bbox_head)

    @property
    def backbone(self) -> nn.Module:
        """Return the detector's backbone."""
        return self.detector.backbone

    def train(self, mode: bool = True) -> 'DetectorSelfSupervisor':
        """Set the mode of all parts but a frozen backbone, which stays in eval mode."""
        super().train(mode)
        if self.frozen_backbone:
            self.backbone.eval()
        return self

    def trained_parts(self) -> List[nn.Module]:
        """Return the networks that ``torch.compile`` compiles."""
        detector = self.detector
        return [detector.backbone, detector.neck, detector.encoder, detector.decoder]

    def extract_feat(self, inputs: Tensor) -> Tuple[Tensor, ...]:
        """Return the maps of the detector's neck for N×C×H×W images."""
        return self.detector.extract_feat(inputs)

    @torch.no_grad()
    def frozen_maps(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return the backbone's maps of N×C×H×W images."""
        maps = self.backbone(images)
        return tuple(maps) if isinstance(maps, (list, tuple)) else (maps,)


def image_sizes(
    images: Tensor, data_samples: Optional[Sequence] = None, view: int = 0
) -> List[BaseDataElement]:
    """Return what mmdet's detectors ask of a data sample: the image's size without padding.

    Args:
        images (Tensor): N×C×H×W, padded at the right and at the bottom.
        data_samples (Sequence[DataSample], optional): N; ``view_shapes``, which
            :func:`mmdense.datasets.pad_collate` adds, has the size of every view. Without it
            nothing is padding.
        view (int): Position of the images among the views. Defaults to 0.

    Returns:
        list[BaseDataElement]: N, with ``img_shape`` and ``batch_input_shape``, in pixels.
    """
    padded = tuple(images.shape[2:])
    samples = data_samples or [None] * len(images)
    shapes = [getattr(one, 'view_shapes', None) for one in samples]
    sizes = [padded if shape is None else tuple(shape[view]) for shape in shapes]
    about = [dict(img_shape=size, batch_input_shape=padded) for size in sizes]
    return [BaseDataElement(metainfo=one) for one in about]


def box_targets(boxes: Iterable[Tensor], label: int, sizes: Sequence[Any]) -> List[InstanceData]:
    """Return boxes as mmdet's heads take targets.

    Args:
        boxes (Iterable[Tensor]): N, each R×4, (x0, y0, x1, y1) in [0, 1] of the image without
            padding.
        label (int): Label of every box.
        sizes (Sequence): N, of :func:`image_sizes`.

    Returns:
        list[InstanceData]: N, with ``bboxes`` R×4 in pixels and ``labels`` R.
    """
    # as numbers, not as a tensor: no copy to the device
    scaled = [
        torch.stack([one[:, 0] * w, one[:, 1] * h, one[:, 2] * w, one[:, 3] * h], dim=1)
        for one, (h, w) in zip(boxes, (size.img_shape for size in sizes))
    ]
    return [
        InstanceData(bboxes=one, labels=torch.full(one.shape[:1], label, device=one.device))
        for one in scaled
    ]


def average_count(count: int, like: Tensor) -> Tensor:
    """Return a count averaged over the processes, at least 1, as a float32 scalar."""
    total = torch.full((), float(count), device=like.device)
    all_reduce(total, 'mean')
    return total.clamp(min=1)


class MatchRecorder:
    """Keep what an assigner of mmdet matched: a head's losses do not say it.

    Args:
        assigner (Any): The assigner, such as ``HungarianAssigner``.
    """

    def __init__(self, assigner: Any) -> None:
        self.assigner = assigner
        self.found: List[Tensor] = []

    @classmethod
    def install(cls, head: nn.Module) -> 'MatchRecorder':
        """Put a recorder between a head and its assigner, and return the recorder."""
        head.assigner = cls(head.assigner)
        return head.assigner

    @torch.no_grad()
    def assign(self, pred_instances: InstanceData, **kwargs) -> Any:
        """Assign as the assigner does, and keep the result.

        Predictions that are not finite count as 0 here, where SciPy would raise an error: the
        losses show them, and the hooks of a run name the module.
        """
        finite = {
            name: torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
            for name, value in pred_instances.items()
        }
        result = self.assigner.assign(pred_instances=InstanceData(**finite), **kwargs)
        self.found.append(result.gt_inds)
        return result

    def take(self, images: int) -> Tensor:
        """Return the matches since the last call, and forget them.

        Args:
            images (int): N.

        Returns:
            Tensor: L×N×Q int64, for each query of each decoder layer the number of its target,
            from 0; -1 without one.
        """
        found, self.found = self.found, []
        return torch.stack(found).unflatten(0, (-1, images)) - 1
