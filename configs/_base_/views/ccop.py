# CCOP's views (arXiv 2111.13651): two crops, each of which shows a proposal where one of ten tries
# does. Proposals are of a grid, which needs no file; the published ones are selective search's:
# train_pipeline[1]['source'] = 'proposals.npz' of tools/make_proposals.py (docs/data.md).
view_pipeline = [
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.1, 1.0),
        interpolation='bilinear',
        min_visible=0.6,
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
    dict(type='GaussianBlur', sigma=(0.1, 2.0), prob=0.5),
]

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadProposals', source='grid', max_num=100),
    dict(type='MultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackInputs'),
]
