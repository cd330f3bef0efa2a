_base_ = './unlabeled.py'

# Two views of every image under MoCo v2's augmentation (arXiv 2003.04297); the
# flip comes last, as in DenseCL's code.
view_pipeline = [
    dict(
        type='mmpretrain.RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.2, 1.0),
        interpolation='bilinear',
        backend='pillow',
    ),
    dict(
        type='mmpretrain.RandomApply',
        transforms=[
            dict(
                type='mmpretrain.ColorJitter',
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1,
                backend='pillow',
            )
        ],
        prob=0.8,
    ),
    dict(
        type='mmpretrain.RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989),
    ),
    dict(
        type='mmpretrain.GaussianBlur',
        magnitude_range=(0.1, 2.0),
        magnitude_std='inf',
        prob=0.5,
    ),
    dict(type='mmpretrain.RandomFlip', prob=0.5),
]

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='mmpretrain.MultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='mmpretrain.PackInputs', meta_keys=('img_path',)),
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
