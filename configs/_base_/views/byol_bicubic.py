_base_ = './byol.py'

# BYOL's views (arXiv 2006.07733, appendix B): PixPro's with bicubic interpolation. The published
# code adds to the brightness; here it is multiplied, as in every other recipe.
view_pipelines = _base_.view_pipelines
view_pipelines[0][0].update(interpolation='bicubic')
view_pipelines[1][0].update(interpolation='bicubic')

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'] = view_pipelines
