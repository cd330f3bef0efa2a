_base_ = './byol.py'

# BYOL's views (arXiv 2006.07733, appendix B): PixPro's with bicubic interpolation; brightness is
# added, as in the published code.
view_pipelines = _base_.view_pipelines
for view in view_pipelines:
    view[0].update(interpolation='bicubic')
    view[2].update(additive_brightness=True)
del view  # no part of the config

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'] = view_pipelines
