_base_ = './densecl_r50.py'

# RegionCL-D is ours: the authors published its results alone. aligned=False of RegionSwap is the
# authors' rule for the rectangle; the default, whole grid cells, is ours.
model = dict(type='RegionCLD', swap=dict(type='RegionSwap'))
