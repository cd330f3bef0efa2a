# Evaluates the frozen features every ten epochs: nearest neighbours and a linear probe classify
# patches of BCCD as red cell, white cell, platelets or background; trained on its train split,
# tested on val. tools/evaluate_features.py reads this file too.
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
