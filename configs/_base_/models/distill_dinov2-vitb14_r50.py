_base_ = './r50.py'

# Another teacher: teacher=dict(_delete_=True, checkpoint='FILE'), whose tensors show the network.
model = dict(
    type='DenseDistill',
    backbone=dict(norm_cfg=dict(type='SyncBN')),
    neck=dict(type='ProjectionMLP', num_layers=1),
    head=dict(type='MapDistillationHead', cosine=0.9, smooth_l1=0.1),
    teacher=dict(
        checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth',
        backbone=dict(
            type='mmpretrain.VisionTransformer',
            arch='base',
            img_size=518,
            patch_size=14,
            layer_scale_init_value=1.0,
            out_type='featmap',
        ),
        size=224,  # that of the views; 16 × 16 locations
    ),
)
