_base_ = 'pixpro_resnet50_8xb128-coslr-100e_in1k.py'
