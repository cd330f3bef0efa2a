# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where JPEGs of which only the end marker is missing are refused, or a file cut in the middle is taken."""

import io
import sys

import numpy as np
from PIL import Image

from mmdense.datasets.transforms.loading import decode_image

im = Image.fromarray(np.random.RandomState(0).randint(0, 255, (12, 16, 3), np.uint8)).resize(
    (160, 120), Image.BICUBIC
)
bad = 0
for kind in (dict(), dict(progressive=True), dict(restart_marker_blocks=4)):
    f = io.BytesIO()
    im.save(f, 'JPEG', **kind)
    whole = f.getvalue()
    want = decode_image(whole)
    # all entropy-coded data is there but for the last; libjpeg decodes it with a warning
    for name, content, good in (
        ('as written', whole, True),
        ('no end marker', whole[:-2], True),
        ('half an end marker', whole[:-1], True),
        ('cut in the middle', whole[: len(whole) // 2], False),
    ):
        try:
            taken, said = True, f'same pixels: {(decode_image(content) == want).all()}'
        except ValueError as error:
            taken, said = False, f'refused: {error}'
        print(kind, name, said)
        bad |= taken != good or (good and 'True' not in said)
sys.exit(int(bad))
