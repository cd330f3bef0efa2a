# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import gc
import importlib.util
import itertools
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Optional

import pytest

REPO = Path(__file__).resolve().parents[1]
# processes.py, and tiny_algorithms.py for tests and the processes that they start
sys.path.insert(0, str(REPO / 'tests'))

# Before torch is imported, here and in the subprocesses of tests: with a thread for each of many
# cores the small tensors of tests are slower, and with several workers they fight for the cores.
# A worker has what the process that started it has set: setdefault() would leave that.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.update(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
os.environ.setdefault('OMP_NUM_THREADS', str(min(4, os.cpu_count() or 1)))
os.environ.setdefault('MKL_NUM_THREADS', os.environ['OMP_NUM_THREADS'])
# oneDNN 3.10 (PyTorch 2.11) writes beyond its memory in the gradient of a strided 1×1 convolution
# in channels_last whose input has fewer channels than a vector of the CPU: 16 with AVX-512, 8 with
# AVX2. Tiny networks of tests have 8 (docs/faq.md).
os.environ.setdefault('ONEDNN_MAX_CPU_ISA', 'AVX2')
# Freed memory goes back to the system: a test that measures memory is in the same process.
os.environ.setdefault('GLIBC_TUNABLES', '')
# Threads that spin while they wait slow everything down as soon as cores are shared.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

# A shell starts what it runs in the background with Ctrl-C ignored, and so would be all programs
# that are started here.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes, or needs the network: `make test-slow`')


def pytest_collection_finish(session):
    """Leave what is imported by now out of later garbage collections, of which MMEngine asks for
    one in each data set."""
    gc.freeze()


@pytest.fixture(scope='session')
def repo() -> Path:
    """The root of the checkout."""
    return REPO


def _missing(reason: str) -> None:
    """Skips what a stranger cannot run; fails where CI=true, for a skip there
    would hide that nothing was tested."""
    pytest.fail(reason) if os.environ.get('CI') == 'true' else pytest.skip(reason)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Whatever ran before, in whatever order."""
    random.seed(0)
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.seed(0)
    if 'torch' in sys.modules:
        sys.modules['torch'].manual_seed(0)


@pytest.fixture(autouse=True)
def configs_are_not_formatted():
    """MMEngine formats a config with yapf eight times a run: longer than a tiny run trains."""
    import processes

    if 'mmengine.config' in sys.modules:
        processes.leave_configs_unformatted()


@pytest.fixture(autouse=True)
def no_visualizer_or_scope_stays():
    """MMEngine keeps both for the process: a visualizer would write into the folder of a test that
    is over, and a default scope would decide where the next test looks up names."""
    yield
    if 'mmengine.registry' in sys.modules:
        sys.modules['mmengine.registry'].DefaultScope._instance_dict.clear()
    if 'mmengine.visualization' in sys.modules:
        kinds = [sys.modules['mmengine.visualization'].Visualizer]
        for kind in kinds:
            kind._instance_dict.clear()
            kinds += kind.__subclasses__()


@pytest.fixture(scope='session')
def data_root() -> Path:
    """The folder of real images: coco/, camvid/, bccd/, unlabeled/.

    A stranger has none, and these tests are skipped.
    """
    root = Path(os.environ.get('MMDENSE_DATA') or REPO / '..' / 'shared' / 'data').resolve()
    if not root.is_dir():
        _missing(f'no test data in {root} (MMDENSE_DATA says where it is)')
    return root


@pytest.fixture(scope='session')
def require():
    """Skips where an optional package is missing; fails where CI=true."""

    def check(package: str) -> None:
        if importlib.util.find_spec(package) is None:
            _missing(f'{package} is not installed')

    return check


@pytest.fixture(scope='session')
def golden():
    """Load one of the published code's vectors as a dict of tensors.

    ``MMDENSE_GOLDEN=FOLDER pytest -k golden`` takes other vectors, of the same names, keys and
    meaning. Every size comes from the file. A name that the folder lacks is skipped.
    """
    import numpy as np
    import torch

    other = os.environ.get('MMDENSE_GOLDEN')
    folder = Path(other) if other else REPO / 'tests' / 'golden'

    def load(name: str) -> dict:
        path = folder / f'{name}.npz'
        if other and folder.is_dir() and not path.is_file():
            pytest.skip(f'MMDENSE_GOLDEN has no {path.name}')
        with np.load(path) as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    return load


@pytest.fixture
def mmdense_scope():
    """Builds from configs as a run with ``default_scope='mmdense'`` does."""
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdense'):
        yield


@pytest.fixture(scope='session')
def boxed():
    """Data samples with the boxes of views: N×4 tensors, one a view."""
    import torch
    from mmpretrain.structures import DataSample

    def samples(*boxes):
        return [DataSample(metainfo=dict(view_boxes=b)) for b in torch.stack(boxes, dim=1)]

    return samples


@pytest.fixture(scope='session')
def two_views(boxed):
    """A batch: two views of random images, cropped and mirrored at random."""
    import torch

    def batch(n=4, size=64, seed=None):
        rng = torch.Generator().manual_seed(torch.seed() if seed is None else seed)
        boxes = []
        for _ in range(2):
            start = torch.rand(n, 2, generator=rng) * 0.4
            end = start + 0.3 + torch.rand(n, 2, generator=rng) * 0.3
            box = torch.cat([start, end], dim=1)
            mirrored = torch.rand(n, 1, generator=rng) < 0.5
            boxes.append(torch.where(mirrored, box[:, [2, 1, 0, 3]], box))
        return [torch.randn(n, 3, size, size, generator=rng) for _ in range(2)], boxed(*boxes)

    return batch


@pytest.fixture(scope='session')
def with_prototypes():
    """Build a recipe's algorithm with prototypes, an R18 and random weights; return its config,
    the model, and the options that make it small."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from tiny_algorithms import first_where, tiny_form

    from mmdense.registry import MODELS

    def build(num_prototypes: int):
        algorithm = first_where(lambda kind: hasattr(kind, 'best_prototypes'))
        config = Config.fromfile(str(tiny_form(algorithm).config))
        options = {
            'model.backbone.depth': 18,
            'model.neck.in_channels': 512,
            'model.neck.hid_channels': 16,
            'model.head.predictor.hid_channels': 16,
            'model.num_prototypes': num_prototypes,
        }
        config.merge_from_dict(options)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmdense'):
            model = MODELS.build(config.model)
        return config, model, [f'{key}={value}' for key, value in options.items()]

    return build


@pytest.fixture
def prototypes_checkpoint(with_prototypes, tmp_path) -> Path:
    """As tools/train.py writes one; 40 prototypes."""
    import torch

    from mmdense.checkpoints import describe_product

    config, model, _ = with_prototypes(40)
    meta = dict(cfg=config.pretty_text, mmdense=describe_product(model))
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


@pytest.fixture(scope='session')
def exported(tmp_path_factory):
    """An exported ResNet of a depth: its file, and its state dict, none of whose weights a model
    has by itself."""
    import torch
    from mmpretrain.models import ResNet

    from mmdense.checkpoints import save_backbone

    @lru_cache(maxsize=None)
    def export(depth: int):
        tensors = ResNet(depth).state_dict()
        for tensor in tensors.values():
            if tensor.dim() == 1:  # BatchNorm's
                tensor += torch.rand_like(tensor) * 0.1
        path = str(tmp_path_factory.mktemp('exported') / 'backbone.pth')
        save_backbone(tensors, path)
        return path, tensors

    return export


_SPY = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SpyHook(Hook):
    def before_train(self, runner):
        torch.save(runner.model.backbone.state_dict(), 'before_first_step.pth')
"""


@pytest.fixture
def spied(tmp_path) -> Path:
    """Where the hook of a module ``spy``, beside it, writes the backbone as it is right before the
    first step of a run in that folder."""
    (tmp_path / 'spy.py').write_text(_SPY)
    return tmp_path / 'before_first_step.pth'


@pytest.fixture
def run_here(repo, monkeypatch, capfd):
    """Runs a tool in this process; its exit code, and what it printed (out, err)."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level

    def call(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(repo / 'tools' / tool), run_name='__main__')
        except SystemExit as ended:
            code = ended.code
        return code, capfd.readouterr()

    yield call
    logger.setLevel(level)


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder of sixteen images."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(16):
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((96, 72), Image.BICUBIC).save(folder / f'{i:02}.jpg')
    return str(folder)


def tiny_arguments(repo, images, work_dir, *options, flags=(), algorithm=None):
    """Return arguments for tools/train.py: an algorithm's COCO recipe at a tiny size."""
    from tiny_algorithms import tiny_form

    form = tiny_form(algorithm)
    return [
        str(form.config),
        *('--work-dir', str(work_dir), *flags),
        *('--cfg-options', *form.recipe_options),
        *(f'train_dataloader.dataset.data_root={images}', 'train_dataloader.dataset.data_prefix='),
        *options,
    ]


def environment(*paths, **env):
    """The environment of a user who has this checkout installed."""
    paths = [str(REPO), *map(str, paths), os.environ.get('PYTHONPATH')]
    path = os.pathsep.join(filter(None, paths))
    return dict(os.environ, PYTHONPATH=path, PYTHON=sys.executable, **env)


@pytest.fixture
def tiny(repo, images, tmp_path):
    """Arguments for tools/train.py, and the work directory they name."""

    def arguments(*options, flags=(), algorithm=None):
        return tiny_arguments(
            repo, images, arguments.work_dir, *options, flags=flags, algorithm=algorithm
        )

    arguments.work_dir = tmp_path / 'work'
    return arguments


@pytest.fixture(scope='session')
def tiny_options():
    """Return arguments that make an algorithm's COCO recipe tiny."""
    from tiny_algorithms import tiny_form

    return lambda algorithm=None: ['--cfg-options', *tiny_form(algorithm).recipe_options]


@pytest.fixture(scope='session')
def pretrained_by(tmp_path_factory, repo, images):
    """Return the checkpoint of a short run of an algorithm, R18, as tools/train.py wrote it."""
    import processes
    from tiny_algorithms import tiny_form

    @lru_cache(maxsize=None)
    def train(algorithm: Optional[str] = None) -> Path:
        work_dir = tmp_path_factory.mktemp(tiny_form(algorithm).method)
        arguments = tiny_arguments(
            repo, images, work_dir, 'train_cfg.max_epochs=1', algorithm=algorithm
        )
        log = work_dir / 'output.log'
        done = processes.run_forked('tools/train.py', arguments, log, cwd=repo)
        assert done.returncode == 0, done.stdout
        return work_dir / 'epoch_1.pth'

    return train


@pytest.fixture(scope='session')
def pretrained(pretrained_by) -> Path:
    """Return that of the algorithm that tests take when any will do."""
    return pretrained_by()


@pytest.fixture
def run(repo):
    """Runs a command as a user does; its output and exit code."""

    def call(*command, cwd=repo, path='', timeout=300, **env):
        return subprocess.run(
            [str(c) for c in command],
            env=environment(path, **env),
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )

    return call


@pytest.fixture
def run_forked(repo, free_port, tmp_path):
    """Run a program as ``run(sys.executable, program, …)`` does, but in processes forked from one
    that has imported mmdense; with ``number=2``, as torchrun does."""
    import processes

    def call(program, *arguments, cwd=repo, **options):
        log = tmp_path / f'output_{next(numbers)}.log'
        options.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port)
        return processes.run_forked(program, arguments, log, cwd, **options)

    numbers = itertools.count()
    return call


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class _Served:
    """A file on :func:`server`, and what the server does when asked for it."""

    def __init__(
        self, content, status=200, etag='"1"', modified=None, ranges=True, lax=False, cuts=()
    ):
        self.content, self.status, self.etag, self.modified = content, status, etag, modified
        self.ranges, self.lax = ranges, lax  # lax: overlooks If-Range
        self.cuts = list(cuts)  # bytes after which the connection is lost, request by request


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip('/').split('?')[0]
        self.server.asked.append((name, dict(self.headers)))
        file = self.server.files.get(name)
        if file is None:
            return self.send_error(404)
        if file.status != 200:
            return self.send_error(file.status)
        content, start = file.content, self.headers.get('Range')
        same = file.lax or self.headers.get('If-Range') in (file.etag, file.modified)
        if start and file.ranges and same:
            start = int(start[len('bytes=') : -1])
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
            content = content[start:]
        else:
            self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        for key, value in (('ETag', file.etag), ('Last-Modified', file.modified)):
            if value:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[: file.cuts.pop(0)] if file.cuts else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine: ``server.put(name, content, …)`` is the URL, ``server.asked``
    the requests."""
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    web = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    web.files, web.asked = {}, []

    def put(name, content, **behaviour):
        web.files[name] = _Served(content, **behaviour)
        return f'http://127.0.0.1:{web.server_port}/{name}'

    web.put = put
    threading.Thread(target=web.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True).start()
    yield web
    web.shutdown()
    web.server_close()
