# Two views of an image under BYOL's augmentation (arXiv 2006.07733, appendix B). The published code
# adds to the brightness; here it is multiplied, as in every other recipe.
shared = [
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.08, 1.0),
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='ColorJitter',
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        prob=0.8,
    ),
    dict(type='RandomGrayscale', prob=0.2),
]
blur = dict(type='GaussianBlur', sigma=(0.1, 2.0))

view_pipelines = [
    [*shared, dict(blur, prob=1.0)],
    [*shared, dict(blur, prob=0.1), dict(type='Solarize', thr=128, prob=0.2)],
]
del shared, blur  # no part of the config

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=[1, 1], transforms=view_pipelines),
    dict(type='PackInputs'),
]
