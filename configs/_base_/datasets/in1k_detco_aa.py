_base_ = './in1k_detco.py'

# DetCo-AA: RandAugment on the global views only. Its N and M are not published. Those here are
# our choice: RandAugment's for a ResNet-50 (arXiv 1909.13719), with timm's noise on M
# ('rand-m9-n2-mstd0.5'); so is its place before the greyscale, that of InfoMin (arXiv 2005.10243).
view_pipeline = _base_.view_pipeline
view_pipeline.insert(
    3,
    dict(
        type='RandAugment',
        _scope_='mmpretrain',  # also for the policies, which the preset names without a prefix
        policies='timm_increasing',
        num_policies=2,
        magnitude_level=9,
        magnitude_std=0.5,
        # what moves in is ImageNet's mean, BGR
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
    ),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0] = view_pipeline

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
