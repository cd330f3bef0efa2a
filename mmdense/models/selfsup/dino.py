# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from operator import attrgetter
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmdense.models.layers import MomentumEncoder, TeacherCenter
from mmdense.models.losses import multi_crop_distillation
from mmdense.models.utils import count_nearest
from mmdense.models.utils.authors_names import name_vit_layers
from mmdense.models.utils.progress import run_progress
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero, check_counts, check_whole
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, RunFacts, Setting, Views
from .momentum import MomentumSelfSupervisor

Maps = Tuple[Tensor, ...]


def authors_formats(
    source: str, names: Dict[str, str], losses: Dict[str, str]
) -> Tuple[AuthorsFormat, ...]:
    """Return the formats of checkpoints of DINO's code, whose networks may be those of
    DistributedDataParallel.

    Args:
        source (str): Name of the code.
        names (dict[str, str]): Beginnings of the names in a network, the backbone's first, and of
            ours.
        losses (dict[str, str]): Names of the centers, and of ours.
    """
    formats = []
    for student, teacher in (('module.', 'module.'), ('module.', ''), ('', '')):
        roles = {f'student.{student}': '', f'teacher.{teacher}': 'encoder_k.module.'}
        ours = {role + k: place + v for role, place in roles.items() for k, v in names.items()}
        parts = (*(f'{role}backbone.' for role in roles), *losses)
        product = f'teacher.{teacher}{next(iter(names))}'
        formats.append(AuthorsFormat(source, parts, product, {**ours, **losses}, network='teacher'))
    return tuple(formats)


@MODELS.register_module()
class DINO(MomentumSelfSupervisor):
    """Assign each crop of an image to prototypes as a teacher assigns the others (DINO).

    `Emerging Properties in Self-Supervised Vision Transformers
    <https://arxiv.org/abs/2104.14294>`_ (ICCV 2021). The teacher is the momentum encoder; the
    product is its backbone.

    Args:
        backbone (dict): Any backbone that returns feature maps, of which the last one is used; or
            :class:`mmdense.models.backbones.DINOViT`, whose class token is used.
        neck (dict): :class:`mmdense.models.necks.DINONeck`.
        num_crops (Sequence[int]): Number of crops of each size, those of the teacher first.
            Defaults to (2, 8).
        student_temperature (float): τ_s. Defaults to 0.1.
        teacher_temperature (float): τ_t after its warm-up. Defaults to 0.04.
        warmup_teacher_temperature (float): τ_t in epoch 0. Defaults to 0.04.
        warmup_teacher_temperature_epochs (int): Epochs of the warm-up, along a line that reaches
            ``teacher_temperature`` in the last of them. 0: none. Defaults to 0.
        center_momentum (float): Weight of the past in the center, in [0, 1]. Defaults to 0.9.
        base_momentum (float): Momentum of the teacher at the first step, one minus the paper's;
            it falls to 0 along a cosine. Defaults to 0.004 (the paper's 0.996).
        total_steps (int, optional): Steps of the complete run. None takes those of MMEngine's
            runner.
        kwargs: ``pretrained`` and further arguments of :class:`SelfSupervisor`.
    """

    product = 'encoder_k.module.backbone'
    views = Views(groups=(2, 8))
    AUTHORS = authors_formats(
        'DINO', {'backbone.': 'backbone.', 'head.': 'neck.'}, {'dino_loss.center': 'center.value'}
    )

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        num_crops: Sequence[int] = (2, 8),
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_temperature_epochs: int = 0,
        center_momentum: float = 0.9,
        base_momentum: float = 0.004,
        total_steps: Optional[int] = None,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck, **kwargs)
        check_above_zero(
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            warmup_teacher_temperature=warmup_teacher_temperature,
        )
        check_whole(0, warmup_teacher_temperature_epochs=warmup_teacher_temperature_epochs)
        check_counts(**{f'num_crops[{i}]': number for i, number in enumerate(num_crops)})
        if neck is None or sum(num_crops) < 2:
            raise InputError(f'DINO needs a neck and two crops or more, got {list(num_crops)}')
        self.views = Views(groups=tuple(num_crops))
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.warmup_temperature = warmup_teacher_temperature
        self.warmup_epochs = warmup_teacher_temperature_epochs
        self.center = TeacherCenter(self.neck.num_prototypes, center_momentum)
        self.distil = multi_crop_distillation
        self.encoder_k = self.build_teacher(base_momentum, total_steps)

    def build_teacher(self, base_momentum: float, total_steps: Optional[int]) -> MomentumEncoder:
        """Copy the student; the teacher drops no paths."""
        teacher = MomentumEncoder(self.online_network(), base_momentum, 0.0, total_steps)
        for part in teacher.modules():
            if hasattr(part, 'drop_prob'):
                part.drop_prob = 0.0
        return teacher

    def online_network(self) -> nn.ModuleDict:
        """Return backbone and neck by name."""
        return nn.ModuleDict(dict(backbone=self.backbone, neck=self.neck))

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the loss of one step (paper, algorithm 1, with the crops of section 3.1).

        The paper updates the teacher at the end of a step. Here it is updated before its forward
        pass of the next step, with the momentum one step further along the cosine.

        Args:
            inputs (List[Tensor]): V crops of every image, each N×3×H×W, the teacher's first.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss``, a scalar from 0; ln P is chance.
        """
        self.check_views(inputs)
        return dict(loss=self.compare_images(*self.encode(inputs)))

    def encode(self, inputs: List[Tensor]) -> Tuple[List[Maps], Maps]:
        """Compute the student's maps, where crops of one size are one batch, and after the update
        of the teacher its maps of the crops of the first size."""
        online = self.online_network()
        crops = [torch.cat(views) for views in self.views.split(inputs)]
        student = [online['backbone'](batch) for batch in crops]
        with torch.no_grad():
            self.encoder_k.update(online)
            teacher = self.encoder_k.module['backbone'](crops[0])
        return student, teacher

    def compare_images(self, student: List[Maps], teacher: Maps) -> Tensor:
        """Compute the loss of complete crops (paper, equations 3 and 4), and update the center.

        Args:
            student (list[tuple[Tensor]]): Maps of the crops of each size.
            teacher (tuple[Tensor]): Maps of the G crops of the first size, each (GN)×C×H×W.
        """
        z, scores = self.neck([maps[-1] for maps in student])  # (VN)xC, (VN)xP
        with torch.no_grad():
            z_t, scores_t = self.encoder_k.module['neck'](teacher[-1:])  # (GN)xC, (GN)xP

        scores = scores.unflatten(0, (self.views.count, -1))  # VxNxP
        scores_t = scores_t.unflatten(0, (self.views.groups[0], -1))  # GxNxP
        center, number = self.center.value, scores.size(1)
        loss = self.distil(
            scores, scores_t, center, self.student_temperature, self.current_temperature()
        )
        self.probe(
            global_=(z[number : 2 * number], z_t[:number]),
            prototypes=lambda: count_nearest(scores_t - center),
        )
        self.center.update(*scores_t)
        return loss

    def current_temperature(self) -> float:
        """Return the teacher's temperature τ_t in this epoch."""
        epoch, epochs = run_progress('epoch'), self.warmup_epochs
        rest = max(1 - epoch / max(epochs - 1, 1), 0) if epoch < epochs else 0
        return (
            self.teacher_temperature + (self.warmup_temperature - self.teacher_temperature) * rest
        )

    def compile_parts(self, **options) -> None:
        """Compile the networks and the loss in place; the state dict keeps its names.

        Args:
            options: Arguments of ``torch.compile``.
        """
        self.compile_networks(**options)
        self.distil = torch.compile(self.distil, **options)

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return how long the prototypes stay, and the warm-up of the teacher's temperature; with a
        checkpoint to start from its number of prototypes.

        Without one there are as many as in the recipe, however few the images: with 1,024 of 256
        numbers the features of short runs lost their variation, with 16,384 they kept it.
        """
        usual = facts.recipe.train_cfg.max_epochs
        epochs = facts.steps // max(facts.images // facts.batch, 1)
        rules, shape = [], facts.init_shapes.get('neck.last_layer.weight_v')
        if shape:
            learned = 'neck.last_layer.weight_g' in facts.init_shapes
            config = {
                'model.neck.num_prototypes': shape[0],
                'model.neck.norm_last_layer': not learned,
            }
            reason = f'as {facts.init} has them'
            rules.append(Setting('prototypes', f'{shape[0]:,}', reason, config))

        lengths = [
            ('prototypes stay', 'default_hooks.freeze_last_layer', 'epochs'),
            ("teacher's warm-up", 'model', 'warmup_teacher_temperature_epochs'),
        ]
        for name, place, key in lengths:
            share = attrgetter(place)(facts.recipe).get(key)
            if share:
                number, reason = round(epochs * share / usual), f"{share} of the recipe's {usual}"
                if shape:
                    number, reason = 0, 'the prototypes are trained already'
                rules.append(
                    Setting(name, f'{number:,} epochs', reason, {f'{place}.{key}': number})
                )
        return rules

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return an authors' tensors with mmpretrain's names of a ViT's layers, flat centers, and
        without lengths of prototypes that are 1, as they are where they are not learned."""
        tensors = super().complete_authors_state(name_vit_layers(tensors))
        lengths = {name: x for name, x in tensors.items() if name.endswith('last_layer.weight_g')}
        if all(x.eq(1).all() for x in lengths.values()):
            tensors = {name: x for name, x in tensors.items() if name not in lengths}
        centers = {name: x.flatten() for name, x in tensors.items() if 'center' in name}
        return {**tensors, **centers}

    def as_new_run(self, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return a checkpoint's tensors for the start of another run; where lengths of prototypes
        are to be learned and it has none, they begin at 1."""
        tensors = super().as_new_run(tensors)
        for name, value in self.state_dict().items():
            if name.endswith('last_layer.weight_g'):
                tensors.setdefault(name, torch.ones_like(value))
        return tensors
