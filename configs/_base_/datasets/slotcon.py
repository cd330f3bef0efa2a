_base_ = './byol.py'

# SlotCon (arXiv 2205.15288): PixPro's augmentation, but bicubic, and the second view
# overlaps the first, for without that an image teaches nothing
view_pipelines = _base_.view_pipelines
view_pipelines[0][0].update(interpolation='bicubic')
view_pipelines[1][0].update(interpolation='bicubic', min_overlap=0.01)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'] = view_pipelines

# 512 images on 8 GPUs
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
