# The projector of SimCLR v2 (arXiv 2006.10029) has three layers.
_base_ = './simclr_resnet50_16xb256-coslr-800e_in1k.py'

model = dict(neck=dict(num_layers=3))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))  # as the command in the code's README
