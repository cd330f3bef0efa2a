# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from mmdense.models.detectors import import_mmdet
from mmdense.models.layers import stack_proposals
from mmdense.models.losses import feature_reconstruction
from mmdense.models.utils.authors_names import name_detr_layers
from mmdense.models.utils.float32 import in_float32
from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts, check_fractions
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, RunFacts, Setting, Views
from .detector import DetectorSelfSupervisor, average_count, box_targets, image_sizes


@MODELS.register_module()
class UPDETR(DetectorSelfSupervisor):
    """Find random patches of an image in the image (UP-DETR).

    `UP-DETR: Unsupervised Pre-training for Object Detection with Transformers
    <https://arxiv.org/abs/2011.09094>`_ (CVPR 2021). The patches are queries of a DETR, whose
    boxes and features are to be those of the patches. Detector, matching and losses of the boxes
    are mmdet's.

    Q queries are P blocks of consecutive ones; the queries of a block ask for the same patch.

    Args:
        detector (dict): A DETR: ``mmdense.PreNormDETR`` (the authors' recipes) or ``mmdet.DETR``.
            Its head has ``num_classes=2``: label 1 is a patch, 2 is no object, 0 is not used.
        num_patches (int): P, patches of an image; a divisor of Q. Defaults to 10.
        mask_ratio (float): Share of the queries that are trained without their patch, in [0, 1).
            Defaults to 0.1.
        shuffle_queries (bool): Whether the learned query embeddings are permuted at each step, as
            in the paper. The authors' code does not, and reports no difference. Defaults to
            False.
        kwargs: Arguments of :class:`DetectorSelfSupervisor`.

    Raises:
        InputError: P does not divide Q.
    """

    views = Views(groups=(1, 10), trained=(1, 0), proposals=True)
    label = 1
    patch_tensor = 'patch2query.weight'  # what a checkpoint with it has
    AUTHORS = tuple(
        AuthorsFormat(
            source=source,
            license='CC BY-NC 4.0',  # of SwAV's backbone in it
            parts=('backbone.0.body.', 'transformer.encoder.layers.', 'query_embed.', *parts),
            product='backbone.0.body.',
            names={
                'backbone.0.body.': 'detector.backbone.',
                'patch2query.': 'patch2query.',
                'feature_align.': 'feature_align.',
                '': 'detector.',
            },
        )
        for source, parts in (
            ('UP-DETR', ('patch2query.', 'feature_align.')),
            ('DETR', ('input_proj.weight', 'class_embed.weight')),
        )
    )

    def __init__(
        self,
        detector: dict,
        num_patches: int = 10,
        mask_ratio: float = 0.1,
        shuffle_queries: bool = False,
        **kwargs,
    ) -> None:
        check_counts(num_patches=num_patches)
        check_fractions(mask_ratio=mask_ratio)
        super().__init__(detector, **kwargs)
        self.queries = self.detector.num_queries
        if self.queries % num_patches:
            raise InputError(
                f'num_queries={self.queries} must be a multiple of num_patches={num_patches}'
            )
        self.views = Views(groups=(1, num_patches), trained=(1, 0), proposals=True)
        self.mask_ratio = mask_ratio
        self.shuffle_queries = shuffle_queries
        channels, dim = self.detector.neck.convs[-1].conv.in_channels, self.detector.embed_dims
        layers = import_mmdet('UPDETR', 'mmdet.models.layers')
        self.patch2query = nn.Linear(channels, dim)
        self.feature_align = layers.MLP(dim, dim, channels, 2)
        blocked = block_mask(self.queries, num_patches)
        self.register_buffer('blocked', blocked, persistent=False)

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step (paper, section 3.1 and 3.2).

        Args:
            inputs (List[Tensor]): The images, N×3×H×W, and P times a patch of each, N×3×h×w.
            data_samples (List[DataSample]): N, with ``proposals``, the P boxes of the patches.

        Returns:
            Dict[str, Tensor]: ``loss_cls``, ``loss_bbox``, ``loss_iou`` and ``loss_feature``,
            scalars, each weighted and summed over the decoder's layers.
        """
        self.check_views(inputs)
        images, patches = inputs[0], inputs[1:]
        boxes, _ = stack_proposals(data_samples, like=images)  # N×P×4
        if boxes.size(1) != len(patches):
            raise InputError(
                f'UPDETR needs as many proposals of every image as patches, {len(patches)}, got '
                f'{boxes.size(1)}; check max_num of LoadProposals in the training pipeline'
            )
        features = self.patch_features(patches)  # N×P×C
        sizes = image_sizes(images, data_samples)
        hidden = self.detect(self.frozen_maps(images), features, sizes)  # L×N×Q×D
        logits, found = in_float32(self.detector.bbox_head)(hidden)
        return self.losses(logits, found, hidden, features, boxes, sizes)

    def losses(
        self,
        logits: Tensor,
        found: Tensor,
        hidden: Tensor,
        features: Tensor,
        boxes: Tensor,
        sizes: list,
    ) -> Dict[str, Tensor]:
        """Compare the predictions of every layer with the patches that they are matched to.

        Args:
            logits (Tensor): L×N×Q×3.
            found (Tensor): L×N×Q×4, boxes (cx, cy, w, h) in [0, 1].
            hidden (Tensor): L×N×Q×D, outputs of the decoder's layers.
            features (Tensor): N×P×C, features of the patches.
            boxes (Tensor): N×P×4, boxes of the patches, (x0, y0, x1, y1) in [0, 1].
            sizes (list): N, of :func:`image_sizes`.
        """
        targets = box_targets(boxes, self.label, sizes)
        by_layer = in_float32(self.detector.bbox_head.loss_by_feat)(
            logits, found, targets, [size.metainfo for size in sizes]
        )
        names = ('loss_cls', 'loss_bbox', 'loss_iou')
        losses = {
            name: sum(value for key, value in by_layer.items() if key.endswith(name))
            for name in names
        }
        match = self.matches.take(len(boxes))  # L×N×Q
        layer, image, query = (match >= 0).nonzero(as_tuple=True)
        predicted = self.feature_align(hidden[layer, image, query])  # M×C
        target = features[image, match[layer, image, query]]
        count = average_count(boxes.shape[:2].numel(), like=predicted)
        losses['loss_feature'] = feature_reconstruction(predicted, target) / count
        last = layer == len(match) - 1
        self.probe(global_=lambda: (predicted[last], target[last]))
        return losses

    def patch_features(self, patches: List[Tensor]) -> Tensor:
        """Return the features N×P×C of P views N×3×h×w of patches: means over the last map."""
        maps = self.frozen_maps(torch.cat(patches))
        return maps[-1].mean(dim=(2, 3)).unflatten(0, (len(patches), -1)).transpose(0, 1)

    def detect(self, maps: Tuple[Tensor, ...], features: Tensor, sizes: list) -> Tensor:
        """Ask the detector for p ≤ P patches of each image (paper, section 3.2).

        Args:
            maps (tuple[Tensor]): Maps of the images by the backbone.
            features (Tensor): N×p×C, features of the patches.
            sizes (list): N, of :func:`image_sizes`.

        Returns:
            Tensor: L×N×(p·Q/P)×D, outputs of the decoder's layers.
        """
        encoder_inputs, decoder_inputs = self.detector.pre_transformer(
            self.detector.neck(maps), sizes
        )
        memory = self.detector.forward_encoder(**encoder_inputs)['memory']
        position = self.query_positions(features)
        number = position.size(1)
        return self.detector.decoder(
            query=torch.zeros_like(position),
            key=memory,
            value=memory,
            query_pos=position,
            key_pos=decoder_inputs['memory_pos'],
            key_padding_mask=decoder_inputs['memory_mask'],
            self_attn_mask=self.blocked[:number, :number],
        )

    def query_positions(self, features: Tensor) -> Tensor:
        """Add p patches N×p×C to the embeddings of their queries: N×(p·Q/P)×D."""
        each = self.queries // self.views.groups[1]
        patch = self.patch2query(features).repeat_interleave(each, dim=1)
        embedding = self.detector.query_embedding.weight
        if self.training:
            patch = patch * (self.draw(patch) > self.mask_ratio)[..., None]
            if self.shuffle_queries:
                embedding = embedding[torch.randperm(self.queries, device=patch.device)]
        return embedding[: patch.size(1)] + patch

    @torch.no_grad()
    def find(self, images: Tensor, patches: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """Find p ≤ P patches in images without padding, in eval mode.

        Args:
            images (Tensor): N×3×H×W.
            patches (List[Tensor]): p, each N×3×h×w.

        Returns:
            tuple[Tensor, Tensor]: By the Q/P queries of each patch: scores N×p×(Q/P) in [0, 1], and
            boxes N×p×(Q/P)×4, (x0, y0, x1, y1) in fractions of the image.
        """
        features = self.patch_features(patches)
        hidden = self.detect(self.frozen_maps(images), features, image_sizes(images))
        logits, found = (out[-1] for out in self.detector.bbox_head(hidden[-1:]))
        center, half = found[..., :2], found[..., 2:] / 2
        boxes = torch.cat([center - half, center + half], dim=2)
        scores = logits.softmax(dim=2)[..., self.label]
        return tuple(x.unflatten(1, (len(patches), -1)) for x in (scores, boxes))

    def draw(self, queries: Tensor) -> Tensor:
        """Draw a number in [0, 1) for each of N×Q×D queries: N×Q."""
        return torch.rand(queries.shape[:2], device=queries.device)

    def trained_maps(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return the outputs of the decoder's layers for N×3×H×W images and patches of zeros."""
        maps = self.frozen_maps(images)
        patches = images.new_zeros(len(images), self.views.groups[1], maps[-1].size(1))
        return tuple(self.detect(maps, patches, image_sizes(images)))

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Say that a frozen backbone needs weights."""
        if facts.init:
            return []
        reason = 'it is frozen: --init FILE takes that of any checkpoint'
        return [Setting('backbone weights', 'random', reason)]

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return an authors' tensors with mmdet's names."""
        return name_detr_layers(tensors)


def block_mask(queries: int, patches: int) -> Tensor:
    """Return which queries may not see each other: those that ask for different patches.

    Args:
        queries (int): Q.
        patches (int): P, a divisor of Q.

    Returns:
        Tensor: Q×Q bool, True where attention is blocked.
    """
    block = torch.arange(queries) // (queries // patches)
    return block[:, None] != block
