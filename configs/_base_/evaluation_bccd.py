# Evaluates the frozen features every ten epochs: nearest neighbours and a linear probe on patches,
# blood cells of BCCD's train and val, and background. Also for tools/evaluate_features.py.
default_hooks = dict(
    evaluation=dict(
        type='DenseEvaluationHook',
        interval=10,
        data=dict(
            type='mmdense.LabelledBoxes',
            data_root='data/bccd',
            train='ImageSets/Main/train.txt',
            test='ImageSets/Main/val.txt',
            classes=('RBC', 'WBC', 'Platelets'),
        ),
    )
)
