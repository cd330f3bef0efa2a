# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import copy
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from mmdense.models.detectors import import_mmdet
from mmdense.models.losses import pair_contrast
from mmdense.models.utils.authors_names import name_detr_layers
from mmdense.models.utils.float32 import in_float32
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, Views
from .detector import DetectorSelfSupervisor, average_count, image_sizes


@MODELS.register_module()
class PairDETR(DetectorSelfSupervisor):
    """Train a Conditional DETR with a second decoder that finds the same boxes by their corners.

    `Pair DETR: Contrastive Learning Speeds Up DETR Training <https://arxiv.org/abs/2210.16476>`_
    (2022). The decoder of the detector finds centres and classes, the second one top-left corners.
    Query i of one and query i of the other are the same object; a contrastive loss pulls their
    outputs together. What is kept is the detector alone: the second decoder costs nothing later.

    It is supervised: images need labelled boxes. Data and data preprocessor are mmdet's, in
    mmdet's own tools too. There is no code of the authors, and docs/algorithms/pairdetr.md says
    what is not in their paper and chosen here. Detector, matching and losses of the boxes are
    mmdet's.

    Args:
        detector (dict): A Conditional DETR: ``mmdense.ConditionalDETR`` or
            ``mmdet.ConditionalDETR``.
        temperature (float): τ of the contrastive loss, above 0. Defaults to 0.1.
        contrastive_weight (float): Weight of the contrastive loss, at least 0. Defaults to 1.
        data_preprocessor (dict, optional): Defaults to the detector's.
        kwargs: Arguments of :class:`DetectorSelfSupervisor`.

    Raises:
        InputError: The detector is no Conditional DETR, or a number is out of its range.
    """

    views = Views(groups=(1,))
    needs_labels = True
    frozen_backbone = False
    AUTHORS = (
        AuthorsFormat(
            source='Conditional DETR',
            parts=(
                *('backbone.0.body.', 'input_proj.', 'query_embed.', 'bbox_embed.'),
                'transformer.decoder.ref_point_head.',
            ),
            product='backbone.0.body.',
            names={'backbone.0.body.': 'detector.backbone.', '': 'detector.'},
        ),
    )

    def __init__(
        self,
        detector: dict,
        temperature: float = 0.1,
        contrastive_weight: float = 1.0,
        data_preprocessor: Optional[dict] = None,
        **kwargs,
    ) -> None:
        check_above_zero(temperature=temperature)
        if contrastive_weight < 0:
            raise InputError(f'contrastive_weight must be at least 0, got {contrastive_weight}')
        if data_preprocessor is None and detector.get('data_preprocessor'):
            # as the detector's other parts, of mmdet
            data_preprocessor = {'_scope_': 'mmdet', **detector['data_preprocessor']}
        super().__init__(detector, data_preprocessor=data_preprocessor, **kwargs)
        self.temperature = temperature
        self.contrastive_weight = contrastive_weight
        decoder = self.detector.decoder
        if not isinstance(self.detector, import_mmdet('PairDETR').ConditionalDETR):
            raise InputError(
                f'PairDETR needs a Conditional DETR, got {type(self.detector).__name__}'
            )
        self.corner_decoder = type(decoder)(**copy.deepcopy(detector['decoder']))
        layers = import_mmdet('PairDETR', 'mmdet.models.layers')
        dim = self.detector.embed_dims
        self.corner_embed = layers.MLP(dim, dim, 4, 3)
        self.inverse_sigmoid = layers.inverse_sigmoid

    def init_weights(self) -> None:
        """Initialize the corner's decoder as the centre's; its boxes begin at their references."""
        super().init_weights()
        filled = self.init_cfg if isinstance(self.init_cfg, dict) else {}
        if str(filled.get('type')).endswith('Pretrained'):
            return
        for p in self.corner_decoder.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        nn.init.zeros_(self.corner_embed.layers[-1].weight)
        nn.init.zeros_(self.corner_embed.layers[-1].bias)

    def forward(
        self,
        inputs: Union[Tensor, List[Tensor]],
        data_samples: Optional[list] = None,
        mode: str = 'tensor',
    ) -> Any:
        """Return the losses, the maps, or in ``mode='predict'`` what the detector finds."""
        if mode == 'predict':
            return self.detector(inputs, data_samples, mode='predict')
        return super().forward(inputs, data_samples, mode)

    def loss(
        self, inputs: Union[Tensor, List[Tensor]], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (Tensor | List[Tensor]): N×3×H×W, or a list of that alone.
            data_samples (List[DetDataSample]): N, with ``gt_instances`` and the metainfo of
                mmdet's data preprocessor.

        Returns:
            Dict[str, Tensor]: ``loss_cls``, ``loss_bbox``, ``loss_iou`` of the centre's decoder,
            ``loss_corner_bbox``, ``loss_corner_iou`` of the corner's, each summed over layers; and
            ``loss_contrastive``, of the last layer. Scalars, weighted.
        """
        self.check_views(inputs)
        images = inputs if isinstance(inputs, Tensor) else inputs[0]
        if not data_samples or any('gt_instances' not in one for one in data_samples):
            raise InputError(
                'PairDETR needs labelled boxes, gt_instances of every image: train it by a data '
                'set and a pipeline of mmdet, as configs/pairdetr does'
            )
        center, corner = self.decode(self.detector.extract_feat(images), data_samples)
        logits, boxes = in_float32(self.detector.bbox_head)(*center)
        corners = in_float32(self.corner_boxes)(*corner)
        return self.losses(logits, boxes, corners, center[0][-1], corner[0][-1], data_samples)

    def decode(
        self, maps: Tuple[Tensor, ...], data_samples: list
    ) -> Tuple[Tuple[Tensor, Tensor], Tuple[Tensor, Tensor]]:
        """Ask both decoders, which share the encoder's output and the query embeddings.

        Args:
            maps (tuple[Tensor]): Maps by the detector's neck.
            data_samples (list): N, with ``img_shape`` and ``batch_input_shape``.

        Returns:
            tuple: For the centre and for the corner, the outputs of the decoder's layers L×N×Q×D,
            and the references N×Q×2 in [0, 1].
        """
        detector = self.detector
        encoder_inputs, decoder_inputs = detector.pre_transformer(maps, data_samples)
        memory = detector.forward_encoder(**encoder_inputs)['memory']
        position = detector.query_embedding.weight.expand(len(memory), -1, -1)
        center, corner = (
            decoder(
                query=torch.zeros_like(position),
                key=memory,
                query_pos=position,
                key_pos=decoder_inputs['memory_pos'],
                key_padding_mask=decoder_inputs['memory_mask'],
            )
            for decoder in (detector.decoder, self.corner_decoder)
        )
        return center, corner

    def corner_boxes(self, hidden: Tensor, references: Tensor) -> Tensor:
        """Return boxes (x0, y0, w, h) in [0, 1], L×N×Q×4, of the corner's decoder.

        Args:
            hidden (Tensor): L×N×Q×D, outputs of its layers.
            references (Tensor): N×Q×2, its reference corners in [0, 1].
        """
        offsets = self.corner_embed(hidden)
        corner = offsets[..., :2] + self.inverse_sigmoid(references, eps=1e-5)
        return torch.cat([corner, offsets[..., 2:]], dim=-1).sigmoid()

    def losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        corners: Tensor,
        center_hidden: Tensor,
        corner_hidden: Tensor,
        data_samples: list,
    ) -> Dict[str, Tensor]:
        """Compare the predictions of every layer of both decoders with the objects.

        The matching of the centre's predictions serves both.

        Args:
            logits (Tensor): L×N×Q×classes.
            boxes (Tensor): L×N×Q×4, (cx, cy, w, h) in [0, 1].
            corners (Tensor): L×N×Q×4, (x0, y0, w, h) in [0, 1].
            center_hidden (Tensor): N×Q×D, the centre's outputs of the last layer.
            corner_hidden (Tensor): N×Q×D, the corner's.
            data_samples (list): N, with ``gt_instances`` and ``img_shape``.
        """
        head = self.detector.bbox_head
        targets = [sample.gt_instances for sample in data_samples]
        by_layer = in_float32(head.loss_by_feat)(
            logits, boxes, targets, [sample.metainfo for sample in data_samples]
        )
        losses = {
            name: sum(value for key, value in by_layer.items() if key.endswith(name)).squeeze()
            for name in ('loss_cls', 'loss_bbox', 'loss_iou')
        }
        match = self.matches.take(len(targets))  # L×N×Q
        layer, image, query = (match >= 0).nonzero(as_tuple=True)
        found = corners[layer, image, query]  # M×4
        first = torch.tensor([0, *(len(one.bboxes) for one in targets[:-1])]).cumsum(0)
        wanted = torch.cat([one.bboxes for one in targets])
        number = first.to(image.device)[image] + match[layer, image, query]
        wanted = wanted[number].to(found)  # M×4, (x0, y0, x1, y1) in pixels
        sizes = [(w, h, w, h) for h, w in (sample.img_shape[:2] for sample in data_samples)]
        scale = found.new_tensor(sizes)[image]
        shape = torch.cat([wanted[:, :2], wanted[:, 2:] - wanted[:, :2]], dim=1) / scale
        box = torch.cat([found[:, :2], found[:, :2] + found[:, 2:]], dim=1) * scale
        count = average_count(sum(len(one.bboxes) for one in targets), like=found)
        losses['loss_corner_bbox'] = head.loss_bbox(found, shape, avg_factor=count)
        losses['loss_corner_iou'] = head.loss_iou(box, wanted, avg_factor=count)
        contrast = pair_contrast(center_hidden, corner_hidden, self.temperature)
        losses['loss_contrastive'] = self.contrastive_weight * contrast
        self.probe(global_=lambda: (center_hidden.flatten(0, 1), corner_hidden.flatten(0, 1)))
        return losses

    def trained_parts(self) -> List[nn.Module]:
        """Return the networks that ``torch.compile`` compiles."""
        return [*super().trained_parts(), self.corner_decoder]

    def trained_maps(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return the outputs of both decoders for N×3×H×W images without padding."""
        center, corner = self.decode(self.detector.extract_feat(images), image_sizes(images))
        return center[0], corner[0]

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return an authors' tensors with mmdet's names; the corner's decoder and its boxes begin
        as copies of the centre's."""
        named = name_detr_layers(tensors)
        box = dict(zip(_BOX_LAYERS, range(3)))
        for name, value in list(named.items()):
            if name.startswith('detector.decoder.'):
                named[f'corner_decoder.{name[len("detector.decoder.") :]}'] = value
            layer, _, kind = name.rpartition('.')
            if layer in box:
                named[f'corner_embed.layers.{box[layer]}.{kind}'] = value
        return named


_BOX_LAYERS = (
    'detector.bbox_head.reg_ffn.layers.0.0',
    'detector.bbox_head.reg_ffn.layers.1',
    'detector.bbox_head.fc_reg',
)
