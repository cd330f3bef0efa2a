_base_ = './detco.py'

# DetCo-AA: RandAugment on the global views only. The paper gives neither N nor M. The values here
# are our choice: RandAugment's for a ResNet-50 (arXiv 1909.13719), with timm's noise on M
# ('rand-m9-n2-mstd0.5'). RandAugment precedes the greyscale, as in InfoMin (arXiv 2005.10243).
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
        # ImageNet's mean in BGR fills the pixels that move in
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
    ),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0] = view_pipeline
