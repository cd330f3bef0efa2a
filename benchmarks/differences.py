# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Compute what differs between mmdense's algorithms and mmpretrain's classes of the same names.

    python benchmarks/differences.py            # prints the table, in a minute or two
    python benchmarks/differences.py --write    # also puts it into docs/mmpretrain.md

Both get the same weights and tensors: mmpretrain's shipped configs with a ResNet-18 of 64 channels.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseAveragedModel, revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import distributed, multiprocessing
from torch.nn.functional import normalize

import mmdense.models  # noqa: F401 - registers the classes
from mmdense.engine import LARS
from mmdense.models.losses import nt_xent, sinkhorn
from mmdense.registry import MODELS

sys.path.insert(0, str(Path(__file__).parent))
import methods
import models
from common import write_table

DOCUMENT = Path(__file__).resolve().parents[1] / 'docs' / 'mmpretrain.md'
SHIPPED = {
    models.class_of(name).__name__: methods.load(name).SHIPPED
    for name in methods.shipped()
    if models.class_of(name).views.groups == (2,)
}


def small_config(name, **changes):
    """Return mmpretrain's shipped config of an algorithm with a small network."""
    model = models.shipped_config(SHIPPED[name]).model
    model.backbone.update(depth=18, stem_channels=8, base_channels=8)
    model.neck.update(in_channels=64, hid_channels=32)
    if 'predictor' in model.head:
        model.head.predictor.hid_channels = 32
    if 'queue_len' in model:
        model.queue_len = 32
    model.update(changes)
    return model


def both(name, **changes):
    """Build mmpretrain's class and ours from one config, with the same weights."""
    config = small_config(name, **changes)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        theirs = MODELS.build(dict(config, type=f'mmpretrain.{name}'))
        more = dict(total_steps=100) if 'base_momentum' in config else {}
        ours = MODELS.build(dict(config, type=f'mmdense.{name}', **more))
    ours.load_state_dict(theirs.state_dict())
    return revert_sync_batchnorm(theirs).train(), revert_sync_batchnorm(ours).train()


def views(seed=0, number=4):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(number, 3, 64, 64, generator=rng) for _ in range(2)]


def compare_losses(name):
    """Return the losses of both, the factor between their gradients, and the relative difference
    that is left."""
    theirs, ours = both(name)
    totals = []
    for model in (theirs, ours):
        total = sum(model(views(), mode='loss', data_samples=[]).values())
        total.backward()
        totals.append(total.item())
    grads = dict(theirs.named_parameters())
    pairs = [
        (grads[key].grad, p.grad)
        for key, p in ours.named_parameters()
        if p.grad is not None and key in grads and grads[key].grad is not None
    ]
    a, b = (torch.cat([grad.flatten() for grad in side]).double() for side in zip(*pairs))
    factor = (a @ b / (a @ a)).item()
    return totals, factor, ((b - factor * a).norm() / b.norm()).item()


def compare_statistics(name):
    """Return how far the running means of both momentum encoders are apart after five steps with a
    learning rate of 0, at most."""
    MessageHub.get_current_instance().update_info('max_iters', 100)  # theirs read it
    theirs, ours = both(name)
    for step in range(5):
        for model in (theirs, ours):
            model(views(step), mode='loss', data_samples=[])
    (average,) = (part for part in theirs.children() if isinstance(part, BaseAveragedModel))
    buffers = dict(average.module.named_buffers())
    pairs = ((buffers[k], v) for k, v in ours.encoder_k.module.named_buffers() if 'mean' in k)
    return max((a - b).abs().max().item() for a, b in pairs)


def any_queue(name):
    """Return what both do with a queue of 30 keys and batches of 4."""
    answers = []
    for model in both(name, queue_len=30):
        try:
            model(views(), mode='loss', data_samples=[])
            answers.append('trains')
        except AssertionError:
            answers.append('AssertionError')
    return answers


# --------------------------------------------------------------------------------- two processes


def in_two_processes(function, *args):
    """Return what a function returns in each of two processes over gloo."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_run, (function.__name__, folder, args), nprocs=2)
        return [torch.load(f'{folder}/{rank}.pth', weights_only=True) for rank in range(2)]


def _run(rank, name, folder, args):
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    torch.save(globals()[name](rank, *args), f'{folder}/{rank}.pth')


def projections(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 8, 16, generator=rng), torch.randn(16, 16, generator=rng)


def contrast(rank):
    """Return the gradients of a shared matrix by mmpretrain's SimCLR and by nt_xent, each averaged
    over the processes as DistributedDataParallel does."""
    x, matrix = projections()
    mine = slice(4 * rank, 4 * rank + 4)
    theirs = small_config('SimCLR', head=dict(models.shipped_config(SHIPPED['SimCLR']).model.head))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = MODELS.build(dict(theirs, type='mmpretrain.SimCLR'))
    theirs.backbone, theirs.neck = torch.nn.Flatten(), _Matrix(matrix)
    grads = []
    images = [view[mine][:, :, None, None] for view in x]
    theirs.loss(images, [])['loss'].backward()
    grads.append(theirs.neck.matrix.grad)
    w = matrix.clone().requires_grad_()
    nt_xent(*(normalize(view[mine] @ w, dim=1) for view in x), 0.1).backward()
    grads.append(w.grad)
    for grad in grads:
        distributed.all_reduce(grad)
    return torch.stack(grads) / 2


class _Matrix(torch.nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = torch.nn.Parameter(matrix.clone())

    def forward(self, x):
        return (x @ self.matrix,)


def joined_gradient():
    """Return the gradient of the published loss of the joined batch."""
    x, matrix = projections()
    w = matrix.clone().requires_grad_()
    nt_xent(*(normalize(view @ w, dim=1) for view in x), 0.1).backward()
    return w.grad


def scores():
    rng = torch.Generator().manual_seed(1)
    return normalize(torch.randn(16, 8, generator=rng), dim=1) @ normalize(
        torch.randn(8, 6, generator=rng), dim=0
    )


def assign(rank):
    """Return the codes of a process by mmpretrain's function and by ours."""
    from mmpretrain.models.losses.swav_loss import distributed_sinkhorn

    mine = scores()[8 * rank : 8 * rank + 8]
    return torch.stack([distributed_sinkhorn(mine.clone(), 3, 2, 0.05), sinkhorn(mine)])


# ------------------------------------------------------------------------------------- the others


def compare_positions():
    """Return the largest difference of mmpretrain's position embeddings of MAE from the authors',
    and of their transpose."""
    from mmpretrain.models import MAEViT as Theirs

    from mmdense.models import MAEViT

    arch = dict(embed_dims=64, num_layers=1, num_heads=4, feedforward_channels=64)
    found = []
    for kind in (Theirs, MAEViT):
        vit = kind(arch=arch, img_size=224, patch_size=16)
        vit.init_weights()
        found.append(vit.pos_embed[0, 1:].detach().reshape(14, 14, 64))
    theirs, ours = found
    return [(theirs - x).abs().max().item() for x in (ours, ours.transpose(0, 1))]


def compare_lars(variant):
    """Return the relative errors of mmpretrain's LARS and of ours in the distance that three steps
    go, by the formulas of a variant (docs/mmpretrain.md), while the learning rate rises."""
    from mmpretrain.engine.optimizers import LARS as Theirs

    options = dict(
        A={}, B=dict(lr_in_buffer=True), C=dict(adapt_all=True), momentum=0.9, weight_decay=1e-2
    )
    shapes = [(16, 8), (16,)]
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=rng) for shape in shapes]
    grads = [[torch.randn(shape, generator=rng) for shape in shapes] for _ in range(3)]
    ends = {}
    common = dict(momentum=options['momentum'], weight_decay=options['weight_decay'])
    for name in ('formula', 'mmpretrain', 'mmdense'):
        weights = [torch.nn.Parameter(w.clone()) for w in start]
        if name == 'formula':
            ends[name] = _by_formula(variant, start, grads, **common)
            continue
        if name == 'mmdense':
            optimizer = LARS(weights, lr=1.0, **options[variant], **common)
        else:
            groups = [
                dict(params=[weights[0]]),
                dict(params=[weights[1]], lars_exclude=variant != 'C'),
            ]
            if variant != 'C':
                groups[1]['weight_decay'] = 0.0
            optimizer = Theirs(groups, lr=1.0, **common)
        for step, found in enumerate(grads):
            for group in optimizer.param_groups:
                group['lr'] = (step + 1) / 3
            for w, grad in zip(weights, found):
                w.grad = grad.clone()
            optimizer.step()
        ends[name] = [w.detach() for w in weights]
    wanted = torch.cat([(a - b).flatten() for a, b in zip(ends['formula'], start)])
    return [
        ((torch.cat([(a - b).flatten() for a, b in zip(ends[n], start)]) - wanted).norm())
        .div(wanted.norm())
        .item()
        for n in ('mmpretrain', 'mmdense')
    ]


def _by_formula(variant, start, grads, momentum, weight_decay):
    weights, trust = [w.clone() for w in start], 1e-3
    buffers = [torch.zeros_like(w) for w in start]
    for step, found in enumerate(grads):
        lr = (step + 1) / 3
        for i, (w, g) in enumerate(zip(weights, found)):
            factor = torch.ones(())
            if variant == 'C':
                factor = trust * w.norm() / (g.norm() + weight_decay * w.norm() + 1e-8)
                g = g + weight_decay * w
            elif w.dim() > 1:
                g = g + weight_decay * w
                factor = trust * w.norm() / g.norm()
            update = factor * g
            if variant == 'B':
                buffers[i] = momentum * buffers[i] + lr * update
                w -= buffers[i]
            else:
                buffers[i] = momentum * buffers[i] + update
                w -= lr * buffers[i]
    return weights


# -------------------------------------------------------------------------------------- the table


def table():
    """Return the lines of the table."""
    rows = []
    for name in SHIPPED:
        (theirs, ours), factor, error = compare_losses(name)
        what = f"loss; our gradient is {factor:.3g} times mmpretrain's, to {error:.0e}"
        rows.append((name, what, theirs, ours))
    pairs = torch.stack(in_two_processes(contrast))[0]
    shares = [(grad.norm() / joined_gradient().norm()).item() for grad in pairs]
    rows.append(('SimCLR', "gradient over the joined batch's, two processes", *shares))
    codes = torch.cat(in_two_processes(assign), dim=1)
    errors = [(c - sinkhorn(scores())).abs().max().item() for c in codes]
    rows.append(('SwAV', "error of the joined batch's codes, two processes", *errors))
    for name in SHIPPED:
        if hasattr(MODELS.get(f'mmdense.{name}'), 'online_network'):
            difference = compare_statistics(name)
            what = "momentum encoder's running means after 5 steps"
            rows.append((name, what, f'{difference:.2g} from its own', 'its own'))
    for name in SHIPPED:
        if 'queue_len' in small_config(name):
            rows.append((name, 'a queue of 30 keys, batches of 4', *any_queue(name)))
    exact, transposed = compare_positions()
    words = f"{exact:.3g} from the authors'; their transpose {transposed:.1g}"
    rows.append(('MAE', 'position embeddings at the start', words, "the authors'"))
    for variant in 'ABC':
        found = compare_lars(variant)
        rows.append((f'LARS, form {variant}', 'relative error of three steps, lr rising', *found))
    lines = ['| | what | mmpretrain | mmdense |', '| --- | --- | --- | --- |']
    for row in rows:
        cells = (f'{cell:.6g}' if isinstance(cell, float) else cell for cell in row)
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--write', action='store_true', help=f'put it into docs/{DOCUMENT.name}')
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')
    lines = table()
    print('\n'.join(lines))
    if args.write:
        write_table(DOCUMENT, __file__, lines)


if __name__ == '__main__':
    main()
