# The study at a size that two CPU cores do in some hours a seed. A run of a method or a task is a
# piece; `minutes` are what one is expected to take there.
methods = ['mocov2', 'densecl', 'pixpro', 'slotcon', 'detco']
seeds = [0]
share = 10  # the tasks with few labels: every tenth training image

# Settings are those of `mmdense pretrain`, by mmdense.apis.planning's rules, for `device`
pretrain = dict(
    device='cpu',
    images=['unlabeled', 'camvid/img_dir/train'],
    backbone='resnet18',
    size=96,
    batch_size=32,
    epochs=10,
    workers=1,
    without=['blur'],  # rules that are newer than the results: docs/evidence.md
    minutes=dict(mocov2=18, densecl=14, pixpro=24, slotcon=45, detco=24),
    # nearest neighbours on 50 images of val, for the learning curve
    evaluation=dict(interval=2, methods=['knn'], max_images=50),
)

# tools/evaluate_features.py on every image of train and test
frozen = dict(
    config='configs/_base_/evaluation_camvid.py',
    data_root='camvid',
    minutes=4,
    options={
        'max_images': None,
        'data.test.img_path': 'img_dir/test',
        'data.test.seg_map_path': 'ann_dir/test',
    },
)

_no_validation = dict.fromkeys(['val_cfg', 'val_dataloader', 'val_evaluator'])
_checkpoints = {
    'default_hooks.checkpoint.type': 'mmdense.CheckpointHook',  # whole files, whenever killed
    'default_hooks.checkpoint.interval': 50,
    'default_hooks.checkpoint.max_keep_ckpts': 1,
    'default_hooks.logger.interval': 10,
    'train_dataloader.num_workers': 1,
    'test_dataloader.num_workers': 1,
    'model.backbone.depth': 18,
}

# tools/transfer.py: a config of configs/transfer, and what is smaller here
tasks = dict(
    camvid=dict(
        task='fcn_r50_camvid',
        train='camvid/img_dir/train',  # what names the training images: a folder, or a list
        metrics={'mIoU': 'mIoU'},
        by_class='IoU',  # a column of the tables that testing prints
        percent=True,
        controls=True,  # with few labels also from the weights after 0 iterations
        minutes=13,
        options={
            **_checkpoints,
            **_no_validation,
            'model.decode_head.in_channels': 512,
            'model.data_preprocessor.size': (192, 256),
            'train_dataloader.dataset.pipeline.3.crop_size': (192, 256),
            'train_cfg.max_iters': 1000,
            'param_scheduler.0.end': 1000,
        },
    ),
    bccd=dict(
        task='faster-rcnn_r50_fpn_bccd',
        train='bccd/ImageSets/Main/train.txt',
        metrics={'AP': 'pascal_voc/mAP', 'AP50': 'pascal_voc/AP50'},
        by_class='ap',  # in a table for each IoU of AP
        percent=False,
        best=2,  # dense methods that come first, with the baselines: those best at camvid's share
        minutes=15,
        options={
            **_checkpoints,
            **_no_validation,
            'model.neck.in_channels': [64, 128, 256, 512],
            'model.neck.out_channels': 128,
            'model.rpn_head.in_channels': 128,
            'model.rpn_head.feat_channels': 128,
            'model.roi_head.bbox_roi_extractor.out_channels': 128,
            'model.roi_head.bbox_head.in_channels': 128,
            'model.roi_head.bbox_head.conv_out_channels': 128,
            'model.roi_head.bbox_head.fc_out_channels': 256,
            'model.train_cfg.rpn_proposal.nms_pre': 500,
            'model.train_cfg.rpn_proposal.max_per_img': 250,
            'model.train_cfg.rcnn.sampler.num': 64,
            'model.test_cfg.rpn.nms_pre': 500,
            'model.test_cfg.rpn.max_per_img': 250,
            'train_dataloader.dataset.pipeline.2.scales': [(320, 240)],
            'test_dataloader.dataset.pipeline.1.scale': (320, 240),
            # one box of train has no area: its loss would not be finite
            'train_dataloader.dataset.filter_cfg.bbox_min_size': 1,
            'train_cfg.max_iters': 500,
            'param_scheduler.1.end': 500,
            'param_scheduler.1.milestones': [375, 460],
        },
    ),
)

# The recipe for small data, of the rules alone: one data set's training images, from random weights
# and continued from what the same method learned above.
_bccd = dict(
    method='densecl',
    images=['bccd/JPEGImages'],
    names='bccd/ImageSets/Main/train.txt',
    epochs=None,
    evaluation=None,
    task='bccd',
)
_camvid = dict(
    method='densecl', images=['camvid/img_dir/train'], epochs=None, task='camvid', frozen=True
)
small = {
    'densecl-bccd': _bccd,
    'densecl-bccd-continued': dict(_bccd, start='densecl'),
    'densecl-camvid': _camvid,
    # of 54 epochs: an evaluation at every second takes longer than the training between
    'densecl-camvid-continued': dict(
        _camvid, start='densecl', evaluation=dict(interval=9, methods=['knn'], max_images=50)
    ),
}
