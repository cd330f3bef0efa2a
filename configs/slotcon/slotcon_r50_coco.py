_base_ = 'slotcon_resnet50_8xb64-coslr-800e_coco.py'
