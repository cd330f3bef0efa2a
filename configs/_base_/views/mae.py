# One view of an image: a crop and a flip, no change of colour (arXiv 2111.06377, appendix A.1).
view_pipeline = [
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.2, 1.0),
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5),
]

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=1, transforms=[view_pipeline]),
    dict(type='PackInputs'),
]
