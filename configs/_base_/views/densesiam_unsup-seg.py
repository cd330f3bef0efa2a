# The views of PiCIE and of DenseSiam's segmentation (arXiv 2103.17070, 2203.11075): colours are
# changed in the square of 640 px. The first view is a crop of it; the second is all of it, and its
# crop follows the network. Published code draws crop and colours of an image once for the run and
# has another blur than its config says: here each step draws anew, and σ is uniform in 0.1 to 2.
colours = [
    dict(type='ColorJitter', brightness=0.3, prob=0.8),
    dict(type='ColorJitter', contrast=0.3, prob=0.8),
    dict(type='ColorJitter', saturation=0.3, prob=0.8),
    dict(type='ColorJitter', hue=0.1, prob=0.8),
    dict(type='RandomGrayscale', prob=0.2),
    dict(type='GaussianBlur', sigma=(0.1, 2.0), prob=0.5),
]
view_pipelines = [
    [
        *colours,
        dict(type='RandomSquareCrop', scale=320, side_range=(0.5, 1.0)),
        dict(type='RandomFlip', prob=0.5),
    ],
    [
        *colours,
        # all of the square
        dict(
            type='RandomResizedCrop',
            scale=320,
            crop_ratio_range=(1.0, 1.0),
            aspect_ratio_range=(1.0, 1.0),
            interpolation='bilinear',
        ),
    ],
]
del colours  # no part of the config

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='mmpretrain.ResizeEdge', scale=640, edge='short', backend='pillow'),
    dict(type='mmpretrain.CenterCrop', crop_size=640),
    dict(type='MultiView', num_views=[1, 1], transforms=view_pipelines),
    dict(type='PackInputs'),
]
