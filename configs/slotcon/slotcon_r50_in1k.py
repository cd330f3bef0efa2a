_base_ = 'slotcon_resnet50_8xb64-coslr-100e_in1k.py'
