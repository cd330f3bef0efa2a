_base_ = './slotcon/slotcon_resnet50_8xb64-coslr-800e_cocoplus.py'
