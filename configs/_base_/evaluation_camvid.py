# Evaluates the frozen features every ten epochs: nearest neighbours and a linear probe on CamVid's
# train and val. Also for tools/evaluate_features.py.
default_hooks = dict(
    evaluation=dict(
        type='DenseEvaluationHook',
        interval=10,
        data=dict(
            type='mmdense.LabelledMaps',
            data_root='data/camvid',
            num_classes=11,
            ignore_index=11,
            train=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
            test=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        ),
    )
)
