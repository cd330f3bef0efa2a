_base_ = './slotcon_resnet50_8xb64-coslr-800e_coco.py'

# COCO+: train2017 and unlabeled2017, 241,690 images
train_dataloader = dict(dataset=dict(data_prefix=['train2017', 'unlabeled2017']))
