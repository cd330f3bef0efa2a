# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from itertools import groupby
from math import ceil
from typing import Dict, List, Optional

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from mmdense.models.layers import FeatureQueue, push_batch, read_batches
from mmdense.models.losses import sinkhorn, swapped_prediction
from mmdense.models.utils import count_nearest
from mmdense.models.utils.float32 import in_float32
from mmdense.models.utils.progress import run_progress
from mmdense.registry import MODELS
from mmdense.utils.checks import check_whole
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, RunFacts, SelfSupervisor, Setting, Views
from .momentum import power_of_two


@MODELS.register_module()
class SwAV(SelfSupervisor, BaseSelfSupervisor):
    """Predict the cluster assignment of a view from the other views (SwAV).

    `Unsupervised Learning of Visual Features by Contrasting Cluster Assignments
    <https://arxiv.org/abs/2006.09882>`_ (NeurIPS 2020). Neck, head and state dict are those of
    mmpretrain's ``SwAV``, whose checkpoints load into this one. The loss, the queue and the
    exchange between processes are the authors'.

    Args:
        backbone (dict): Any backbone that returns feature maps; the last one is used.
        neck (dict): ``mmpretrain.SwAVNeck``.
        head (dict): ``mmpretrain.SwAVHead`` with ``mmpretrain.SwAVLoss``, which has the
            prototypes, the temperature τ, the arguments of :func:`~mmdense.models.sinkhorn`, the
            number of views of each size (``num_crops``) and the views that get codes
            (``crops_for_assign``).
        queue_length (int): Features of earlier batches that share the prototypes, of all
            processes together; as many complete batches are used as it has room for. 0: no queue.
            Defaults to 0.
        epoch_queue_starts (int): Epoch, from 0, in which the queue begins to fill; it is used
            when it is full. Defaults to 15.
        freeze_prototypes_niters (int): Iterations at the start in which the prototypes stay.
            Defaults to 0.
        kwargs: Arguments of :class:`SelfSupervisor`.
    """

    views = Views(groups=(2, 6))
    AUTHORS = (
        AuthorsFormat(
            source='SwAV',
            license='CC BY-NC 4.0',
            parts=('conv1.', 'projection_head.', 'prototypes.weight'),
            product='',
            names={
                'projection_head.': 'neck.projection_neck.',
                'prototypes.': 'head.loss_module.prototypes.',
                '': 'backbone.',
            },
        ),
        # the same code's, with several sets of prototypes
        AuthorsFormat(
            source='DeepCluster-v2 or SeLa-v2',
            license='CC BY-NC 4.0',
            parts=('conv1.', 'projection_head.', 'prototypes.prototypes0.'),
            product='',
            complete=False,
        ),
    )

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        queue_length: int = 0,
        epoch_queue_starts: int = 15,
        freeze_prototypes_niters: int = 0,
        **kwargs,
    ) -> None:
        check_whole(
            0,
            queue_length=queue_length,
            epoch_queue_starts=epoch_queue_starts,
            freeze_prototypes_niters=freeze_prototypes_niters,
        )
        super().__init__(backbone, neck, head, **kwargs)
        self.epoch_queue_starts = epoch_queue_starts
        self.freeze_prototypes_niters = freeze_prototypes_niters
        if not isinstance(self.prototypes, nn.Linear):
            raise InputError('SwAV takes one set of prototypes: num_prototypes must be a number')
        self.views = Views(groups=tuple(self.head.loss_module.num_crops))
        dim, assigned = self.prototypes.in_features, self.head.loss_module.crops_for_assign
        self.queue = FeatureQueue(queue_length, dim, len(assigned)) if queue_length else None
        self.predict = swapped_prediction
        # The norm of mmpretrain's neck has two names. Where SyncBN becomes BN they would be two
        # modules, one of them without gradients.
        if hasattr(self.neck, 'norm'):
            del self.neck.norm

    @property
    def prototypes(self) -> nn.Linear:
        """Return the prototypes, P×C."""
        return self.head.loss_module.prototypes

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the loss of one step (paper, section 3, and algorithm 1 in appendix A).

        Args:
            inputs (List[Tensor]): V views of every image, each N×3×H×W.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss``, a scalar from 0; ln P is chance.
        """
        self.check_views(inputs)
        settings = self.head.loss_module

        # projections: consecutive views of one size are one batch for the backbone
        by_size = groupby(inputs, key=lambda view: view.shape[2:])
        maps = [self.backbone(torch.cat(list(views))) for _, views in by_size]
        z = self.neck([map_[-1:] for map_ in maps])  # (VN)xC, of length 1

        # similarities with the prototypes
        with torch.no_grad():
            self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))
        weight = self.prototypes.weight  # PxC
        if run_progress('iter') < self.freeze_prototypes_niters:
            weight = weight.detach() + 0 * weight  # a gradient of zero, which processes exchange
        z = z.unflatten(0, (len(inputs), -1))  # VxNxC
        scores = _similarity(z, weight)  # VxNxP

        assigned = settings.crops_for_assign
        codes = self.assign(*(torch.stack([x[a] for a in assigned]) for x in (z, scores)))
        loss = self.predict(scores, codes, assigned, settings.temperature)
        self.probe(global_=(z[0], z[1]), prototypes=lambda: count_nearest(scores))
        return dict(loss=loss)

    @torch.no_grad()
    def assign(self, z: Tensor, scores: Tensor) -> Tensor:
        """Compute codes by equal shares of the prototypes (paper, section 3.1), and advance the
        queue.

        Args:
            z (Tensor): A×N×C, projections of the views that get codes.
            scores (Tensor): A×N×P, their similarities with the prototypes.

        Returns:
            Tensor: A×N×P, the codes q.
        """
        settings, number = self.head.loss_module, z.size(1)
        queue = settings.queue  # A tensor where mmpretrain's hook keeps a queue, else None.
        if self.queue is not None:
            started = run_progress('epoch') >= self.epoch_queue_starts
            queue = self.queue.features if started else None
        if queue is not None:
            earlier = read_batches(queue, number)  # AxRxC
            full = earlier[:, -1:].ne(0).any(2, keepdim=True)
            others = _similarity(earlier, self.prototypes.weight)
            # without waiting for the device: a queue that is not full takes no part
            others = others.masked_fill(~full, -torch.inf)
            scores = torch.cat([others, scores], dim=1)
            push_batch(queue, z)
        codes = sinkhorn(scores, settings.epsilon, settings.sinkhorn_iterations)
        return codes[:, -number:]

    def compile_parts(self, **options) -> None:
        """Compile the networks and the loss in place; the state dict keeps its names.

        Args:
            options: Arguments of ``torch.compile``.
        """
        self.compile_networks(**options)
        self.predict = torch.compile(self.predict, **options)

    def as_new_run(self, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return a checkpoint's tensors for the start of another run, whose queue is empty."""
        tensors = super().as_new_run(tensors)
        _rename(tensors)
        if self.queue is not None:
            tensors['queue.features'] = torch.zeros_like(self.queue.features)
        return tensors

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        _rename(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return the queue, the number of prototypes, when either begins to change, and the codes'
        smoothness."""
        recipe, batch, steps = facts.recipe.model, facts.batch, facts.steps
        batches = recipe.queue_length // facts.recipe.auto_scale_lr.base_batch_size
        length = max(min(batches * batch, facts.images) // batch, 1) * batch
        reason = f'{batches} batches as in the recipe, at most the number of images'
        rules = [Setting('queue', f'{length:,}', reason, {'model.queue_length': length})]

        usual = recipe.head.loss.num_prototypes
        number = max(min(power_of_two((batch + length) * 3 / 4), usual), 16)
        reason = 'fewer than the samples that share them, three for four as in the recipe'
        if usual <= (batch + length) * 3 / 4:
            number, reason = usual, "the recipe's"
        shape = facts.init_shapes.get('head.loss_module.prototypes.weight')
        if shape:
            number, reason = shape[0], f'as {facts.init} has them'
        config = {'model.head.loss.num_prototypes': number}
        rules.append(Setting('prototypes', number, reason, config))

        frozen, reason = ceil(steps / 200), 'a two hundredth of the run, as 5,005 of 200 epochs'
        epochs = steps // max(facts.images // batch, 1)
        start, why = round(15 / 200 * epochs), 'as late in the run as epoch 15 of 200'
        if shape:
            frozen, reason = 0, 'they are trained already'
        if facts.init:
            start, why = 0, 'features are there from the start'
        config = {'model.freeze_prototypes_niters': frozen}
        rules.append(Setting('prototypes stay', f'{frozen:,} steps', reason, config))
        config = {'model.epoch_queue_starts': start}
        rules.append(Setting('queue starts', f'epoch {start + 1:,}', why, config))

        epsilon, reason = recipe.head.loss.epsilon, "the recipe's"
        if steps < 20_000 and not facts.init:
            epsilon = 0.03
            reason = 'a short run: sharper codes leave ln P sooner, as the authors advise'
        config = {'model.head.loss.epsilon': epsilon}
        return [*rules, Setting('epsilon', epsilon, reason, config)]

    @classmethod
    def adapt_config(cls, cfg: Config) -> None:
        """Take over the settings of mmpretrain's ``SwAVHook``, whose queue is in a file of its
        own."""
        kept = []
        for hook in cfg.get('custom_hooks') or []:
            if str(hook.get('type')).rpartition('.')[2] != 'SwAVHook':
                kept.append(hook)
                continue
            frozen = (hook.get('frozen_layers_cfg') or {}).get('prototypes', 0)
            found = dict(
                queue_length=hook.get('queue_length', 0),
                epoch_queue_starts=hook.get('epoch_queue_starts', 15),
                freeze_prototypes_niters=frozen,
            )
            cfg.model.update({k: v for k, v in found.items() if k not in cfg.model})
            print_log(
                'SwAVHook is left out: its queue and its frozen prototypes became arguments of '
                'the model',
                logger='current',
            )
        if 'custom_hooks' in cfg:
            cfg.custom_hooks = kept


_similarity = in_float32(linear)


def _rename(tensors: Dict[str, Tensor], prefix: str = '') -> None:
    """Give the tensors of mmpretrain and mmselfsup our names, in place."""
    for name in [name for name in tensors if name.startswith(f'{prefix}neck.norm.')]:
        del tensors[name]  # projection_neck.1 again
    for theirs in ('head.loss.prototypes.weight', 'head.prototypes.weight'):
        if prefix + theirs in tensors:
            ours = f'{prefix}head.loss_module.prototypes.weight'
            tensors[ours] = tensors.pop(prefix + theirs)
