# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Give the parts of the local loss to the tests of each algorithm that has it."""


def local_parts(projector, norm, in_channels=64, predictor=True):
    """Return the configs of a neck of two branches, and of the local head.

    Args:
        projector (dict): The algorithm's own neck.
        norm (dict): Config of the norm.
        in_channels (int): Channels of the backbone's map.
        predictor (bool): Whether the local head has one.
    """
    mlp = dict(type='ProjectionMLP', hid_channels=16, out_channels=8, norm_cfg=norm)
    neck = dict(
        type='GlobalLocalNeck', in_channels=in_channels, projector=projector, local_projector=mlp
    )
    head = dict(type='LocalContrastHead')
    if predictor:
        head.update(predictor=dict(mlp, in_channels=8))
    return dict(neck=neck, local_head=head)


def options(*hidden):
    """Return the options that make a recipe's two projectors small, and other paths of widths."""
    paths = ('neck.projector', 'neck.local_projector', *hidden)
    return ['model.neck.in_channels=512', *(f'model.{p}.hid_channels=64' for p in paths)]
