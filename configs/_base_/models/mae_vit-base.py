# The decoder is 512 wide and 8 blocks deep for every encoder. The sizes of its input and of the
# patches follow from the backbone: another arch, patch_size or img_size needs no other change.
model = dict(
    type='MAE',
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(type='MAEViT', arch='base', img_size=224, patch_size=16, mask_ratio=0.75),
    neck=dict(
        type='mmpretrain.MAEPretrainDecoder',
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
    ),
    head=dict(
        type='mmpretrain.MAEPretrainHead',
        norm_pix=True,
        loss=dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2'),
    ),
)
