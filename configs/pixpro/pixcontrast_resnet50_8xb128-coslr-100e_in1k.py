_base_ = './pixpro_resnet50_8xb128-coslr-100e_in1k.py'

model = dict(
    head=dict(_delete_=True, type='PixContrastHead', temperature=0.3, pos_ratio=0.7),
)
