_base_ = './unlabeled.py'

# ImageNet-1k, 1,281,167 images in one folder for each class; the classes are not used
train_dataloader = dict(dataset=dict(data_root='data/imagenet', data_prefix='train'))
