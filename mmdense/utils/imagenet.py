# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The usual normalisation of pixels, for files that do not say which one their backbone takes."""

# Arguments of a data preprocessor; of pixels from 0 to 255, in RGB.
IMAGENET_PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

# CLIP's, likewise.
CLIP_PIXELS = dict(
    mean=[122.7709383, 116.7460125, 104.09373615], std=[68.5005327, 66.6321579, 70.3231668]
)
