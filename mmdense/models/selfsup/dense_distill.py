# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Sequence, Tuple, Union

from mmengine.model import ModuleList
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from mmdense.models.heads.distillation_head import on_finer_grid
from mmdense.models.layers import FrozenTeacher
from mmdense.models.utils import map_channels
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .base import RunFacts, SelfSupervisor, Setting, Views


@MODELS.register_module()
class DenseDistill(SelfSupervisor, BaseSelfSupervisor):
    """Match the maps of a frozen teacher on the same view (dense distillation).

    The losses are those of AM-RADIO (https://arxiv.org/abs/2312.06709, CVPR 2024); the teacher's
    features are standardized and the projector is one layer, as in feature distillation
    (https://arxiv.org/abs/2205.14141). The network that is trained is any backbone.

    Args:
        backbone (dict): The student: any backbone that returns feature maps.
        neck (dict): A projector of one map, :class:`mmdense.models.necks.ProjectionMLP`. Each
            teacher gets one for each of ``layers``; its channels follow from the maps.
        head (dict): :class:`mmdense.models.heads.MapDistillationHead`, with the weights of the
            losses.
        teacher (dict | list[dict]): Arguments of :class:`mmdense.models.layers.FrozenTeacher`, such
            as ``dict(checkpoint='dinov2_vitb14_pretrain.pth')``. The losses of several are
            averaged.
        layers (Sequence[tuple[int, int]]): Pairs of maps that are compared, the student's and the
            teacher's, by their places in what the networks return. Defaults to the last ones.
        kwargs: Further arguments of :class:`SelfSupervisor`.

    Raises:
        InputError: There is no teacher, or a network has no such map.
    """

    views = Views(groups=(1,))

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        teacher: Union[None, dict, Sequence[dict]] = None,
        layers: Sequence[Tuple[int, int]] = ((-1, -1),),
        **kwargs,
    ) -> None:
        super().__init__(backbone, head=head, **kwargs)
        configs = [teacher or {}] if isinstance(teacher, dict) or not teacher else teacher
        pixels = self._view_pixels()
        self.teachers = ModuleList(
            self.in_format(FrozenTeacher(view_pixels=pixels, **config)) for config in configs
        )
        self.layers = [tuple(pair) for pair in layers]
        student = map_channels(self.backbone)
        self.necks, self.token_necks = ModuleList(), ModuleList()
        for part in self.teachers:
            pairs = _find_channels(self.layers, student, part.channels)
            necks = [MODELS.build(dict(neck, in_channels=i, out_channels=o)) for i, o in pairs]
            self.necks.append(self.in_format(ModuleList(necks)))
            if self.head.weights['token']:
                self.token_necks.append(nn.Linear(student[-1], part.channels[-1]))

    def loss(
        self, inputs: Union[Tensor, List[Tensor]], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (Tensor | List[Tensor]): Views, N×3×H×W; or a list of this one view.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss_cosine``, ``loss_smooth_l1``, ``loss_relation`` and
            ``loss_token``, those whose weight is above 0, the means over teachers and layers.
        """
        self.check_views(inputs)
        view = inputs if isinstance(inputs, Tensor) else inputs[0]
        maps = self.backbone(view)
        found: Dict[str, List[Tensor]] = {}
        for i, teacher in enumerate(self.teachers):
            targets, target_token = teacher(view)  # N×C×h×w each, N×C
            token = self._project_token(i, maps[-1])
            for neck, (student_map, teacher_map) in zip(self.necks[i], self.layers):
                projected, target = neck(maps[student_map]), targets[teacher_map]
                losses = self.head.loss(projected, target, token, target_token)
                token = None  # once for a teacher
                for name, value in losses.items():
                    found.setdefault(f'loss_{name}', []).append(value)
        self.probe(
            global_=lambda: (projected.float().mean((2, 3)), target.mean((2, 3))),
            dense=lambda: on_finer_grid(projected.float(), target),
        )
        return {name: sum(values) / len(values) for name, values in found.items()}

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return the teacher."""
        teacher = facts.recipe.model.teacher
        if not isinstance(teacher, dict):
            return []
        teacher = dict(teacher.to_dict() if hasattr(teacher, 'to_dict') else teacher)
        name = str(teacher.get('checkpoint')).rpartition('/')[2]
        config = {'model.teacher': dict(teacher, _delete_=True)}
        reason = 'frozen; its features are what the backbone learns'
        return [Setting('teacher', name, reason, config)]

    def _project_token(self, teacher: int, x: Tensor) -> Optional[Tensor]:
        return self.token_necks[teacher](x.mean((2, 3))) if len(self.token_necks) else None

    def trained_maps(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return the projections of the maps of N×C×H×W images."""
        maps = self.backbone(images)
        necks = (pair for necks in self.necks for pair in zip(necks, self.layers))
        return tuple(neck(maps[student]) for neck, (student, _) in necks)

    def trained_parts(self) -> List[nn.Module]:
        """Return the student and its projectors."""
        return [self.backbone, *(neck for necks in self.necks for neck in necks)]

    def _view_pixels(self) -> dict:
        """Return the normalisation of the views."""
        given = self.data_preprocessor
        mean, std = (given.mean, given.std) if given._enable_normalize else (0.0, 1.0)
        return dict(mean=mean, std=std, to_rgb=given._channel_conversion)


def _find_channels(
    layers: Sequence[Tuple[int, int]], student: Sequence[int], teacher: Sequence[int]
) -> List[Tuple[int, int]]:
    """Return the channels of the maps that are compared.

    Raises:
        InputError: A network has no such map.
    """
    for i, (name, maps) in enumerate((('student', student), ('teacher', teacher))):
        for place in (pair[i] for pair in layers):
            if not -len(maps) <= place < len(maps):
                raise InputError(
                    f'layers names map {place} of the {name}, which returns {len(maps)}: set '
                    'layers, or out_indices of the backbone'
                )
    return [(student[i], teacher[j]) for i, j in layers]
