# Two views of an image under MoCo v3's augmentation (arXiv 2104.02057): BYOL's with the flip last
# and, for a ResNet, with larger crops.
shared = [
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.2, 1.0),
        interpolation='bilinear',
    ),
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
flip = dict(type='RandomFlip', prob=0.5)

view_pipelines = [
    [*shared, dict(blur, prob=1.0), flip],
    [*shared, dict(blur, prob=0.1), dict(type='Solarize', thr=128, prob=0.2), flip],
]
del shared, blur, flip  # no part of the config

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=[1, 1], transforms=view_pipelines),
    dict(type='PackInputs'),
]
