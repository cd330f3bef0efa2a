_base_ = './unlabeled.py'

# COCO train2017, 118,287 images
train_dataloader = dict(dataset=dict(data_root='data/coco', data_prefix='train2017'))
