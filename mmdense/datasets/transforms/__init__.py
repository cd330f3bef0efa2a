# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .loading import LoadImage, UnreadableImageError, decode_image

__all__ = ['LoadImage', 'UnreadableImageError', 'decode_image']
