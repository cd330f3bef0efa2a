# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Tuple

import torch
from mmengine.dist import all_reduce, get_rank
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmdense.models.heads.slot_contrast_head import true_rows
from mmdense.models.layers import (
    KeyQueue,
    MomentumEncoder,
    SharedRegions,
    find_shared_regions,
    hardest_copies,
    pool_pyramid,
)
from mmdense.models.losses import intra_image_margin
from mmdense.models.utils import encoded_rows, map_channels, shuffled_forward
from mmdense.models.utils.authors_names import name_detectron2_layers
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, Views
from .momentum import MomentumSelfSupervisor


def _authors_names(branch: str, prefix: str) -> Dict[str, str]:
    """Return the beginnings of the authors' names of a network, and of ours."""
    return {
        f'backbone_{branch}.bottom_up.': f'{prefix}backbone.',
        f'backbone_{branch}.': f'{prefix}neck.',
        f'img_neck_{branch}.mlp.linear_1.0.': f'{prefix}projector.mlp.0.',
        f'img_neck_{branch}.mlp.last_linear.': f'{prefix}projector.mlp.3.',
        f'roi_neck_{branch}.mlp.linear_1.0.': f'{prefix}region_projector.mlp.0.',
        f'roi_neck_{branch}.mlp.last_linear.': f'{prefix}region_projector.mlp.3.',
    }


@MODELS.register_module()
class CCOP(MomentumSelfSupervisor):
    """Contrast images, and regions of them that a feature pyramid pools (CCOP).

    `Contrastive Object-level Pre-training with Spatial Noise Curriculum Learning
    <https://arxiv.org/abs/2111.13651>`_, by its released code. Regions are proposals of a file or
    of a grid. A query region is contrasted with the least similar of the noisy copies of its box in
    the other view; the copies become noisier over the run. Backbone and neck are pretrained:
    ``neck.*`` of a checkpoint fills the FPN of a detector.

    Args:
        backbone (dict): A backbone that returns four maps, of strides 4 to 32.
        neck (dict): :class:`mmdense.models.necks.FPN` without ``in_channels``.
        projector (dict): :class:`mmdense.models.necks.DropoutMLP` without ``in_channels``, of the
            mean of the last map.
        region_projector (dict): The same, of 7×7 bins of a region.
        head (dict): :class:`mmdense.models.heads.InfoNCEHead`.
        curriculum (dict, optional): :class:`mmdense.models.layers.BoxCurriculum`. Defaults to its
            defaults.
        queue_len (int): Keys K in each of the two queues. Defaults to 65536.
        feat_dim (int): Channels C of the projections. Defaults to 128.
        momentum (float): Momentum of the momentum encoder, one minus the paper's. Defaults to
            0.001 (the paper's 0.999).
        min_visible (float): A view must show more than this share of a region. Defaults to 0.6.
        min_area (float): A region must have more pixels than this in each view. Defaults to 144.
        margin (float): Margin between regions of an image. Defaults to 0.4.
        max_iou (float): Regions of an image with an IoU below this are told apart. Defaults to
            0.05.
        total_steps (int, optional): Steps of the complete run, for the curriculum. None takes
            those of MMEngine's runner.
        kwargs: ``pretrained``, ``data_preprocessor`` and ``init_cfg`` of :class:`SelfSupervisor`.
    """

    views = Views(trained=(1,), boxes=True, proposals=True)
    AUTHORS = (
        AuthorsFormat(
            source='CCOP',
            parts=('backbone_q.bottom_up.', 'backbone_k.bottom_up.', 'roi_neck_q.', 'roi_queue'),
            product='backbone_q.bottom_up.',
            network='query encoder',
            names={
                'img_queue': 'queue',
                'roi_queue': 'queue_regions',
                **_authors_names('q', ''),
                **_authors_names('k', 'encoder_k.module.'),
            },
        ),
    )

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        projector: dict,
        region_projector: dict,
        head: dict,
        curriculum: Optional[dict] = None,
        queue_len: int = 65536,
        feat_dim: int = 128,
        momentum: float = 0.001,
        min_visible: float = 0.6,
        min_area: float = 144,
        margin: float = 0.4,
        max_iou: float = 0.05,
        total_steps: Optional[int] = None,
        **kwargs,
    ) -> None:
        super().__init__(backbone, head=head, **kwargs)
        if not isinstance(neck, dict) or head is None:
            raise InputError('CCOP needs a neck, given as a dict, and a head')
        channels = map_channels(self.backbone)
        if len(channels) != 4:
            raise InputError(f'CCOP needs four maps, got {len(channels)}: set out_indices')
        self.neck = MODELS.build(dict(neck, in_channels=channels))
        if self.channels_last:
            self.neck.to(memory_format=torch.channels_last)
        self.projector = MODELS.build(dict(projector, in_channels=channels[-1]))
        bins = 7 * 7 * self.neck.out_channels
        self.region_projector = MODELS.build(dict(region_projector, in_channels=bins))
        self.curriculum = MODELS.build(curriculum or dict(type='mmdense.BoxCurriculum'))
        self.encoder_k = MomentumEncoder(self.online_network(), momentum, total_steps=total_steps)
        self.queue, self.queue_regions = (KeyQueue(feat_dim, queue_len) for _ in range(2))
        self.min_visible, self.min_area = min_visible, min_area
        self.margin, self.max_iou = margin, max_iou

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (List[DataSample]): N, each with ``view_boxes``, 2×4, and ``proposals``.

        Returns:
            Dict[str, Tensor]: ``loss_instance`` of images, ``loss_region`` of regions and
            ``loss_intra`` between regions of an image; their sum is the loss.
        """
        self.check_views(inputs)
        view_q, view_k = inputs
        regions = self.find_regions(data_samples, view_q)  # the host counts them
        totals = [sum(counts) for counts in regions.counts]  # of each process
        rows = true_rows(regions.exists, totals[get_rank()])  # M

        # queries of images NxC, of regions MxC
        q, r = self._encode(self.online_network(), view_q, regions.query[:, :, None], rows)
        r = r.squeeze(1)

        # keys of images NxC, of the copies of a region's box MxJxC, the box itself last
        with torch.no_grad():
            self.encoder_k.update(self.online_network())
            progress = self.encoder_k.progress()
            copies, invalid = self.curriculum(regions.key, view_k.shape[2:], progress)
            k, keys = self._keys(view_k, copies, regions)
            positive = hardest_copies(r, *(x.flatten(0, 1)[rows] for x in (keys, invalid)))

        mean = sum(totals) / len(totals)
        loss_instance = self.head.loss(q, k, self.queue.keys)
        loss_region = self.head.loss(r, positive, self.queue_regions.keys, num_queries=mean)
        # of regions of an image that hardly overlap: NxRxR
        own, apart = keys[:, :, -1], regions.pairs_apart(self.max_iou)
        padded = r.new_zeros(apart.shape[0] * apart.shape[1], r.size(1)).index_copy(0, rows, r)
        pairs = apart.sum()
        all_reduce(pairs)
        cosines = padded.view_as(own) @ own.transpose(1, 2)
        loss_intra = intra_image_margin(cosines, apart, self.margin, pairs / len(totals))

        self.queue.enqueue(k)
        self.queue_regions.enqueue_unequal(positive, totals)
        self.probe(global_=(q, k), **(dict(region=(r, positive)) if len(r) > 1 else {}))
        return dict(loss_instance=loss_instance, loss_region=loss_region, loss_intra=loss_intra)

    def find_regions(self, data_samples: Optional[list], view: Tensor) -> SharedRegions:
        """Return the regions that both views show."""
        return find_shared_regions(data_samples, view, self.min_visible, self.min_area)

    def _encode(
        self, network: nn.ModuleDict, view: Tensor, boxes: Tensor, rows: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Return embeddings of the images N×C, and of boxes M×J×C, normalised.

        Args:
            network (nn.ModuleDict): Of :meth:`online_network`.
            view (Tensor): N×3×H×W.
            boxes (Tensor): N×R×J×4, in pixels.
            rows (Tensor): M, indices into N·R.
        """
        maps = network['backbone'](view)
        pyramid = network['neck'](maps)
        image = network['projector'](maps[-1].mean((2, 3)))
        number, copies = boxes.shape[1:3]
        index = (rows // number)[:, None].expand(-1, copies).flatten()
        boxes = boxes.flatten(0, 1)[rows].flatten(0, 1)  # MJx4
        region = network['region_projector'](pool_pyramid(pyramid, boxes, index))
        image, region = (normalize(x.float(), dim=1) for x in (image, region))
        return image, region.unflatten(0, (len(rows), copies))

    def _keys(self, view: Tensor, copies: Tensor, regions: SharedRegions) -> Tuple[Tensor, Tensor]:
        """Return keys of the images N×C, and of the copies N×R×J×C, 0 where there is no region;
        boxes travel with their images to the process whose BatchNorm they meet."""

        def encode(view: Tensor, copies: Tensor, exists: Tensor) -> Tuple[Tensor, Tensor]:
            rows = true_rows(exists, number)
            k, keys = self._encode(self.encoder_k.module, view, copies, rows)
            padded = keys.new_zeros(exists.numel(), *keys.shape[1:]).index_copy(0, rows, keys)
            return k, padded.unflatten(0, exists.shape)

        seed = self.encoder_k.num_updates()
        joined = sum(regions.counts, [])
        number = sum(joined[row] for row in encoded_rows(len(view), seed))
        return shuffled_forward(encode, view, copies, regions.exists, seed=seed)

    def online_network(self) -> nn.ModuleDict:
        """Return backbone, neck and both projectors by name."""
        names = ('backbone', 'neck', 'projector', 'region_projector')
        return nn.ModuleDict({name: getattr(self, name) for name in names})

    def trained_parts(self) -> List[nn.Module]:
        """Return the networks whose inputs have one shape: the number of regions is another in
        every step."""
        networks = (self.online_network(), self.encoder_k.module)
        return [net[name] for net in networks for name in ('backbone', 'neck', 'projector')]

    def trained_maps(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return the pyramid of N×3×H×W images, and the backbone's last map."""
        maps = self.backbone(images)
        return (*self.neck(maps), maps[-1])

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Give the layers our names instead of detectron2's."""
        for name in ('iter', 'pixel_mean', 'pixel_std'):
            tensors.pop(name, None)
        return super().complete_authors_state(name_detectron2_layers(tensors))
