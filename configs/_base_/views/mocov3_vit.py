_base_ = './mocov3.py'

# MoCo v3's ViTs train on smaller crops than its ResNets.
view_pipelines = _base_.view_pipelines
view_pipelines[0][0].update(crop_ratio_range=(0.08, 1.0))
view_pipelines[1][0].update(crop_ratio_range=(0.08, 1.0))

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'] = view_pipelines
