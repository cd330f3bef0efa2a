# DETReg's views (arXiv 2106.04550): the image, or half of the time a region of it, flipped or not;
# and the crops of up to thirty proposals, which are never flipped. Proposals are windows of a grid,
# which needs no file; the published ones are selective search's: train_pipeline[1]['source'] =
# 'proposals.npz' of tools/make_proposals.py --method selective-search-128 (docs/data.md). Images of
# a batch have different sizes: the train_dataloader of a recipe takes
# collate_fn=dict(type='mmdense.pad_collate').
view_pipeline_image = [
    dict(
        type='RandomSizeCrop',
        scale=[400, 500, 600],
        size_range=(384, 600),
        prob=0.5,
        min_proposals=2,
    ),
    dict(
        type='ResizeShortSide',
        scale=[320, 336, 352, 368, 400, 416, 432, 448, 464, 480],
        max_size=600,
    ),
    dict(type='RandomFlip', prob=0.5),
]
view_pipeline_crop = [
    dict(type='CropProposal', scale=128, fewer=True),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, prob=0.8),
    dict(type='RandomGrayscale', prob=0.2),
    dict(type='GaussianBlur', sigma=(0.1, 2.0), prob=0.5),
]

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadProposals', source='grid', max_num=30, shuffle=True, min_num=2),
    dict(
        type='MultiView',
        num_views=[1, 30],
        transforms=[view_pipeline_image, view_pipeline_crop],
    ),
    dict(type='PackInputs'),
]
