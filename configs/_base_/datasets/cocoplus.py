_base_ = './unlabeled.py'

# COCO+: train2017 and unlabeled2017, 241,690 images
train_dataloader = dict(
    dataset=dict(data_root='data/coco', data_prefix=['train2017', 'unlabeled2017'])
)
