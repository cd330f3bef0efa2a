# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Tuple, Union

from mmengine.model import BaseModule
from torch import Tensor

from mmdense.models.losses import region_contrast, region_embeddings
from mmdense.models.utils import in_float32
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero


@MODELS.register_module()
class RegionContrastHead(BaseModule):
    """Contrast the soft regions of an image in two views.

    DenseSiam (https://arxiv.org/abs/2203.11075), by its released code, which calls the embedding
    of a region a kernel. Nothing is detached: maps and scores of both views get gradients.

    Args:
        projector (dict): :class:`mmdense.models.necks.ProjectionMLP` with ``dense=False``, on the
            embeddings of regions.
        predictor (dict): The same, on the projections.
        temperature (float): Above 0. Defaults to 0.1.
        init_cfg (dict or list[dict], optional): As everywhere.
    """

    def __init__(
        self,
        projector: dict,
        predictor: dict,
        temperature: float = 0.1,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(init_cfg)
        check_above_zero(temperature=temperature)
        self.temperature = temperature
        self.projector = MODELS.build(projector)
        self.predictor = MODELS.build(predictor)

    def loss(self, view_1: Tuple[Tensor, Tensor], view_2: Tuple[Tensor, Tensor]) -> Tensor:
        """Compute the mean of both directions.

        The regions of all images of a view are one batch of the norms: together they must be more
        than one.

        Args:
            view_1 (tuple[Tensor, Tensor]): Map N×C×H×W and scores N×K×H×W of one view.
            view_2 (tuple[Tensor, Tensor]): The same of the other view, location by location of
                the same place.

        Returns:
            Tensor: A scalar of at least 0.
        """
        regions = [region_embeddings(*view) for view in (view_1, view_2)]  # NxKxC
        g = [self._run(self.projector, e) for e in regions]
        h = [self._run(self.predictor, x) for x in g]
        directions = (h[0], g[1]), (h[1], g[0])
        return 0.5 * sum(region_contrast(*pair, self.temperature) for pair in directions)

    @staticmethod
    def _run(mlp, rows: Tensor) -> Tensor:
        # a sum over thousands of locations is too large for float16
        return in_float32(mlp)(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
