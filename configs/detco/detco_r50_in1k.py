_base_ = 'detco_resnet50_8xb32-coslr-200e_in1k.py'
