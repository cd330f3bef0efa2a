_base_ = './dino.py'

# DINO's crops for convolutional networks, as in its readme: a global crop shows 14 to 100 % of the
# image, a local one 5 to 14 %.
view_pipelines = _base_.view_pipelines
view_pipelines[0][0].update(crop_ratio_range=(0.14, 1.0))
view_pipelines[1][0].update(crop_ratio_range=(0.14, 1.0))
view_pipelines[2][0].update(crop_ratio_range=(0.05, 0.14))

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'] = view_pipelines
