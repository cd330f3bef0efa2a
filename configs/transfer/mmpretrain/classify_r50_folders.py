# Fine-tuning on photographs that lie in one folder for each class, below data/folders/train and
# data/folders/val: all of a ResNet-50, 1000 iterations of 32 images on one GPU. The schedule is no
# paper's. num_classes of the head is the number of folders, for which 3 is an example.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py',
    'mmpretrain::_base_/default_runtime.py',
    '_base_/protocol.py',
]

model = dict(backbone=_base_.backbone, head=dict(num_classes=3, topk=(1,)))
data_preprocessor = dict(num_classes=3)
folders = dict(_delete_=True, type='CustomDataset', _scope_='mmpretrain', data_root='data/folders')
train_dataloader = dict(
    num_workers=2,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(data_prefix='train', pipeline=_base_.train_pipeline, **folders),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(data_prefix='val', pipeline=_base_.test_pipeline, **folders),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, T_max=1000)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=500)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=500), logger=dict(interval=50))
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(base_batch_size=32)
