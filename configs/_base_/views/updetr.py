# UP-DETR's views (arXiv 2011.09094, section 4): the complete image, and ten random patches of it.
# The image is not flipped, cropped or recoloured. Images of a batch have different sizes: the
# train_dataloader of a recipe takes collate_fn=dict(type='mmdense.pad_collate').
view_pipeline_image = [
    dict(
        type='ResizeShortSide',
        scale=[320, 336, 352, 368, 400, 416, 432, 448, 464, 480],
        max_size=600,
    ),
]
view_pipeline_patch = [
    dict(type='CropProposal', scale=128),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, prob=0.8),
    dict(type='RandomGrayscale', prob=0.2),
    dict(type='GaussianBlur', sigma=(0.1, 2.0), prob=0.5),
]

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadProposals', source='random', max_num=10),
    dict(
        type='MultiView',
        num_views=[1, 10],
        with_boxes=False,
        transforms=[view_pipeline_image, view_pipeline_patch],
    ),
    dict(type='PackInputs'),
]
