# Ablation: images and patches, the last stage only
_base_ = './detco_resnet50_8xb32-coslr-200e_in1k.py'

model = dict(stage_weights=(1.0,))
