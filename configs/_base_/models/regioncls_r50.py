_base_ = './simsiam_r50.py'

# RegionCL-S is ours: the authors published its results alone. aligned=False of RegionSwap is the
# authors' rule for the rectangle; the default, whole grid cells, is ours.
model = dict(type='RegionCLS', swap=dict(type='RegionSwap'))
