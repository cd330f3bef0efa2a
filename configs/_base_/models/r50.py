# The part that all algorithms share. An algorithm's file adds the norm and the initialisation.
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(type='mmpretrain.ResNet', depth=50),
)
