# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Two nodes on one machine: two of tools/dist_train.sh, over the loopback."""

import os
import re
import subprocess
import sys

from mmdense.checkpoints import read_checkpoint

# What each process ends with, and who saved.
WITNESS = """
import hashlib
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Witness(Hook):
    def __init__(self, folder):
        self.folder = folder

    def write(self, name, line):
        with open(f'{self.folder}/{name}', 'a') as file:
            print(line, file=file)

    def before_save_checkpoint(self, runner, checkpoint):
        self.write('saved', get_dist_info()[0])

    def after_train(self, runner):
        digest = hashlib.sha256()
        for name, value in runner.model.module.state_dict().items():
            if 'running_' not in name:  # BatchNorm's statistics are each process's own
                digest.update(value.numpy().tobytes())
        rank, world = get_dist_info()
        self.write('ended', f'{rank} of {world}: {digest.hexdigest()}')
"""


def test_two_nodes_train_one_run(repo, tiny, free_port, tmp_path):
    (tmp_path / 'witness.py').write_text(WITNESS)
    config, *arguments = tiny('optim_wrapper.accumulative_counts=2', flags=['--auto-scale-lr'])
    (tmp_path / 'config.py').write_text(
        f'_base_ = {config!r}\n'
        "custom_imports = dict(imports=['witness'])\n"
        f"custom_hooks = [dict(type='mmengine.Witness', folder={str(tmp_path)!r})]\n"
    )
    env = dict(
        os.environ,
        NNODES='2',
        MASTER_ADDR='127.0.0.1',
        PORT=str(free_port),
        PYTHON=sys.executable,
        PYTHONPATH=os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')])),
    )
    nodes, logs = [], [tmp_path / f'node_{rank}.txt' for rank in range(2)]
    try:
        for rank, log in enumerate(logs):
            with log.open('w') as file:
                nodes.append(
                    subprocess.Popen(
                        ['tools/dist_train.sh', str(tmp_path / 'config.py'), '1', *arguments],
                        env=dict(env, NODE_RANK=str(rank)),
                        cwd=repo,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        codes = [node.wait(timeout=300) for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                node.terminate()
                node.wait(timeout=60)
    first, second = (log.read_text() for log in logs)
    assert codes == [0, 0], first + second

    # one run: sixteen images, four for each of two processes; both with the same weights
    assert re.search(r'Epoch\(train\)\s+\[2\]\[2/2\]', first), first
    assert 'Epoch(train)' not in second
    ended = sorted((tmp_path / 'ended').read_text().split('\n'))[1:]
    assert [line[:6] for line in ended] == ['0 of 2', '1 of 2']
    assert ended[0].split()[-1] == ended[1].split()[-1]
    # the first node's process saves, and it alone
    assert set((tmp_path / 'saved').read_text().split()) == {'0'}
    state = read_checkpoint(str(tiny.work_dir / 'epoch_2.pth'))['state_dict']
    assert int(state['queue.filled']) == 2 * 16

    # 0.3 for 256 images; 4 in each of two processes and two iterations
    assert f'lr: {0.3 * 16 / 256:.4e}' in first, first
