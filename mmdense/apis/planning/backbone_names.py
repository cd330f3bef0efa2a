# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Translate the names of backbones that people type into those of mmpretrain."""

import re
from typing import Dict, Tuple

# Sizes of ViT, with the arch of mmpretrain's VisionTransformer. Its own 'small' has 768 channels
# in 8 layers; the ViT-S of papers, timm and torchvision has 384 channels in 12 layers.
_ARCHS = {
    **dict.fromkeys(('tiny', 'ti', 't'), 'deit-tiny'),
    **dict.fromkeys(('small', 's'), 'deit-small'),
    **dict.fromkeys(('base', 'b'), 'base'),
    **dict.fromkeys(('large', 'l'), 'large'),
    **dict.fromkeys(('huge', 'h'), 'huge'),
}
_SIZES = '|'.join(sorted(_ARCHS, key=len, reverse=True))
# vit-small, ViT-S/16, vit_base_patch16_224, vit_b_16, deit-tiny, deit_small_patch16_224
_VIT = re.compile(
    rf'(?:vit|deit)[-_]?({_SIZES})(?:[-_/]?(?:patch|p)?[-_]?(8|14|16|32))?(?:[-_](\d{{3}}))?'
)


def translate_name(name: str) -> Tuple[str, Dict[str, int]]:
    """Return a name that mmpretrain's classes begin, and further arguments.

    Args:
        name (str): A name as it is typed: of mmpretrain, or of a ViT in timm, torchvision, papers.

    Returns:
        tuple[str, dict[str, int]]: The name, such as 'visiontransformer-deit-small', and
        arguments of the class, such as ``patch_size``. A name that is no ViT is returned as it is.
    """
    match = _VIT.fullmatch(name.lower().split('.')[0])
    if match is None:
        return name, {}
    size, patch, _ = match.groups()  # views of any size are trained on
    return f'visiontransformer-{_ARCHS[size]}', {'patch_size': int(patch)} if patch else {}


def is_vit(name: str) -> bool:
    """Return whether a name, as it is typed, is that of a vision transformer."""
    return translate_name(name)[0].lower().startswith('visiontransformer')


def usual_name(name: str) -> str:
    """Return the usual name of a ViT that is typed in another way: 'vit-small' for ViT-S/16,
    'vit-small/8' for another size of its patches. Any other name is returned as it is."""
    kind, more = translate_name(name)
    if kind == name:
        return name
    patch = more.get('patch_size', 16)
    return name_vit(kind.partition('-')[2]) + (f'/{patch}' if patch != 16 else '')


def name_vit(arch: str) -> str:
    """Return the usual name of a ViT, such as 'vit-small', by its arch in mmpretrain."""
    sizes = {arch: size for size, arch in reversed(_ARCHS.items()) if len(size) > 2}
    return f'vit-{sizes.get(arch, arch)}'
