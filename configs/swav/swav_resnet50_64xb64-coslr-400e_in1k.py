_base_ = './swav_resnet50_64xb64-mcrop-coslr-400e_in1k.py'

# Two views alone, which show 8 to 100 % of the image.
view_pipeline = _base_.view_pipelines[0]
view_pipeline[0].update(crop_ratio_range=(0.08, 1.0))
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(num_views=[2], transforms=[view_pipeline])
del view_pipeline  # no part of the config

model = dict(head=dict(loss=dict(num_crops=[2])))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
