# One view of an image: a crop and a flip, no change of colour, as in feature distillation (its
# released code, data_fd.py, and the configs' MIN_SCALE). The teacher sees the same view.
view_pipeline = [
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.08, 1.0)),
    dict(type='RandomFlip', prob=0.5),
]

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=1, transforms=[view_pipeline]),
    dict(type='PackInputs'),
]
