# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from mmdense.apis.report.show import cell_similarities, load_images, show, similarity_at
from mmdense.datasets import LoadImage
from mmdense.utils.errors import MMDenseError


def test_cell_similarities_are_cosines():
    features = torch.randn(5, 3, 4)
    table = cell_similarities(features)
    assert table.shape == (3, 4, 3, 4)
    expected = cosine_similarity(features[:, 2, 1], features[:, 0, 3], dim=0)
    assert table[2, 1, 0, 3] == pytest.approx(float(expected), abs=1e-5)
    np.testing.assert_array_equal(similarity_at(table, (0.3, 0.99)), table[2, 1])
    np.testing.assert_array_equal(similarity_at(table, (1, 1)), table[2, 3])


def test_large_maps_are_pooled():
    table = cell_similarities(torch.randn(4, 60, 40))
    assert table.shape[0] * table.shape[1] <= 576 and table.shape[0] > table.shape[1] > 16


def test_files_folders_and_what_cannot_be_read(images, tmp_path):
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'no image')
    found, names, remarks = load_images([images, f'{images}/03.jpg', broken], 2, 64, LoadImage())
    assert [Path(name).name for name in names] == ['00.jpg', '15.jpg', '03.jpg']
    assert {image.shape for image in found} == {(48, 64, 3)}
    assert len(remarks) == 1 and 'broken.jpg' in remarks[0]
    with pytest.raises(MMDenseError, match='broken.jpg'):
        load_images([broken], 2, 64, LoadImage())


def test_page_and_pictures(prototypes_checkpoint, images, tmp_path):
    out = tmp_path / 'new' / 'out'
    files = show(str(prototypes_checkpoint), [images], str(out), (0.2, 0.7), number=2, size=128)
    names = [Path(path).name for path in files]
    assert names == [
        *('correspondence_1.png', 'correspondence_2.png', 'features.png', 'similarity.png'),
        *('groups.png', 'index.html'),
    ]
    for path in files[:-1]:
        assert min(Image.open(path).size) > 300
    html = Path(files[-1]).read_text(encoding='utf-8')
    used = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', html) + re.findall(r'url\(([^)]*)', html)
    assert used and all(address.startswith('data:') for address in used)
    assert all('alt="' in tag for tag in re.findall('<img[^>]*>', html))
    assert 'const start = [0.2, 0.7]' in html
    assert re.search('of 40 prototypes (is|are) in use', html)
    assert '1 prototypes' not in html.replace('11 prototypes', '')
    # which are the only pictures without one of a random network beside them
    assert re.search('But for [A-Z][A-Za-z]+&#39;s groups, each picture', html)

    tables = re.findall(r'<script type="application/json">(.*?)</script>', html)
    assert len(tables) == 2
    for networks in map(json.loads, tables):
        assert set(networks) == {'pretrained', 'random'}
        for table in networks.values():
            cells = table['h'] * table['w']
            codes = np.frombuffer(base64.b64decode(table['codes']), np.uint8).reshape(cells, cells)
            assert (table['h'], table['w']) == (3, 4)
            np.testing.assert_array_equal(np.diag(codes), 255)  # each cell with itself
            np.testing.assert_array_equal(codes, codes.T)


def test_slots_without_their_config(prototypes_checkpoint, images, tmp_path):
    content = torch.load(prototypes_checkpoint)
    del content['meta']['cfg']
    torch.save(content, prototypes_checkpoint)
    files = show(str(prototypes_checkpoint), [f'{images}/00.jpg'], str(tmp_path / 'out'), size=64)
    assert not any('groups' in path for path in files)
    assert 'give the config of the run, --config' in Path(files[-1]).read_text(encoding='utf-8')


def test_backbone_alone(exported, images, tmp_path):
    files = show(exported(18)[0], [f'{images}/00.jpg'], str(tmp_path / 'out'), size=64)
    assert [Path(path).name for path in files] == [
        *('correspondence_1.png', 'features.png', 'similarity.png', 'index.html')
    ]


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(point=(0.5, 1.5)), r'y of --point must be in \[0, 1\], got 1.5'),
        (dict(number=0), '--number must be a whole number of at least 1, got 0'),
        (dict(size=8), '--size must be at least 64, got 8'),
    ],
)
def test_numbers_that_make_no_sense(tmp_path, options, words):
    with pytest.raises(MMDenseError, match=words):
        show('none.pth', ['none'], str(tmp_path / 'out'), **options)
    assert not (tmp_path / 'out').exists()
