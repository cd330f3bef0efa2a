# Deformable DETR R50 on COCO's 60 classes that VOC has not: the first stage of few-shot detection,
# 50 epochs, from a pretrained detector, by DETReg's protocol.
_base_ = './deformable-detr_r50_50e_coco.py'

metainfo = dict(
    classes=(
        *('truck', 'traffic light', 'fire hydrant', 'stop sign', 'parking meter', 'bench'),
        *('elephant', 'bear', 'zebra', 'giraffe', 'backpack', 'umbrella', 'handbag', 'tie'),
        *('suitcase', 'frisbee', 'skis', 'snowboard', 'sports ball', 'kite', 'baseball bat'),
        *('baseball glove', 'skateboard', 'surfboard', 'tennis racket', 'wine glass', 'cup'),
        *('fork', 'knife', 'spoon', 'bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli'),
        *('carrot', 'hot dog', 'pizza', 'donut', 'cake', 'bed', 'toilet', 'laptop', 'mouse'),
        *('remote', 'keyboard', 'cell phone', 'microwave', 'oven', 'toaster', 'sink'),
        *('refrigerator', 'book', 'clock', 'vase', 'scissors', 'teddy bear', 'hair drier'),
        'toothbrush',
    )
)
model = dict(bbox_head=dict(num_classes=60))
train_dataloader = dict(dataset=dict(metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader
