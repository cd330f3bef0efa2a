# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Know the checkpoints of other code's trainings by the names of their parts.

A file may hold several networks. The one that is taken is the one that the method's authors
transfer. A new layout is one more entry in :data:`LAYOUTS`; an algorithm of mmdense declares its
authors' files itself (``AUTHORS``).
"""

import re
from typing import Iterable, Iterator, NamedTuple, Optional, Tuple

from .architectures import first_names


class Layout(NamedTuple):
    """Describe the checkpoints that a training of other code writes.

    Attributes:
        source (str): Method or library.
        parts (Tuple[str, ...]): Patterns; each matches the beginning of a tensor's name.
        product (str): Pattern of what is in front of the names of the backbone's tensors.
        network (str): Network that is taken, in words; '' where there is only one.
    """

    source: str
    parts: Tuple[str, ...]
    product: str
    network: str = ''


_DDP = r'(?:module\.)*'
_WRAPPED = r'(?:wrapped_model|model_wrapper)\.(?:_model|_features)\.'

# The first that fits is taken.
LAYOUTS = (
    Layout(
        'OpenSelfSup MoCo',
        (r'encoder_q\.0\.', r'encoder_k\.0\.'),
        r'encoder_q\.0\.',
        'query encoder',
    ),
    *(
        Layout(
            f'MoCo v{version}',
            (r'encoder_q\.conv1\.', r'encoder_q\.layer1\.', head),
            r'encoder_q\.',
            'query encoder',
        )
        for version, head in (
            (2, r'encoder_q\.fc\.0\.'),
            (1, r'encoder_q\.fc\.weight'),
            (1, r'queue'),
        )
    ),
    Layout(
        "detectron2's FPN",
        (r'backbone\.bottom_up\.', r'backbone\.fpn_lateral'),
        r'backbone\.bottom_up\.',
    ),
    Layout(
        'MoCo v3',
        (r'base_encoder\.', r'momentum_encoder\.', r'predictor\.'),
        r'base_encoder\.',
        'base encoder',
    ),
    Layout(  # iBOT's too, and a teacher alone
        'DINO',
        (rf'teacher\.{_DDP}backbone\.', rf'teacher\.{_DDP}head\..*last_layer'),
        rf'teacher\.{_DDP}backbone\.',
        'teacher',
    ),
    Layout('DINOv2', (r'teacher\.backbone\.', r'teacher\.dino_head\.'), r'teacher\.backbone\.'),
    Layout('DINOv2', (r'backbone\.', r'dino_head\.'), r'backbone\.', 'teacher'),
    Layout(
        'byol-pytorch',
        (r'online_encoder\.net\.', r'online_predictor\.'),
        r'online_encoder\.net\.',
        'online encoder',
    ),
    Layout(
        'lightly-train',
        (rf'teacher_embedding_model\.{_WRAPPED}', rf'student_embedding_model\.{_WRAPPED}'),
        rf'teacher_embedding_model\.{_WRAPPED}',
        'teacher',
    ),
    Layout(
        'lightly-train',
        (r'teacher_embedding_model_wrapper\.', r'student_embedding_model_wrapper\.'),
        r'teacher_embedding_model_wrapper\.(?:_model|_features)\.',
        'teacher',
    ),
    Layout(
        'lightly-train',
        (rf'query_encoder\.embedding_model\.{_WRAPPED}',),
        rf'query_encoder\.embedding_model\.{_WRAPPED}',
        'query encoder',
    ),
    Layout(
        'lightly-train',
        (rf'(?:student_)?embedding_model\.{_WRAPPED}',),
        rf'(?:student_)?embedding_model\.{_WRAPPED}',
    ),
    # lightly's examples and benchmarks
    Layout(
        'lightly', (r'student_backbone\.', r'teacher_backbone\.'), r'teacher_backbone\.', 'teacher'
    ),
    Layout('lightly', (r'backbone\.', r'student_backbone\.'), r'backbone\.', 'teacher'),
    Layout(
        'lightly',
        (r'backbone\.', r'projection_head\.', r'(?:backbone_momentum|teacher_backbone)\.'),
        r'backbone\.',
        'student',
    ),
    Layout('lightly', (r'backbone\.', r'projection_head\.(?:layers\.)?\d'), r'backbone\.'),
    Layout(
        'solo-learn',
        (r'backbone\.', r'momentum_backbone\.', r'classifier\.'),
        r'backbone\.',
        'student',
    ),
    Layout('solo-learn', (r'backbone\.', r'classifier\.', r'projector\.'), r'backbone\.'),
    Layout(
        'solo-learn',  # before 1.0.3
        (r'encoder\.', r'classifier\.', r'(?:projector|momentum_encoder|predictor|prototypes)\.'),
        r'encoder\.',
        'student',
    ),
    Layout('Barlow Twins', (r'backbone\.', r'projector\.0\.', r'bn\.running_'), r'backbone\.'),
    *(
        Layout('transformers', (rf'{name}\.embed\w+\.',), rf'{name}\.')
        for name in ('resnet', 'vit', 'convnext', 'convnextv2', 'dinov2', 'dinov2_with_registers')
    ),
    Layout(
        'CLIP',
        (r'visual\.class_embedding', r'visual\.transformer\.resblocks\.'),
        r'visual\.',
        'visual tower',
    ),
    Layout(
        'transformers',
        (r'vision_model\.embeddings\.class_embedding', r'vision_model\.encoder\.layers\.'),
        r'vision_model\.',
        'visual tower',
    ),
)


def find_layout(names: Iterable[str]) -> Optional[Tuple[Layout, str]]:
    """Find the layout that tensors are named in.

    Args:
        names (Iterable[str]): Names of all tensors of a file.

    Returns:
        tuple[Layout, str], optional: The layout, and what is in front of the names of the
        backbone's tensors. None for an unknown one.
    """
    names = list(names)
    for layout in (*LAYOUTS, *_layout_of_heads(names)):
        if all(any(re.match(part, name) for name in names) for part in layout.parts):
            found = (re.match(layout.product, name) for name in names)
            prefixes = {match.group() for match in found if match}
            if len(prefixes) == 1:
                return layout, prefixes.pop()
    return None


def _layout_of_heads(names: Iterable[str]) -> Iterator[Layout]:
    """Yield the layout of a training whose parts have the usual names, whatever its code."""
    names = [name for name in names if name not in ('classifier.weight', 'classifier.bias')]
    parts = set(first_names(names))
    if 'backbone' in parts and all(map(_PART_OF_TRAINING.fullmatch, parts)):
        several = any('backbone' in part for part in parts - {'backbone'})
        yield Layout('an unnamed training', (), r'backbone\.', 'student' if several else '')


_ROLE = 'student|teacher|online|target|momentum|ema|key|query'
_PART_OF_TRAINING = re.compile(
    rf'(?:(?:{_ROLE})_)?(?:backbone|projector|predictor|bn|prototypes?|center|queue\w*|'
    rf'(?:projection|prediction)(?:_head|_mlp)?|criterion|loss\w*|\w+_loss)(?:_(?:{_ROLE}))?'
)
