_base_ = './dino_r50.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DINOViT',
        arch='deit-small',
        img_size=224,
        drop_path_rate=0.1,  # of the student alone
    ),
    neck=dict(in_channels=384),
)
