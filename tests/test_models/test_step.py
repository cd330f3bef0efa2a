# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What a whole step must be under mixed precision, other memory formats, compilation and
checkpointing, and that it never waits for the device."""

import copy
import sys

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.utils import digit_version
from tiny_algorithms import (
    each_algorithm,
    has_momentum_encoder,
    joined_batch,
    one_a_family,
    tiny_form,
    tiny_model,
)
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from mmdense.models import losses as L
from mmdense.models.heads import PixContrastHead, PixProHead
from mmdense.models.heads.slot_contrast_head import true_rows
from mmdense.models.layers import SemanticGrouping
from mmdense.models.layers.regions import pool_masks
from mmdense.models.utils import match_locations
from mmdense.utils.errors import InputError

BN = dict(type='BN')


def step(model, batch, **autocast):
    """Losses and gradients."""
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, **dict(dict(enabled=False), **autocast)):
        losses = model(*batch, mode='loss')
    sum(losses.values()).backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()}, copy.deepcopy(grads)


def trained_passes(algorithm, model):
    """Return how many forward passes of the backbone a step computes gradients of."""
    return tiny_form(algorithm).passes or sum(model.views.trained or model.views.groups)


def close(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        for name, value in b.items():
            scale = tolerance * max(1, value.abs().max().item())
            torch.testing.assert_close(
                a[name], value, rtol=1e-4, atol=scale, msg=lambda text, name=name: f'{name}: {text}'
            )


# mixed precision


@each_algorithm(variants=True, labelled=True)
def test_autocast(algorithm):
    model, batch = tiny_model(algorithm), joined_batch(algorithm)
    other = copy.deepcopy(model)
    exact, exact_grads = step(other, batch)
    losses, grads = step(model, batch, enabled=True)
    assert losses.keys() == exact.keys() and grads.keys() == exact_grads.keys()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # of what the networks lose: bfloat16 has three digits
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.03, abs=0.03), name
    for name, grad in grads.items():
        assert grad.dtype == torch.float32 and torch.isfinite(grad).all(), name
    flat, exact_flat = (torch.cat([g.flatten() for g in x.values()]) for x in (grads, exact_grads))
    assert torch.cosine_similarity(flat, exact_flat, dim=0) > 0.95
    # what lasts: momentum encoder, queues, center
    for name, value in model.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64), name
        if name.startswith('encoder_k'):
            assert torch.equal(value, other.state_dict()[name]), name

    if not has_momentum_encoder(algorithm):
        return
    # the momentum encoder is updated in float32, also within autocast
    for m in (model, other):
        with torch.no_grad():
            for p in m.online_network().parameters():
                p.mul_(1.01)
    with torch.autocast('cpu', torch.bfloat16):
        model.encoder_k.update(model.online_network())
    other.encoder_k.update(other.online_network())
    for a, b in zip(model.encoder_k.parameters(), other.encoder_k.parameters()):
        assert torch.equal(a, b)


def delicate():
    """Name, function, and its arguments, at the precision that networks give under autocast."""
    torch.manual_seed(0)
    half = torch.bfloat16
    maps = torch.randn(2, 3, 8, 9, dtype=half)  # two of 3xCxS
    q, k = nn.functional.normalize(maps.float(), dim=2).to(half)
    rows, queue = q.transpose(1, 2).flatten(0, 1), k[0].repeat(1, 5)
    positive = torch.rand(3, 9, 9) < 0.3
    boxes = torch.tensor([[0.1, 0.1, 0.7, 0.8]]).repeat(3, 1)
    codes = maps[1, :2].softmax(2)
    z, t = maps.unflatten(3, (3, 3))
    crops = maps.movedim(3, 1)[:, :4]  # two of 4x3xC
    with DefaultScope.overwrite_default_scope('mmdense'):
        modules = PixProHead(in_channels=8), PixContrastHead(), SemanticGrouping(12, feat_dim=8)
    pixpro, contrast, grouping = modules
    return dict(
        info_nce=(L.info_nce, rows, k.transpose(1, 2).flatten(0, 1), queue),
        pixel_consistency=(L.pixel_consistency, q, k, positive),
        pixel_contrast=(L.pixel_contrast, q, k, positive),
        group_distillation=(L.group_distillation, q, k, torch.rand(8)),
        slot_contrast=(L.slot_contrast, rows, rows, torch.arange(len(rows))),
        match_locations=(match_locations, *torch.randn(2, 3, 8, 200, dtype=half)),
        pixpro_head=(pixpro.loss, z, t, boxes, boxes + 0.05),
        pixcontrast_head=(contrast.loss, z, t, boxes, boxes + 0.05),
        slots=(lambda x: grouping(x)[0], z),
        scores=(grouping.scores, z),
        batch_info_nce=(L.batch_info_nce, rows, k.transpose(1, 2).flatten(0, 1)),
        cosine_distance=(L.cosine_distance, rows, rows.flip(0)),
        feature_reconstruction=(L.feature_reconstruction, rows, rows.flip(0)),
        feature_smooth_l1=(L.feature_smooth_l1, z, t),
        relation_distillation=(L.relation_distillation, z, t),
        negative_cosine=(L.negative_cosine, z, t),
        pair_contrast=(L.pair_contrast, q, k),
        nt_xent=(L.nt_xent, rows, rows.flip(0)),
        object_embedding=(L.object_embedding, rows, rows.flip(0)),
        region_contrast=(L.region_contrast, *maps),
        region_embeddings=(L.region_embeddings, z, t),
        self_labelling=(L.self_labelling, z, torch.rand(8)),
        sinkhorn=(L.sinkhorn, rows),
        swapped_prediction=(lambda a, b: L.swapped_prediction(a, b, [0, 1]), maps[0], codes),
        multi_crop_distillation=(L.multi_crop_distillation, *crops, torch.rand(8)),
        intra_image_margin=(L.intra_image_margin, q.transpose(1, 2) @ k, positive),
        pool_masks=(lambda *x: pool_masks(*x)[0], z, positive.unflatten(2, (3, 3))),
    )


def test_all_losses_are_among_them():
    assert set(L.__all__) <= set(delicate())


@pytest.mark.parametrize('name', delicate())
def test_losses_are_the_same_under_autocast(name):
    function, *arguments = delicate()[name]
    exact = [x.float() if x.is_floating_point() else x for x in arguments]
    expected = function(*exact)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(function(*arguments), expected)
    # also with gradients of half precision behind it; codes have none
    if expected.is_floating_point() and name != 'sinkhorn':
        leaf = arguments[0].clone().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16):
            function(leaf, *arguments[1:]).square().sum().backward()
        assert leaf.grad.dtype == torch.bfloat16 and torch.isfinite(leaf.grad).all()


# memory format


@each_algorithm(variants=True, labelled=True)
def test_channels_last(algorithm, tmp_path):
    batch = joined_batch(algorithm)
    plain = tiny_model(algorithm, norm=BN, channels_last=False)
    model = tiny_model(algorithm, norm=BN)

    def check(model):
        momentum_encoder = [model.encoder_k] if has_momentum_encoder(algorithm) else []
        for part in (model.backbone, *momentum_encoder):
            kernels = [p for p in part.parameters() if p.dim() == 4 and p.size(3) > 1]
            assert len(kernels) > (15 if tiny_form(algorithm).is_resnet else 0)
            for p in kernels:
                assert p.is_contiguous(memory_format=torch.channels_last)

    check(model)
    model.init_weights()
    fix = tiny_form(algorithm).fix or (lambda _: None)
    fix(model)  # of what init_weights() has drawn anew
    plain.load_state_dict(model.state_dict())
    check(model)
    formats = []
    model.backbone.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    close(step(model, batch), step(plain, batch), tolerance=2e-5)
    assert formats[0] and len(formats) == trained_passes(algorithm, model)

    # through a checkpoint, a copy and a device
    torch.save(model.state_dict(), tmp_path / 'x.pth')
    other = tiny_model(algorithm, norm=BN)
    other.load_state_dict(torch.load(tmp_path / 'x.pth', weights_only=True))
    for m in (other, copy.deepcopy(model), model.to('cpu', torch.float64).to(torch.float32)):
        check(m)


def test_wrong_views_say_so_in_any_format():
    model = tiny_model()
    with pytest.raises(InputError, match='needs views N×3×H×W'):
        model([torch.zeros(2, 3, 8)] * 2, mode='loss')
    with pytest.raises(InputError, match='needs 2 views of every image, got 1'):
        model(torch.zeros(2, 3, 8, 8), mode='loss')


# no waiting for the device


class NoWaiting(TorchDispatchMode):
    """Fails on operations that need a value of a tensor on the host, on a GPU, or that copy a
    value from the host (``new_tensor``) and wait for the copy."""

    forbidden = {
        torch.ops.aten._local_scalar_dense,
        torch.ops.aten.item,
        torch.ops.aten.is_nonzero,
        torch.ops.aten.equal,
        torch.ops.aten.nonzero,
        torch.ops.aten.nonzero_numpy,
        torch.ops.aten.masked_select,
        torch.ops.aten._unique,
        torch.ops.aten._unique2,
        torch.ops.aten.unique_dim,
        torch.ops.aten.unique_consecutive,
        torch.ops.aten.repeat_interleave,
        torch.ops.aten.lift_fresh,
    }
    indexing = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        assert packet not in self.forbidden, func
        if packet in self.indexing or packet is torch.ops.aten._unsafe_index:
            for index in args[1]:
                assert index is None or index.dtype not in (torch.bool, torch.uint8), func
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """Counts what reads a tensor without an operation."""
    seen = []
    for name in ('tolist', 'cpu', 'numpy', '__array__', '__bool__', '__int__', '__float__'):
        original = getattr(torch.Tensor, name)

        def read(self, *args, original=original, name=name, **kwargs):
            seen.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)
    return seen


@pytest.mark.parametrize(
    'bad',
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
    ],
)
def test_waiting_is_noticed(bad):
    with pytest.raises(AssertionError), NoWaiting():
        bad(torch.randn(3))


@each_algorithm(variants=True, labelled=True)
def test_no_step_waits(algorithm, reads):
    """Except for what an algorithm declares."""
    model, batch = tiny_model(algorithm, norm=BN), joined_batch(algorithm)
    for number in range(3):
        losses = model(*batch, mode='loss')
        sum(losses.values()).backward()
        if number and model.matching_on_host:
            assert reads, 'it declares what it does not do'
            return
        if number:
            assert reads == tiny_form(algorithm).reads
        reads.clear()
    with NoWaiting():
        losses = model(*batch, mode='loss')
        sum(losses.values()).backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@each_algorithm(variants=True, labelled=True)
def test_no_step_waits_on_a_gpu(algorithm, dtype, monkeypatch):
    model = tiny_model(algorithm, norm=BN).cuda()
    if model.matching_on_host:
        pytest.skip('a step waits, as the algorithm declares')
    views, samples = joined_batch(algorithm)
    views = [view.cuda() for view in views]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    read = torch.Tensor.tolist
    waits = []

    def tolist(tensor):  # what an algorithm declares: allowed, and counted
        waits.append(tensor)
        torch.cuda.set_sync_debug_mode('default')
        values = read(tensor)
        torch.cuda.set_sync_debug_mode('error')
        return values

    monkeypatch.setattr(torch.Tensor, 'tolist', tolist)

    def once():
        with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
            losses = model(views, samples, mode='loss')
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        once()
    waits.clear()
    try:
        torch.cuda.set_sync_debug_mode('error')
        once()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert len(waits) == len(tiny_form(algorithm).reads)


def test_true_rows():
    for _ in range(5):
        mask = torch.rand(4, 7) < torch.rand(())
        rows = true_rows(mask, int(mask.sum()))
        assert torch.equal(rows, mask.flatten().nonzero().flatten())
    assert true_rows(torch.zeros(3, dtype=torch.bool), 0).tolist() == []


# compilation


def compiled_step(algorithm, backend):
    """Steps of a compiled model are those of the model as it is, and nothing of backbone, necks
    and losses goes back to Python: ``fullgraph`` makes that an error. PyTorch 2.1 goes back."""
    # of six images DINO's and SCFS's gradients change by 2e-3 with 1e-7 of the images: some values
    # are next to a ReLU's zero
    batch = joined_batch(algorithm, number=10)
    plain = tiny_model(algorithm, norm=BN)
    complete = digit_version(torch.__version__) >= digit_version('2.2')
    model = tiny_model(algorithm, norm=BN, compile=dict(backend=backend, fullgraph=complete))
    names = list(model.state_dict())
    torch._dynamo.reset()
    counters.clear()
    # twice: what is compiled once must follow the weights, the momentum encoder and the queues
    for _ in range(2):
        close(step(model, batch), step(plain, batch), tolerance=1e-4)
        with torch.no_grad():
            for m in (model, plain):
                for p in m.parameters():
                    p.mul_(1.01)
    assert not (complete and counters['graph_break'])
    assert counters['stats']['unique_graphs'] >= 3  # networks and loss were compiled
    assert list(model.state_dict()) == names == list(plain.state_dict())
    copy.deepcopy(model)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-4, msg=name)


needs_dynamo = pytest.mark.skipif(
    sys.version_info >= (3, 12) and digit_version(torch.__version__) < digit_version('2.4'),
    reason='PyTorch cannot compile',
)


@needs_dynamo
@each_algorithm(quick=one_a_family(), labelled=True)
def test_compiled(algorithm):
    """By the compiler's front end and its autograd, without generated code."""
    compiled_step(algorithm, 'aot_eager')


@needs_dynamo
@pytest.mark.slow
@each_algorithm()
def test_compiled_to_code(algorithm):
    compiled_step(algorithm, 'inductor')


def test_compile_is_checked(monkeypatch):
    with pytest.raises(InputError, match='compile must be True, False or a dict, got 3'):
        tiny_model(compile=3)
    with pytest.raises(InputError, match='no_such_argument'):
        tiny_model(compile=dict(no_such_argument=1))

    def unsupported(*_, **__):
        raise RuntimeError('Dynamo is not supported on Python 3.12+')

    monkeypatch.setattr(torch, 'compile', unsupported)
    with pytest.raises(InputError, match='compile=True of the model: Dynamo is not supported on'):
        tiny_model(compile=True)


# activation checkpointing


@pytest.mark.filterwarnings('ignore:.*use_reentrant')
@pytest.mark.parametrize('way', ['with_cp', 'activation_checkpointing'])
@each_algorithm(resnets=True, labelled=True)
def test_checkpointed(algorithm, way):
    batch = joined_batch(algorithm)
    plain = tiny_model(algorithm, norm=BN)
    model = tiny_model(algorithm, norm=BN, backbone=dict(with_cp=way == 'with_cp'))
    if way == 'activation_checkpointing':  # as MMEngine's runner does with the config's key
        turn_on_activation_checkpointing(model, [f'backbone.layer{i}' for i in range(1, 5)])
    runs = []
    model.backbone.layer1[0].conv1.register_forward_hook(lambda *_: runs.append(None))
    close(step(model, batch), step(plain, batch), tolerance=1e-6)
    trained = any(p.requires_grad for p in model.backbone.parameters())
    # once more for each view
    assert len(runs) == (1 + trained) * trained_passes(algorithm, model)

    # The online network's statistics take each batch in twice; the momentum encoder's, once.
    name = 'layer1.0.bn1.running_mean'
    ours, theirs = (dict(m.backbone.named_buffers())[name] for m in (model, plain))
    twice = {1: (1 - 0.9**2) / 0.1}.get(len(runs) // 2)
    if twice and trained:
        torch.testing.assert_close(ours, theirs * twice)
    if has_momentum_encoder(algorithm):
        for a, b in zip(model.encoder_k.buffers(), plain.encoder_k.buffers()):
            torch.testing.assert_close(a, b)
