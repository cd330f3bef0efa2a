# DINO's multi-crop for vision transformers (arXiv 2104.14294, section 3.1): two global crops of
# 224 px that show 40 to 100 % of the image, and eight local crops of 96 px that show 5 to 40 %,
# under BYOL's augmentation. The first global crop is always blurred, the second rarely, and
# sometimes solarized; a local one is blurred half of the time.
shared = [
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
crop = dict(
    type='RandomResizedCrop', scale=224, crop_ratio_range=(0.4, 1.0), interpolation='bicubic'
)

view_pipelines = [
    [crop, *shared, dict(blur, prob=1.0)],
    [crop, *shared, dict(blur, prob=0.1), dict(type='Solarize', thr=128, prob=0.2)],
    [dict(crop, scale=96, crop_ratio_range=(0.05, 0.4)), *shared, dict(blur, prob=0.5)],
]
del shared, blur, crop  # no part of the config

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=[1, 1, 8], transforms=view_pipelines),
    dict(type='PackInputs'),
]
