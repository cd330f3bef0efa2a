# Fine-tuning on 10 % of ImageNet's labels: as semi_r50_1-percent-20e_in1k.py, of which it changes
# the list alone.
_base_ = './semi_r50_1-percent-20e_in1k.py'

train_dataloader = dict(dataset=dict(list_file='data/imagenet/10percent.txt'))
