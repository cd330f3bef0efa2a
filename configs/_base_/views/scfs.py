_base_ = './dino.py'

# SCFS's crops, DINO's but for their areas (released code of arXiv 2212.06486): a global crop shows
# 25 to 100 % of the image, a local one 5 to 25 %.
view_pipelines = _base_.view_pipelines
view_pipelines[0][0].update(crop_ratio_range=(0.25, 1.0))
view_pipelines[1][0].update(crop_ratio_range=(0.25, 1.0))
view_pipelines[2][0].update(crop_ratio_range=(0.05, 0.25))

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'] = view_pipelines
