# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""tools/make_proposals.py: methods, selection, files, a stopped run."""

import importlib.util
import json
import re
import subprocess
import sys
import types
import zipfile

import cv2
import numpy as np
import pytest

from mmdense.datasets import LoadProposals
from mmdense.datasets.transforms.proposals import ProposalTable


@pytest.fixture(scope='module')
def tool(repo):
    """Import the tool, so that processes can be started with its functions."""
    spec = importlib.util.spec_from_file_location(
        'make_proposals', repo / 'tools/make_proposals.py'
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules['make_proposals'] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules['make_proposals']


@pytest.fixture
def folder(tmp_path):
    """Four photographs, one of which is broken, in two folders."""
    rng, root = np.random.default_rng(0), tmp_path / 'photos'
    for i, name in enumerate(('a/1.jpg', 'a/2.png', 'b/3.jpg')):
        coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (160 + 20 * i, 120), interpolation=cv2.INTER_NEAREST)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), image)
    (root / 'b/4.jpg').write_bytes(b'no image')
    (root / 'b/notes.txt').write_text('no image')
    return root


def test_golden_region_filter(golden, tool):
    g = {key: np.asarray(value) for key, value in golden('ccop_region_filter').items()}
    shaped = tool.select_shapes(g['rects'])
    assert np.array_equal(shaped, g['after_ratio_and_size'])
    kept = tool.suppress(shaped, g['scores'])
    assert np.array_equal(shaped[kept], g['kept_all'])
    assert np.array_equal(shaped[kept[: int(g['keepnum'])]], g['kept'])


def test_selection_by_its_definition(tool):
    rng = np.random.default_rng(0)
    rects = np.hstack([rng.integers(0, 90, (200, 2)), rng.integers(1, 90, (200, 2))])
    for x, y, w, h in rects:
        kept = len(tool.select_shapes(np.array([[x, y, w, h]])))
        assert kept == (1 / 3 < w / h < 3 and (w * h) ** 0.5 > 20)
    shaped, scores = tool.select_shapes(rects), rng.random(len(tool.select_shapes(rects)))

    def iou(a, b):
        w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / (a[2] * a[3] + b[2] * b[3] - shared)

    left = []
    for i in np.argsort(-scores):
        if all(iou(shaped[i], shaped[j]) <= 0.5 for j in left):
            left.append(i)
    assert tool.suppress(shaped, scores).tolist() == left and 5 < len(left) < len(shaped)


@pytest.mark.parametrize('source', ['folder', 'zip', 'json'])
def test_a_file_is_what_the_pipeline_loads(tool, folder, tmp_path, capsys, source):
    out, images, prefix = str(tmp_path / 'out.npz'), str(folder), []
    if source == 'zip':
        images = str(tmp_path / 'photos.zip')
        with zipfile.ZipFile(images, 'w') as archive:
            for path in sorted(folder.rglob('*.*')):
                archive.write(path, path.relative_to(folder))
    if source == 'json':
        images, prefix = str(tmp_path / 'photos.json'), ['--prefix', str(folder)]
        names = ['a/1.jpg', 'a/2.png', 'b/3.jpg', 'b/4.jpg']
        content = dict(images=[dict(id=i, file_name=name) for i, name in enumerate(names)])
        (tmp_path / 'photos.json').write_text(json.dumps(content))
    assert tool.main([images, out, '--workers', '1', *prefix]) == 0
    printed = capsys.readouterr()
    assert '3 images, 102 boxes' in printed.out
    assert 'skipped, cannot be read: b/4.jpg' in printed.err
    assert not (tmp_path / 'out.npz.parts').exists()
    with np.load(out, allow_pickle=False) as file:
        assert file['boxes'].dtype == np.int16 and file['sizes'].tolist()[2] == [200, 120]
        assert file['names'].tolist() == ['a/1.jpg', 'a/2.png', 'b/3.jpg']
    table = ProposalTable.read(out)
    assert isinstance(table._boxes, np.memmap)
    root = images if source == 'zip' else str(folder)
    load = LoadProposals(out, data_root=root)
    found = load.transform(dict(img_path=f'{root}/b/3.jpg'))['proposals']
    grid = LoadProposals('grid').transform(dict(img_path=''))['proposals']
    # of a grid in whole pixels, in another order
    nearest = np.abs(found[:, None] - grid[None]).max(axis=2).argmin(axis=1)
    assert sorted(nearest) == list(range(34))
    assert np.abs(found - grid[nearest]).max() < 1.01 / 120


def test_draws_differ_and_are_the_same_everywhere(tool, folder, tmp_path, monkeypatch):
    """Scores are random: of many boxes each list keeps others; never another image's."""
    rng = np.random.default_rng(1)
    many = np.hstack([rng.integers(0, 100, (300, 2)), rng.integers(20, 50, (300, 2))])
    orders = iter(rng.permutation(300) for _ in range(99))
    monkeypatch.setitem(tool.METHODS, 'grid', lambda image: many[next(orders)] + image.shape[1] % 7)
    read = []
    for name in ('x', 'y'):
        out = str(tmp_path / f'{name}.npz')
        assert tool.main([str(folder), out, '--draws', '3', '--keep', '9', '--workers', '1']) == 0
        with np.load(out) as file:
            read.append({key: file[key] for key in file})
    assert all(np.array_equal(read[0][key], read[1][key]) for key in read[0])
    assert read[0]['counts'].tolist() == [9] * 9
    assert read[0]['names'].tolist() == sorted(read[0]['names'].tolist())
    lists = read[0]['boxes'].reshape(9, 9, 4)
    assert len({part.tobytes() for part in lists}) == 9
    for part, size in zip(lists, read[0]['sizes']):
        own = many[:, :2] + size[0] % 7
        assert all((own == box[:2]).all(axis=1).any() for box in part)


def test_a_stopped_run_continues(tool, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'PART', 2)
    out, images = str(tmp_path / 'out.npz'), tool.Images(str(folder))
    settings = dict(method='grid', draws=1, keep=50)
    save, saved = tool.save, []

    def stop(path, arrays):
        save(path, arrays)
        saved.append(path)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'save', stop)
    with pytest.raises(KeyboardInterrupt):
        tool.make(images, out, settings, 1)
    assert tool.main([str(folder), out, '--keep', '5', '--workers', '1']) == 1
    assert 'is of a run with other images or settings' in capsys.readouterr().err
    arrays = tool.make(images, out, settings, 1)
    assert len(saved) == 3 and saved[1] != saved[0]  # the second part, and the file
    assert arrays['names'].tolist() == ['a/1.jpg', 'a/2.png', 'b/3.jpg']
    assert arrays['unreadable'].tolist() == ['b/4.jpg']


def test_several_processes(repo, folder, tmp_path):
    """Run a program of its own, which needs neither mmdense nor PyTorch."""
    program = repo / 'tools/make_proposals.py'
    written = []
    for workers in ('1', '2'):
        out = tmp_path / f'{workers}.npz'
        command = [sys.executable, str(program), str(folder), str(out), '--workers', workers]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        with np.load(out) as file:
            written.append({key: file[key].tolist() for key in file})
    assert written[0] == written[1]
    imports = set(re.findall(r'^(?:import|from) (\w+)', program.read_text(), re.M))
    assert not imports & {'mmdense', 'torch', 'mmengine', 'mmcv'}


def test_selective_search_is_asked_for_its_setting(tool, monkeypatch):
    """OpenCV's contrib module is not installed here: a stand-in writes down the calls."""
    calls = []

    class Search:
        def __getattr__(self, name):
            return lambda *args: calls.append(name) or np.array([[1, 2, 30, 40]])

    module = types.SimpleNamespace(
        segmentation=types.SimpleNamespace(createSelectiveSearchSegmentation=Search)
    )
    monkeypatch.setattr(cv2, 'ximgproc', module, raising=False)
    image = np.zeros((60, 80, 3), np.uint8)
    for method, switch in (
        ('selective-search-fast', 'switchToSelectiveSearchFast'),
        ('single', 'switchToSingleStrategy'),
    ):
        calls.clear()
        tool.check_method(method)
        lists, numbers = tool.propose(image, 'x.jpg', method, 1, 50)
        assert calls == ['setBaseImage', switch, 'process']
        assert lists[0].tolist() == [[1, 2, 31, 42]] and numbers == (1, 1, 1)


def test_selective_search_of_small_images(tool, folder, tmp_path, monkeypatch):
    """DETReg's: the first boxes in the order that the C library's seed gives, of 128×128 pixels."""
    seen, seeds = [], []

    class Search:
        def setBaseImage(self, image):
            seen.append(image)

        def switchToSelectiveSearchFast(self):
            pass

        def process(self):
            start = seeds[-1] % 50
            return np.array([[start + i, 2, 30, 40] for i in range(40)], np.int32)

    module = types.SimpleNamespace(
        segmentation=types.SimpleNamespace(createSelectiveSearchSegmentation=Search)
    )
    monkeypatch.setattr(cv2, 'ximgproc', module, raising=False)
    library = types.SimpleNamespace(srand=seeds.append)
    monkeypatch.setattr(tool.ctypes, 'CDLL', lambda _: library)
    out = str(tmp_path / 'out.npz')
    settings = ['--method', 'selective-search-128', '--keep', '30', '--draws', '2']
    assert tool.main([str(folder), out, *settings, '--workers', '1']) == 0
    assert len(set(seeds)) == len(seeds) == 6 and {x.shape for x in seen} == {(128, 128, 3)}
    image = cv2.imread(str(folder / 'a/2.png'))  # RGB, though OpenCV takes BGR
    small = cv2.resize(image[..., ::-1], (128, 128), interpolation=cv2.INTER_AREA)
    assert any(np.array_equal(small, x) for x in seen)
    with np.load(out) as file:
        assert file['counts'].tolist() == [30] * 6 and (file['sizes'] == 128).all()
        starts = file['boxes'].reshape(6, 30, 4)[:, 0].tolist()
    assert starts == [[s % 50, 2, s % 50 + 30, 42] for s in seeds]
    load = LoadProposals(out, data_root=str(folder), max_num=30)
    found = load.transform(dict(img_path=str(folder / 'a/2.png')))['proposals']
    assert found[0, 1] * 128 == 2 and found[0, 3] * 128 == 42


def test_felzenszwalb(tool):
    """Two rectangles on a ground: their boxes are among the segments'."""
    pytest.importorskip('skimage')
    image = np.full((120, 160, 3), 40, np.uint8)
    image[20:70, 30:90], image[80:115, 100:150] = (250, 30, 30), (30, 30, 250)
    rects = tool.felzenszwalb(image)
    for wanted in ((30, 20, 60, 50), (100, 80, 50, 35)):
        assert np.abs(rects - wanted).max(axis=1).min() <= 4


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['nowhere', 'x.npz'], 'nowhere is no folder, zip or COCO json'),
        (['photos', 'x.npz', '--method', 'single'], 'an environment of its own by `python -m venv'),
        (['photos', 'x.npz', '--method', 'felzenszwalb'], "pip install 'mmdense[proposals]'"),
        (['photos/b/empty', 'x.npz'], 'names no image'),
    ],
)
def test_what_is_wrong_is_said(tool, folder, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(cv2, 'ximgproc', raising=False)
    monkeypatch.setitem(sys.modules, 'skimage.segmentation', None)
    (folder / 'b/empty').mkdir()
    assert tool.main(arguments) == 1
    (line,) = capsys.readouterr().err.strip().split('\n')
    assert line.startswith('make_proposals: ') and words in line
    assert not (tmp_path / 'x.npz').exists()


@pytest.mark.parametrize(
    'more, words', [(['--draws', '0'], 'at least 1'), (['--keep', '-1'], 'at least 1')]
)
def test_wrong_numbers_are_said(tool, capsys, more, words):
    with pytest.raises(SystemExit):
        tool.main(['photos', 'x.npz', *more])
    assert words in capsys.readouterr().err
