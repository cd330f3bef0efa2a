# Fine-tuning on 1 % of ImageNet's labels, SwAV's protocol: all of a ResNet-50 with SyncBN, SGD with
# lr 0.01 and 0.2 for the linear layer, a fifth of it after 12 and 16 of 20 epochs, without weight
# decay; 256 images a step. The images are those of SimCLR's list, 1percent.txt.
_base_ = [
    'mmpretrain::mocov2/benchmarks/resnet50_8xb32-linear-steplr-100e_in1k.py',
    '_base_/protocol.py',
]

model = dict(
    backbone=dict(
        frozen_stages=-1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(_delete_=True, **_base_.init_cfg),
    )
)
train_dataloader = dict(
    dataset=dict(type='mmdense.ListedImageNet', list_file='data/imagenet/1percent.txt')
)

optim_wrapper = dict(
    optimizer=dict(lr=0.01),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=20))),
)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[12, 16], gamma=0.2)]
train_cfg = dict(max_epochs=20)
auto_scale_lr = dict(base_batch_size=256)
