# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where label maps, or the pictures that mmdense wrote itself, are counted as photographs."""

import os
import sys
import tempfile

import numpy as np
from PIL import Image

from mmdense.apis.planning.survey import survey_images

rng = np.random.RandomState(0)
bad = 0
with tempfile.TemporaryDirectory() as d:
    for i in range(
        20
    ):  # a segmentation data set: photographs, and a label map of the same name beside each
        for sub in ('img_dir/train', 'ann_dir/train'):
            os.makedirs(f'{d}/{sub}', exist_ok=True)
        Image.fromarray(rng.randint(0, 255, (96, 128, 3), np.uint8)).save(
            f'{d}/img_dir/train/{i}.jpg'
        )
        Image.fromarray(rng.randint(0, 11, (96, 128), np.uint8)).save(f'{d}/ann_dir/train/{i}.png')
    found = survey_images(d)
    print('20 photographs, 20 label maps: counted', found.count)
    bad |= found.count != 20
with tempfile.TemporaryDirectory() as d:
    for i in range(20):  # as after `cd photos; mmdense show CHECKPOINT .`
        Image.fromarray(rng.randint(0, 255, (96, 128, 3), np.uint8)).save(f'{d}/{i}.jpg')
    os.makedirs(f'{d}/work_dirs/show')
    for name in ('features', 'similarity', 'correspondence_1'):
        Image.new('RGB', (600, 400), 'white').save(f'{d}/work_dirs/show/{name}.png')
    found = survey_images(d)
    print('20 photographs, 3 pictures in work_dirs/show: counted', found.count)
    bad |= found.count != 20
sys.exit(int(bad))
