_base_ = './unlabeled.py'

# COCO-Stuff with 27 classes: PiCIE's curated images, 49,629 of train2017 to learn from without
# labels and 2,175 of val2017 to evaluate. curated/ is from github.com/janghyuncho/PiCIE,
# stuffthingmaps/ from github.com/nightrome/cocostuff. _scope_ makes the types mmseg's under any
# default scope.
curated = 'Coco164kFull_Stuff_Coarse_7.txt'

train_dataloader = dict(
    dataset=dict(
        data_root='data/coco',
        ann_file=f'curated/train2017/{curated}',
        data_prefix='train2017',
    )
)

# the published protocol: short side to 320 px, labels by the nearest, the central square
test_pipeline = [
    dict(type='LoadImageFromFile', _scope_='mmseg'),
    dict(type='LoadAnnotations', _scope_='mmseg'),
    dict(type='Resize', scale=(10000, 320), keep_ratio=True, backend='pillow', _scope_='mmseg'),
    dict(type='CenterCrop', crop_size=(320, 320), _scope_='mmseg'),
    dict(type='PackSegInputs', _scope_='mmseg'),
]
test_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    # stacks the images, so that SelfSupDataPreprocessor normalises them as in training
    collate_fn=dict(type='mmdense.default_collate'),
    dataset=dict(
        type='CocoStuff27',
        data_root='data/coco',
        ann_file=f'curated/val2017/{curated}',
        data_prefix=dict(img_path='val2017', seg_map_path='stuffthingmaps/val2017'),
        pipeline=test_pipeline,
    ),
)
