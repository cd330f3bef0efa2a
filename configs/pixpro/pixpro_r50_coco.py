_base_ = 'pixpro_resnet50_8xb128-coslr-800e_coco.py'
