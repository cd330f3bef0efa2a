# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmdense.models.detectors import import_mmdet
from mmdense.models.losses import object_embedding
from mmdense.models.utils.authors_names import name_detr_layers
from mmdense.models.utils.float32 import in_float32
from mmdense.models.utils.geometry import boxes_in_view, view_boxes
from mmdense.models.utils.map_channels import map_channels
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, RunFacts, Setting, Views, with_pretrained
from .detector import DetectorSelfSupervisor, average_count, box_targets, image_sizes


class Targets(NamedTuple):
    """Hold the proposals that the images of a batch show.

    Attributes:
        boxes (Tensor): M×4, image by image, (x0, y0, x1, y1) in [0, 1] of the view of the image.
        counts (list[int]): N, proposals of each image; their sum is M.
        crops (list[int]): M, the row of each proposal's crop among all crops, view by view.
    """

    boxes: Tensor
    counts: List[int]
    crops: List[int]


@MODELS.register_module()
class DETReg(DetectorSelfSupervisor):
    """Detect proposals, and predict the embeddings of their crops (DETReg).

    `DETReg: Unsupervised Pretraining with Region Priors for Object Detection
    <https://arxiv.org/abs/2106.04550>`_ (CVPR 2022). The boxes of selective search are the targets
    of a detector with one class, object; the embedding of a query is to be that of the proposal's
    crop by a frozen network. Detector, matching and losses of the boxes are mmdet's.

    Args:
        detector (dict): ``mmdense.DeformableDETR`` or ``mmdense.PreNormDETR`` (the authors'
            recipes), or another of mmdet's DETR family.
        object_encoder (dict, optional): The frozen network that embeds crops: the spatial mean of
            its last map. Its weights are those that ``pretrained`` names, or of its own
            ``init_cfg``. Defaults to None, the detector's backbone up to its second stage
            (``layer2`` of a ResNet), with the same weights.
        num_proposals (int): P, the largest number of proposals of an image. Defaults to 30.
        label (int): Label of an object, below the ``num_classes`` of the detector's head. Defaults
            to 1, as in the authors' files.
        kwargs: Arguments of :class:`DetectorSelfSupervisor`.

    Raises:
        InputError: ``label`` is no class of the head.
    """

    views = Views(groups=(1, 30), trained=(1, 0), boxes=True, proposals=True)
    object_tensor = 'feature_embed.layers.0.weight'  # what a checkpoint with it has
    AUTHORS = tuple(
        AuthorsFormat(
            source=source,
            license='CC BY-NC 4.0',  # of SwAV's backbone in it
            parts=('backbone.0.body.', 'transformer.encoder.layers.', *parts),
            product='backbone.0.body.',
            names={
                'backbone.0.body.': 'detector.backbone.',
                'feature_embed.': 'feature_embed.',
                '': 'detector.',
            },
        )
        for source, parts in (
            ('DETReg', ('feature_embed.',)),
            ('Deformable DETR', ('transformer.level_embed',)),
        )
    )

    def __init__(
        self,
        detector: dict,
        object_encoder: Optional[dict] = None,
        num_proposals: int = 30,
        label: int = 1,
        backbone: Optional[dict] = None,
        pretrained: Any = None,
        **kwargs,
    ) -> None:
        super().__init__(detector, backbone=backbone, pretrained=pretrained, **kwargs)
        head = self.detector.bbox_head
        if not 0 <= label < head.num_classes:
            raise InputError(f'label={label} must be a class of the head, 0…{head.num_classes - 1}')
        self.label = label
        self.views = self.views._replace(groups=(1, num_proposals))
        encoder = object_encoder or first_stages(backbone or detector['backbone'])
        if 'init_cfg' not in encoder:
            encoder = with_pretrained(encoder, pretrained)
        self.object_encoder = self.in_format(MODELS.build(encoder)).requires_grad_(False)
        dim, channels = self.detector.embed_dims, map_channels(self.object_encoder)[-1]
        layers = import_mmdet('DETReg', 'mmdet.models.layers')
        self.feature_embed = layers.MLP(dim, dim, channels, 2)

    def train(self, mode: bool = True) -> 'DETReg':
        """Set the mode of all parts but the frozen networks, which stay in eval mode."""
        super().train(mode)
        self.object_encoder.eval()
        return self

    def trained_parts(self) -> list:
        """Return the networks that ``torch.compile`` compiles: not a transformer with deformable
        attention, which reads the sizes of maps from a tensor."""
        detector = self.detector
        deformable = hasattr(detector, 'level_embed')
        parts = [detector.backbone, detector.neck] if deformable else super().trained_parts()
        return [*parts, self.object_encoder]

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step (paper, section 3).

        Args:
            inputs (List[Tensor]): The images, N×3×H×W, and P times a crop of each, N×3×h×w.
            data_samples (List[DataSample]): N, with ``proposals``, at most P, and ``view_boxes``.

        Returns:
            Dict[str, Tensor]: ``loss_cls``, ``loss_bbox`` and ``loss_iou``, weighted and summed
            over the decoder's layers, and ``loss_embedding`` of the last one; scalars.
        """
        self.check_views(inputs)
        images, crops = inputs[0], inputs[1:]
        targets = find_targets(data_samples or (), len(crops))
        embeddings = self.embed(crops, targets.crops)  # M×C
        sizes = image_sizes(images, data_samples)
        state = self.detector.forward_transformer(
            self.detector.neck(self.frozen_maps(images)), sizes
        )
        return self.losses(state, targets, embeddings, sizes)

    def losses(
        self, state: Dict[str, Any], targets: Targets, embeddings: Tensor, sizes: list
    ) -> Dict[str, Tensor]:
        """Compare the predictions with the proposals that they are matched to.

        Args:
            state (dict): What the detector's head takes; ``hidden_states`` L×N×Q×D.
            targets (Targets): M proposals.
            embeddings (Tensor): M×C, of the crops.
            sizes (list): N, of :func:`image_sizes`.
        """
        hidden = state['hidden_states']
        boxes = targets.boxes.to(hidden.device, non_blocking=True).split(targets.counts)
        for size, target in zip(sizes, box_targets(boxes, self.label, sizes)):
            size.gt_instances = target
        rest = {name: value for name, value in state.items() if name != 'hidden_states'}
        by_layer = in_float32(self.detector.bbox_head.loss)(
            hidden, batch_data_samples=sizes, **rest
        )
        losses = {
            # a mean over processes has a dimension in mmdet
            name: sum(value.sum() for key, value in by_layer.items() if key.endswith(name))
            for name in ('loss_cls', 'loss_bbox', 'loss_iou')
        }
        match = self.matches.take(len(sizes))[-1]  # N×Q, of the last layer
        image, query = (match >= 0).nonzero(as_tuple=True)
        first = torch.tensor([0, *targets.counts[:-1]]).cumsum(0).to(match.device)
        predicted = self.feature_embed(hidden[-1, image, query])
        target = embeddings[first[image] + match[image, query]]
        count = average_count(len(predicted), like=predicted)
        losses['loss_embedding'] = object_embedding(predicted, target) / count
        self.probe(global_=lambda: (predicted, target))
        return losses

    @torch.no_grad()
    def embed(self, crops: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
        """Return the embeddings M×C of some of P views N×3×h×w of crops.

        Args:
            crops (Sequence[Tensor]): The views.
            rows (Sequence[int]): M rows among the P·N, view by view.
        """
        every = torch.cat(list(crops))
        if list(rows) != list(range(len(every))):
            every = every[torch.tensor(rows, dtype=torch.long).to(every.device, non_blocking=True)]
        maps = self.object_encoder(every)
        return (maps[-1] if isinstance(maps, (list, tuple)) else maps).mean(dim=(2, 3))

    @torch.no_grad()
    def find(self, images: Tensor, boxes: Sequence[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        """Find objects in images without padding, and match them with boxes, in eval mode.

        Args:
            images (Tensor): N×3×H×W.
            boxes (Sequence[Tensor]): N, each R×4, (x0, y0, x1, y1) in fractions of the image.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Scores N×Q in [0, 1], boxes N×Q×4 as the arguments, and
            N×Q int64, the number of the box that a query is matched with, -1 for none.
        """
        head, sizes = self.detector.bbox_head, image_sizes(images)
        neck = self.detector.neck(self.frozen_maps(images))
        logits, found = (out[-1] for out in head(**self.detector.forward_transformer(neck, sizes)))
        center, half = found[..., :2], found[..., 2:] / 2
        found = torch.cat([center - half, center + half], dim=2)
        pixels = box_targets(found, self.label, sizes)
        for one, scores, target, size in zip(
            pixels, logits, box_targets(boxes, self.label, sizes), sizes
        ):
            one.scores = scores
            del one.labels
            head.assigner.assign(pred_instances=one, gt_instances=target, img_meta=size.metainfo)
        sigmoid = head.loss_cls.use_sigmoid
        scores = (logits.sigmoid() if sigmoid else logits.softmax(dim=2))[..., self.label]
        return scores, found, self.matches.take(len(images))[0]

    def trained_maps(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return the outputs of the decoder's layers for N×3×H×W images."""
        neck = self.detector.neck(self.frozen_maps(images))
        return tuple(self.detector.forward_transformer(neck, image_sizes(images))['hidden_states'])

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Say that the frozen networks need weights, and which proposals are taken."""
        grid = 'windows of a grid; selective search learns more: docs/algorithms/detreg.md'
        rows = [Setting('proposals', 'grid', grid)]
        if not facts.init:
            reason = 'it is frozen and embeds the crops: --init FILE takes that of any checkpoint'
            rows.insert(0, Setting('backbone weights', 'random', reason))
        return rows

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return an authors' tensors with mmdet's names; the network that embeds crops, which their
        files leave out, is the same as the backbone."""
        tensors = name_detr_layers(tensors, coco_rows=cls.object_tensor not in tensors)
        first = 'detector.backbone.'
        stages = tuple(f'{first}{part}.' for part in ('conv1', 'bn1', 'layer1', 'layer2'))
        encoder = {
            k.replace(first, 'object_encoder.'): v
            for k, v in tensors.items()
            if k.startswith(stages)
        }
        return {**tensors, **encoder} if cls.object_tensor in tensors else tensors


def find_targets(data_samples: Sequence, number: int) -> Targets:
    """Map the proposals of each image into the view that shows it, on the host.

    A proposal of which the view shows nothing is no target, and its crop is left out too.

    Args:
        data_samples (Sequence[DataSample]): N, each with ``proposals`` and ``view_boxes``.
        number (int): P, crops of an image.

    Returns:
        Targets: M targets, on the host.

    Raises:
        InputError: The samples lack proposals or boxes, or have more proposals than crops.
    """
    found = [getattr(sample, 'proposals', None) for sample in data_samples]
    if not all(isinstance(boxes, Tensor) for boxes in found):
        raise InputError(
            "the data samples carry no proposals: put LoadProposals after LoadImage, and mmdense's "
            'PackInputs at the end of the training pipeline'
        )
    most = max(map(len, found), default=0)
    if most > number:
        raise InputError(
            f'DETReg has {number} crops of every image, and an image with {most} proposals; check '
            'max_num of LoadProposals in the training pipeline'
        )
    view = view_boxes(data_samples, 1 + number, like=torch.empty(0))[0]  # N×4
    boxes, counts, crops = [], [], []
    for image, proposals in enumerate(found):
        shown = boxes_in_view(proposals.cpu().float()[None], view[image : image + 1])[0].clamp(0, 1)
        kept = (shown[:, 2:] > shown[:, :2]).all(dim=1).nonzero().flatten().tolist()
        boxes.append(shown[kept])
        counts.append(len(kept))
        crops += [crop * len(found) + image for crop in kept]
    return Targets(torch.cat(boxes), counts, crops)


def first_stages(backbone: dict) -> dict:
    """Return the config of a backbone up to its second stage; of one that is no ResNet, all of it
    with the map of the second stage."""
    config = dict(backbone, out_indices=(1,))
    if 'ResNet' in str(config['type']) or 'ResNeXt' in str(config['type']):
        config.update(num_stages=2, strides=(1, 2), dilations=(1, 1))
    return config
