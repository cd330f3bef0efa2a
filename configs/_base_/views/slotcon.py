_base_ = './byol.py'

# SlotCon's views (arXiv 2205.15288): PixPro's with bicubic interpolation. The second view must
# overlap the first: the loss compares locations that both views show.
view_pipelines = _base_.view_pipelines
view_pipelines[0][0].update(interpolation='bicubic')
view_pipelines[1][0].update(interpolation='bicubic', min_overlap=0.01)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'] = view_pipelines
