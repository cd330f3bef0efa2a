_base_ = './unlabeled.py'

# ImageNet-100, about 126,000 images: the folders of 100 classes of ImageNet-1k; the classes are not
# used
train_dataloader = dict(dataset=dict(data_root='data/imagenet100', data_prefix='train'))
