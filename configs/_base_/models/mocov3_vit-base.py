_base_ = './mocov3_vit-small.py'

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=768))
