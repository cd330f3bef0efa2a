_base_ = './mocov2.py'

# DetCo's views (arXiv 2102.04803, section 3.4): two global views under MoCo v2's augmentation and
# two sets of nine patches. All four are drawn from the image independently. A patch set starts
# from a crop of at least 60 % of the area and shares the steps after the crop. DetCo compares no
# locations, and a patch set has no box.
crop, jitter, grey, blur, flip = _base_.view_pipeline
view_pipeline = [crop, flip, jitter, grey, blur]
patch_pipeline = [
    dict(crop, scale=255, crop_ratio_range=(0.6, 1.0)),
    flip,
    jitter,
    grey,
    blur,
    dict(type='JigsawPatches', grid=3, patch_size=64),
]
del crop, jitter, grey, blur, flip  # no part of the config

train_pipeline = _base_.train_pipeline
train_pipeline[1].update(
    num_views=[2, 2], transforms=[view_pipeline, patch_pipeline], with_boxes=False
)
