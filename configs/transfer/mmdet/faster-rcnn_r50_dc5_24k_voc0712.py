# Faster R-CNN on VOC 2007 + 2012 with a dilated C5: all stages are in the backbone, the last
# dilated to stride 16, and the box head has two linear layers, as in mmdet's DC5. Data, schedule
# and test are those of faster-rcnn_r50_c4_24k_voc0712.py.
_base_ = './faster-rcnn_r50_c4_24k_voc0712.py'

model = dict(
    backbone=dict(num_stages=4, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(3,)),
    rpn_head=dict(in_channels=2048, feat_channels=2048),
    roi_head=dict(
        shared_head=None,
        bbox_roi_extractor=dict(roi_layer=dict(output_size=7), out_channels=2048),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            with_avg_pool=False,
            in_channels=2048,
            fc_out_channels=1024,
            roi_feat_size=7,
        ),
    ),
)
