# What every algorithm here starts from. A norm and an initialisation come with the algorithm.
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(type='mmpretrain.ResNet', depth=50),
)
