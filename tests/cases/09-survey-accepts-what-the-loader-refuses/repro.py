# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where plan's look at the headers accepts files that LoadImage refuses by their headers alone."""

import os
import sys
import tempfile

import numpy as np
from PIL import Image

from mmdense.apis.planning.survey import survey_images
from mmdense.datasets.transforms.loading import decode_image
from mmdense.utils.errors import DataError

rng = np.random.RandomState(0)
bad = 0
for kind in ('AVIF', 'JPEG2000', 'TGA', 'ICO', 'float TIFF'):
    with tempfile.TemporaryDirectory() as d:
        try:
            for i in range(20):
                im = Image.fromarray(rng.randint(0, 255, (64, 64, 3), np.uint8))
                odd = i % 5 == 0
                if odd and kind == 'float TIFF':
                    Image.fromarray(rng.rand(64, 64).astype(np.float32)).save(f'{d}/{i}.tif')
                else:
                    im.save(f'{d}/{i}.jpg', format=kind if odd else 'JPEG')
        except Exception as error:
            print(kind, 'cannot be written here:', error)
            continue
        refused, reason = 0, 'none'
        for name in os.listdir(d):
            try:
                decode_image(open(f'{d}/{name}', 'rb').read())
            except ValueError as error:
                refused, reason = refused + 1, error
        try:
            found = survey_images(d)
            said = f'{found.unreadable} unreadable'
            bad |= refused > 0
        except DataError as error:
            said = str(error)[:90]
        print(f'{kind:11} the loader refuses {refused} of 20 ({reason}); the survey: {said}')
sys.exit(int(bad))
