_base_ = './distill_resnet50_8xb128-coslr-300e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        drop_path_rate=0.1,
        gap_before_final_norm=False,  # it returns maps
    )
)
