# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The algorithms that are measured, ours and the peers', and batches for them."""

import os.path

import common
import methods
import mmpretrain
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample

from mmdense.models import registered_algorithms
from mmdense.utils import model_index

TITLES = {e.get('Method', e['Name'].lower()): e['Name'] for e in model_index.collections()}


def title(algorithm):
    """Return an algorithm's name in the tables."""
    return TITLES[algorithm]


def class_of(algorithm):
    """Return the class of an algorithm: that whose name its own begins with, MoCo of MoCoV2, or
    ends with behind 'Dense'."""
    name = title(algorithm)
    kinds = [
        k
        for k in registered_algorithms()
        if name.startswith(k.__name__) or k.__name__ == f'Dense{name}'
    ]
    return max(kinds, key=lambda kind: len(kind.__name__))


# Ours, by the names that commands take; and without those that need labels.
CLASSES = {method: class_of(method) for method in TITLES}
ALGORITHMS = {method: kind for method, kind in CLASSES.items() if not kind.needs_labels}


def both(algorithm):
    """Return the names of ours and of mmpretrain's own, where :mod:`methods` has ``SHIPPED``."""
    return [f'mmdense {algorithm}', f'mmpretrain {title(algorithm)}']


def shipped_file(path):
    """Return a file of the installed mmpretrain, by its path in its repository."""
    folder = os.path.dirname(mmpretrain.__file__)
    for root in (os.path.join(folder, '.mim'), os.path.dirname(folder)):
        found = os.path.join(root, path)
        if os.path.exists(found):
            return found
    raise FileNotFoundError(f"mmpretrain's {path} is not beside {mmpretrain.__file__}")


def shipped_config(config):
    """Return a config of the installed mmpretrain, by its path in its folder of configs."""
    return Config.fromfile(shipped_file(f'configs/{config}'))


def shrink(model, args):
    """The depth and the queues of the command line in a model's config."""
    if 'depth' in model.backbone:
        model.backbone.depth = args.depth
    if 'in_channels' in model.get('neck', {}) and args.depth < 50 and 'decoder' not in model:
        model.neck.in_channels = 512
    if 'teacher' in model:
        model.teacher.checkpoint = None  # random weights, of the same cost
    for key in ('queue_len', 'num_prototypes'):
        if key in model:
            model[key] = getattr(args, key)
    return model


def build(config, scope, args):
    def make():
        own_scope = DefaultScope.overwrite_default_scope(scope)
        with own_scope, MODELS.switch_scope_and_registry(scope) as registry:
            return revert_sync_batchnorm(registry.build(config))

    MessageHub.get_current_instance().update_info('max_iters', 1000)  # the twins' schedules
    model = on_device(make, args)
    model.train()
    return model


def on_device(make, args):
    """Make a module, and move it to the device."""
    return make().to(args.device)


def config_path(algorithm):
    """Return the config of an algorithm's networks, in configs/_base_/models: that of a ResNet-50
    where there are several."""
    paths = (common.CONFIGS / '_base_' / 'models').glob(f'{algorithm}_*.py')
    return sorted(paths, key=lambda path: (not path.stem.endswith('_r50'), path))[0]


def ours(algorithm, args):
    """An algorithm of mmdense, from configs/_base_/models."""
    cfg = Config.fromfile(str(config_path(getattr(args, 'model', None) or algorithm)))
    shrink(cfg.model, args)
    cfg.model.backbone.update(CLASSES[algorithm].size_settings(args.size))
    cfg.merge_from_dict(args.cfg_options or {})
    return build(cfg.model, 'mmdense', args)


def theirs(config, args):
    """Build an algorithm of mmpretrain from its config, see :func:`shipped_config`."""
    return build(shrink(shipped_config(config).model, args), 'mmpretrain', args)


def algorithm(name, args):
    """Build any of them by its name in the tables: 'mmdense METHOD', or a peer of a method."""
    package, _, ours_name = name.partition(' ')
    if package == 'mmdense':
        return ours(ours_name, args)
    peer = next(p[name] for p in (methods.load(m).PEERS for m in methods.names()) if name in p)
    return theirs(peer, args) if isinstance(peer, str) else peer(args)


# ---------------------------------------------------------------------------------------- batches


def random_boxes(n, device):
    """Two crops of each of n images, mirrored at random: N×4 and N×4."""
    boxes = []
    for _ in range(2):
        start = torch.rand(n, 2) * 0.4
        box = torch.cat([start, start + 0.3 + torch.rand(n, 2) * 0.3], dim=1)
        boxes.append(torch.where(torch.rand(n, 1) < 0.5, box[:, [2, 1, 0, 3]], box).to(device))
    return boxes


def random_batch(name, args):
    """Views as the algorithm takes them, and their data samples."""
    n, size, patch = args.batch_size, args.size, args.patch_size
    ours = CLASSES.get(name.partition(' ')[2].lower())
    shapes = [(n, 3, size, size)] * (ours.views.groups[0] if ours else 2)
    if ours is not None and len(ours.views.groups) > 1:
        small = max(32, size * 96 // 224 // 32 * 32)  # multi-crop
        shape = (patch, 9 * patch) if ours.views.patches else (small, small)
        shapes += [(n, 3, *shape)] * ours.views.groups[-1]
    views = [torch.randn(shape, device=args.device) for shape in shapes]
    boxes = torch.stack(random_boxes(n, 'cpu'), dim=1)
    if ours is not None and ours.views.boxes and ours.views.count > 2:
        boxes = torch.cat([boxes, boxes[:, 1:].expand(-1, ours.views.count - 2, -1)], dim=1)
    samples = [DataSample(metainfo=dict(view_boxes=box)) for box in boxes]
    for sample in samples if ours is not None and ours.views.proposals else ():
        number = ours.views.groups[-1] if len(ours.views.groups) > 1 else 10
        corner = 0.2 + 0.4 * torch.rand(number, 2, device=args.device)
        sample.set_field(torch.cat([corner, corner + 0.2], dim=1), 'proposals')
    for sample in samples if ours is not None and ours.needs_labels else ():
        corner = size * torch.rand(5, 2, device=args.device) / 2
        found = dict(bboxes=torch.cat([corner, corner + size / 4], dim=1))
        found['labels'] = torch.arange(5, device=args.device)
        sample.set_metainfo(dict(img_shape=(size, size), batch_input_shape=(size, size)))
        sample.set_field(InstanceData(**found), 'gt_instances')
    return views, samples


def training_step(model, batch, args):
    """The losses of a batch and their gradients."""

    def run():
        model.zero_grad()
        with common.autocast(args):
            loss = sum(model(*batch, mode='loss').values())
        loss.backward()

    return run


def step(name, args):
    """A training step of an algorithm, see :func:`algorithm`, on a random batch."""
    return training_step(algorithm(name, args), random_batch(name, args), args)
