# Evaluates the frozen features every ten epochs: nearest neighbours and a linear probe, trained on
# CamVid's train split and tested on val. tools/evaluate_features.py reads this file too.
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
