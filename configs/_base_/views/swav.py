# SwAV's multi-crop (arXiv 2006.09882, section 3.3 and appendix A): two views of 224 px that show
# 14 to 100 % of the image and six of 96 px that show 5 to 14 %, under the same augmentation.
shared = [
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='ColorJitter',
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        prob=0.8,
    ),
    dict(type='RandomGrayscale', prob=0.2),
    dict(type='GaussianBlur', sigma=(0.1, 2.0), prob=0.5),
]
crop = dict(type='RandomResizedCrop', interpolation='bilinear')

view_pipelines = [
    [dict(crop, scale=224, crop_ratio_range=(0.14, 1.0)), *shared],
    [dict(crop, scale=96, crop_ratio_range=(0.05, 0.14)), *shared],
]
del shared, crop  # no part of the config

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=[2, 6], transforms=view_pipelines),
    dict(type='PackInputs'),
]
