# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Share what models of lightly's parts need: it has heads and losses, and its examples put them
together."""

import copy

import common
import models
from torch import nn


class LightlyModel(nn.Module):
    """Hold the backbone of mmpretrain's config and lightly's heads, as lightly's examples do.

    Args:
        shipped (str): mmpretrain's config of the same algorithm.
        args (Namespace): Options of the benchmark.
        heads (Callable): Returns the heads, from lightly's module of heads and the width of the
            backbone's last map.
        twin (bool): Whether backbone and first head have a copy that follows them.
    """

    def __init__(self, shipped, args, heads, twin=False):
        super().__init__()
        backbone = models.theirs(shipped, args).backbone
        width = 2048 if args.depth >= 50 else 512
        first, *self_heads = heads(common.peer('lightly.models.modules'), width)
        self.online = nn.ModuleList([backbone, first])
        self.heads = nn.ModuleList(self_heads)
        self.losses = common.peer('lightly.loss')
        self.utils = common.peer('lightly.models.utils')
        if twin:
            self.twin = copy.deepcopy(self.online)
            self.utils.deactivate_requires_grad(self.twin)
        self.to(args.device).train()

    @staticmethod
    def encode(encoder, view):
        """Return the projections N×C of a view."""
        backbone, head = encoder
        return head(backbone(view)[-1].mean((2, 3)))
