# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""LARS and its schedule, as PixPro and SlotCon use them."""

import copy
import uuid

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmdense.engine import LARS, WarmupCosineLR
from mmdense.engine.optimizers import lars
from mmdense.engine.optimizers.lars import Options
from mmdense.utils.errors import InputError


@pytest.fixture
def config(repo, mmdense_scope):
    return Config.fromfile(str(repo / 'configs/_base_/schedules/lars_coslr_100e.py'))


# -------------------------------------------------------------------------------------- optimizer


@pytest.fixture
def vectors(golden):
    return golden('lars_three_steps')


def model_of(tensors):
    """A module whose parameters have the names, such as 0.weight, and values of tensors."""
    model = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split('.')
        owner = model
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        owner.register_parameter(last, nn.Parameter(tensor.clone()))
    return model


def run_steps(vectors, make):
    """Steps with the golden's weights, gradients and learning rates; the parameters."""
    prefix = 'init_'
    model = model_of({k[len(prefix) :]: v for k, v in vectors.items() if k.startswith(prefix)})
    params = dict(model.named_parameters())
    wrapper = make(model)
    for i, lr in enumerate(vectors['lr'].tolist()):
        for group in wrapper.param_groups:
            group['lr'] = lr
        for name, p in params.items():
            p.grad = vectors[f'grad{i}_{name}'].clone()
        wrapper.step()
    return params


def from_config(config, vectors, **optim_wrapper):
    cfg = config.optim_wrapper
    cfg.optimizer.momentum = vectors['momentum'].item()
    cfg.optimizer.weight_decay = vectors['weight_decay'].item()
    cfg.optimizer.trust_coefficient = vectors['trust_coef'].item()
    cfg.update(optim_wrapper)
    return lambda model: build_optim_wrapper(model, cfg)


def check_final(params, vectors):
    for name, p in params.items():
        torch.testing.assert_close(p.data, vectors[f'final_{name}'], rtol=1e-5, atol=1e-5)
        # The adapted steps are small: compare what the weights moved, too.
        moved, expected = (x - vectors[f'init_{name}'] for x in (p.data, vectors[f'final_{name}']))
        assert (moved - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize('grouped', [False, True], ids=['one group', 'a group each parameter'])
def test_golden(config, vectors, grouped):
    def make(model):
        names = [name for name, _ in model.named_parameters()]
        keys = {names[0]: dict(decay_mult=1.0)}
        options = dict(paramwise_cfg=dict(custom_keys=keys)) if grouped else {}
        wrapper = from_config(config, vectors, **options)(model)
        assert type(wrapper) is OptimWrapper and type(wrapper.optimizer) is LARS
        assert len(wrapper.optimizer.param_groups) == (len(names) if grouped else 1)
        return wrapper

    check_final(run_steps(vectors, make), vectors)


def test_defaults_are_the_recipe(config):
    assert config.optim_wrapper.optimizer == dict(
        type='mmdense.LARS', lr=4.0, momentum=0.9, weight_decay=1e-5
    )
    model = nn.Linear(2, 2)
    (group,) = build_optim_wrapper(model, config.optim_wrapper).param_groups
    assert (group['trust_coefficient'], group['eps']) == (1e-3, 1e-8)
    assert config.auto_scale_lr.base_batch_size == 1024
    assert config.param_scheduler == [
        dict(
            type='WarmupCosineLR',
            warmup=5,
            start_factor=0.01,
            eta_min=1e-6,
            convert_to_iter_based=True,
        )
    ]


def test_golden_is_not_mmpretrains(vectors):
    """Even when told what to exclude, it is another algorithm."""
    from mmpretrain.engine.optimizers import LARS as Theirs

    momentum, decay, eta = (
        vectors[name].item() for name in ('momentum', 'weight_decay', 'trust_coef')
    )

    def make(model):
        plain = [p for p in model.parameters() if p.ndim <= 1]
        adapted = [p for p in model.parameters() if p.ndim > 1]
        groups = [
            dict(params=adapted),
            dict(params=plain, weight_decay=0.0, lars_exclude=True),
        ]
        return Theirs(groups, lr=0.1, momentum=momentum, weight_decay=decay, eta=eta)

    with pytest.raises(AssertionError):
        check_final(run_steps(vectors, make), vectors)


def reference(p, buffer, grad, lr, momentum, weight_decay, trust=1e-3, eps=1e-8):
    """One parameter's step as the papers write it."""
    if p.ndim > 1:
        grad = grad + weight_decay * p
        if p.norm() > 0 and grad.norm() > 0:
            grad = grad * trust * p.norm() / (grad.norm() + eps)
    buffer = momentum * buffer + grad
    return p - lr * buffer, buffer


SHAPES = dict(conv=(4, 3, 3, 3), prototypes=(7, 5), bias=(4,), scalar=(), empty=(0, 3))


def make_params(dtype=torch.float32, device='cpu', seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in SHAPES.values():
        p = nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
        p.grad = torch.randn(shape, generator=generator).to(device, dtype)
        params.append(p)
    return params


@pytest.mark.parametrize('maximize', [False, True])
@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_against_the_formula(momentum, maximize):
    """The 2-D prototypes get decay and factor; 1-D and 0-D ones neither."""
    params = make_params(torch.float64)
    expected = [(p.detach().clone(), torch.zeros_like(p)) for p in params]
    optimizer = LARS(params, lr=0.5, momentum=momentum, weight_decay=0.2, maximize=maximize)
    sign = -1 if maximize else 1
    for _ in range(3):
        optimizer.step()
        expected = [
            reference(w, buffer, sign * p.grad, 0.5, momentum, 0.2)
            for p, (w, buffer) in zip(params, expected)
        ]
        for p, (w, buffer) in zip(params, expected):
            torch.testing.assert_close(p.data, w)
            torch.testing.assert_close(optimizer.state[p]['momentum_buffer'], buffer)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The step of a device: without the fused operation, which only CPUs take."""
    monkeypatch.setattr(lars, '_has_fused_sgd', lambda: False)


VARIANTS = [{}, dict(lr_in_buffer=True), dict(adapt_all=True), dict(maximize=True)]


@pytest.mark.skipif(not lars._has_fused_sgd(), reason='PyTorch has no fused SGD for CPUs')
@pytest.mark.parametrize('decay', [0.0, 0.2])
@pytest.mark.parametrize('options', VARIANTS, ids=str)
def test_the_fused_step_is_the_same(monkeypatch, options, decay):
    """Compare each variant, as a map of channels_last too; other cases take the usual step."""
    settings = dict(lr=0.5, weight_decay=decay, **options)
    fused, usual = make_params(), make_params()
    for params in (fused, usual):
        params[0].data = params[0].data.contiguous(memory_format=torch.channels_last)
        params[0].grad = params[0].grad.contiguous(memory_format=torch.channels_last)
        params.append(nn.Parameter(torch.ones(3, 2)))
        params[-1].grad = torch.zeros(3, 2)
        params.append(nn.Parameter(torch.ones(5, 4)))
        params[-1].grad = torch.arange(20.0).view(4, 5).t()  # of other strides
    calls, step = [], torch._fused_sgd_
    monkeypatch.setattr(
        torch, '_fused_sgd_', lambda *a, **k: calls.append(tuple(a[0][0].shape)) or step(*a, **k)
    )
    ours, theirs = (LARS(params, **settings) for params in (fused, usual))
    for _ in range(3):
        ours.step()
    number = len(calls)
    shapes = {(4, 3, 3, 3), (7, 5), (0, 3), (3, 2)} | (
        {(4,), ()} if 'adapt_all' in options else set()
    )
    assert set(calls) == shapes
    monkeypatch.setattr(lars, '_has_fused_sgd', lambda: False)
    for _ in range(3):
        theirs.step()
    assert len(calls) == number
    for p, q in zip(fused, usual):
        torch.testing.assert_close(p.data, q.data, rtol=1e-6, atol=1e-6)
        buffers = [o.state[x]['momentum_buffer'] for o, x in ((ours, p), (theirs, q))]
        torch.testing.assert_close(*buffers, rtol=1e-6, atol=1e-6)


def test_one_by_one_is_together(monkeypatch, as_on_a_gpu):
    """On a CPU each tensor has its step by itself; a GPU makes those of all at once."""
    ours, together = make_params(), make_params()
    optimizer = LARS(ours, lr=0.5, weight_decay=0.2)
    calls, step = [], LARS._step
    monkeypatch.setattr(
        LARS, '_step', lambda self, p, *a, **k: calls.append(p) or step(self, p, *a, **k)
    )
    options = Options(*(optimizer.defaults[name] for name in Options._fields))
    at_once = LARS(together, lr=0.5, weight_decay=0.2)
    for _ in range(2):
        optimizer.step()
        with torch.no_grad():
            at_once._step(together[:2], True, options)
    assert [len(part) for part in calls[:4]] == [1, 1, 1, 2]
    assert all(torch.equal(p, q) for p, q in zip(ours[:2], together[:2]))


def test_one_dimension_is_plain_sgd():
    params, theirs = make_params()[2:4], make_params()[2:4]
    ours = LARS(params, lr=0.5, weight_decay=0.2)
    sgd = torch.optim.SGD(theirs, lr=0.5, momentum=0.9)
    for _ in range(3):
        ours.step()
        sgd.step()
    assert all(torch.equal(p, q) for p, q in zip(params, theirs))


@pytest.mark.parametrize('decay', [0.0, 0.3])
def test_a_zero_norm_has_factor_one(decay):
    fresh = nn.Parameter(torch.zeros(3, 2))
    still = nn.Parameter(torch.ones(3, 2))
    fresh.grad = torch.arange(6.0).view(3, 2)
    still.grad = -decay * torch.ones(3, 2)  # so that the decayed gradient is 0
    LARS([fresh, still], lr=0.1, weight_decay=decay).step()
    torch.testing.assert_close(fresh.data, -0.1 * fresh.grad)
    assert torch.equal(still.data, torch.ones(3, 2))


def test_gradients_are_only_read():
    params = make_params()
    before = [(p.grad, p.grad.clone(), p.grad._version) for p in params]
    optimizer = LARS(params, lr=0.5, weight_decay=0.2)
    optimizer.step()
    optimizer.step()
    for p, (grad, values, version) in zip(params, before):
        assert p.grad is grad and torch.equal(grad, values) and grad._version == version
        assert optimizer.state[p]['momentum_buffer'].data_ptr() != grad.data_ptr() or not p.numel()


def test_without_a_gradient_nothing_happens():
    params = make_params()
    params[0].grad = params[2].grad = None
    before = [p.detach().clone() for p in params]
    optimizer = LARS(params, lr=0.5, weight_decay=0.2)
    optimizer.step()
    changed = [not torch.equal(p, q) for p, q in zip(params, before)]
    assert changed == [False, True, False, True, False]  # the last has no elements
    assert params[0] not in optimizer.state
    for p in params:
        p.grad = None
    optimizer.step()


def test_closure():
    params = make_params()
    optimizer = LARS(params, lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first.requires_grad and optimizer.step(closure) < first
    assert optimizer.step() is None


class NoSync(TorchDispatchMode):
    """Fails where the host would wait for a value of the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        waits = ('_local_scalar_dense', 'item', 'is_nonzero', 'nonzero', '_to_copy', 'equal')
        assert name.split('::')[1] not in waits, f'{name} waits for the device'
        return func(*args, **(kwargs or {}))


def test_never_waits_for_the_device(as_on_a_gpu):
    optimizer = LARS(make_params(), lr=0.5, weight_decay=0.2)
    with pytest.raises(AssertionError, match='waits'), NoSync():
        torch.ones(()).item()
    with NoSync():
        optimizer.step()
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_never_waits_for_a_gpu():
    params, on_gpu = make_params(), make_params(device='cuda')
    here, there = (LARS(p, lr=0.5, weight_decay=0.2) for p in (params, on_gpu))
    here.step()
    there.step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        there.step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    here.step()
    for p, q in zip(params, on_gpu):
        torch.testing.assert_close(p.data, q.data.cpu())


def test_other_dtypes():
    """Also mixed in one group; bfloat16 as exact as it is."""
    exact, low = make_params(seed=1), make_params(torch.bfloat16, seed=1)
    LARS(exact + low, lr=5.0, weight_decay=0.2).step()
    for p, q in zip(exact, low):
        assert q.dtype == torch.bfloat16
        torch.testing.assert_close(p.data, q.data.float(), rtol=0.05, atol=0.05)


def test_channels_last():
    params, other = make_params(), make_params()
    other[0].data = other[0].data.to(memory_format=torch.channels_last)
    for p in (params, other):
        optimizer = LARS(p, lr=0.5, weight_decay=0.2)
        optimizer.step()
        optimizer.step()
    for p, q in zip(params, other):
        torch.testing.assert_close(p.data, q.data)


def test_state_dict():
    params = make_params()
    optimizer = LARS(params, lr=0.5, weight_decay=0.2)
    optimizer.step()
    again = [nn.Parameter(p.detach().clone()) for p in params]
    for p, q in zip(params, again):
        q.grad = p.grad
    restored = LARS(again, lr=0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert {k for s in restored.state.values() for k in s} == {'momentum_buffer'}
    optimizer.step()
    restored.step()
    assert all(torch.equal(p, q) for p, q in zip(params, again))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(lr=-0.1), 'LARS: lr must be a number from 0, got -0.1'),
        (dict(lr=float('nan')), 'lr must be a number from 0, got nan'),
        (dict(lr=float('inf')), 'lr must be .* got inf'),
        (dict(lr='fast'), "lr must be a number from 0, got 'fast'"),
        (dict(lr=None), 'lr must be .* got None'),
        (dict(lr=True), 'lr must be .* got True'),
        (dict(momentum=1.0), 'momentum must be a number from 0 to below 1, got 1.0'),
        (dict(momentum=-0.1), 'momentum must be'),
        (dict(weight_decay=-1e-5), 'weight_decay must be a number from 0, got -1e-05'),
        (dict(weight_decay=float('nan')), 'weight_decay must be'),
        (dict(trust_coefficient=0), 'trust_coefficient must be a number above 0, got 0'),
        (dict(eps=-1), 'eps must be a number from 0, got -1'),
        (dict(maximize=1), 'maximize must be True or False, got 1'),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message) as e:
        LARS(make_params(), **{'lr': 0.1, **options})
    assert '\n' not in str(e.value)


def test_bad_groups():
    with pytest.raises(InputError, match='weight_decay must be'):
        LARS([dict(params=make_params(), weight_decay=-1.0)], lr=0.1)
    with pytest.raises(TypeError, match='lr'):
        LARS(make_params())


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match='sparse gradients'):
        LARS(embedding.parameters(), lr=0.1).step()


# --------------------------------------------------------------------------------------- schedule


class Tiny(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(list(inputs))).square().mean())


class Record(Hook):
    """The learning rate that each iteration uses."""

    def __init__(self):
        self.lr = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        (lr,) = runner.optim_wrapper.get_lr()['lr']
        self.lr.append(lr)


def train(config, work_dir, iters_per_epoch, checkpoint_every=1000, **runner_cfg):
    """A run as the config says, of a tiny model; its learning rates and final state."""
    generator = torch.Generator().manual_seed(1)
    images = list(torch.randn(2 * iters_per_epoch, 4, generator=generator))
    record = Record()
    runner = Runner(
        model=Tiny(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='mmengine.pseudo_collate'),
            dataset=[dict(inputs=x) for x in images],
        ),
        train_cfg=config.train_cfg,
        optim_wrapper=config.optim_wrapper,
        param_scheduler=config.param_scheduler,
        auto_scale_lr=config.auto_scale_lr,
        custom_hooks=[record],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1000),
            checkpoint=dict(type='CheckpointHook', interval=checkpoint_every),
        ),
        default_scope='mmdense',
        log_level='WARNING',
        experiment_name=uuid.uuid4().hex,  # MMEngine keeps one logger a name
        **runner_cfg,
    )
    runner.train()
    return record.lr, runner


def test_golden_schedule(config, golden, tmp_path):
    vectors = golden('lars_recipe_lr_schedule')
    config.param_scheduler[0].warmup = vectors['warmup_epochs'].item()
    config.optim_wrapper.optimizer.lr = vectors['base_lr'].item()
    config.train_cfg.max_epochs = vectors['epochs'].item()
    lr, _ = train(config, tmp_path, vectors['iters_per_epoch'].item())
    assert lr == pytest.approx(vectors['lr'].tolist(), rel=1e-9)


def test_a_resumed_schedule(config, tmp_path):
    """In the warm-up, on its last step, on the cosine."""
    iters = 4
    config.train_cfg.max_epochs = 10  # all that a recipe of another length has to say
    lr, whole = train(config, tmp_path / 'whole', iters, checkpoint_every=1)
    for epoch in (3, 5, 8):
        part, resumed = train(
            config,
            tmp_path / f'from{epoch}',
            iters,
            load_from=str(tmp_path / 'whole' / f'epoch_{epoch}.pth'),
            resume=True,
        )
        assert part == lr[iters * epoch :]
        for p, q in zip(whole.model.parameters(), resumed.model.parameters()):
            assert torch.equal(p, q)


def test_a_longer_run_goes_on_along_its_own_curve(config, tmp_path):
    """MMEngine's schedulers keep the length of the run that was stopped, and
    the learning rate then stays where it ended."""
    config.train_cfg.max_epochs = 8
    train(config, tmp_path / 'short', 2, checkpoint_every=1)
    config.train_cfg.max_epochs = 12
    whole, _ = train(config, tmp_path / 'whole', 2)
    part, _ = train(
        config,
        tmp_path / 'long',
        2,
        load_from=str(tmp_path / 'short' / 'epoch_8.pth'),
        resume=True,
    )
    assert part == pytest.approx(whole[16:], rel=1e-12) and len(part) == 8


def test_mmengines_own_pair_differs(config, tmp_path):
    """Why the schedule is a class of ours."""
    config.train_cfg.max_epochs = 10
    ours, _ = train(config, tmp_path / 'ours', 4)
    config.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, end=5, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', begin=5, eta_min=1e-6, convert_to_iter_based=True),
    ]
    lr, _ = train(config, tmp_path / 'theirs', 4)
    assert len(lr) == len(ours) and lr != pytest.approx(ours, rel=1e-3)


def test_lr_is_scaled_to_the_batch(config, tmp_path):
    config.auto_scale_lr.enable = True  # tools/train.py --auto-scale-lr
    config.train_cfg.max_epochs = 6
    lr, _ = train(config, tmp_path, 2)
    assert lr[0] == pytest.approx(4.0 * 2 / 1024 / 100)
    assert lr[10] == max(lr) == pytest.approx(4.0 * 2 / 1024)


@pytest.mark.parametrize('epochs', [1, 2, 5])
def test_a_run_shorter_than_the_warmup(config, tmp_path, epochs):
    config.train_cfg.max_epochs = epochs
    lr, _ = train(config, tmp_path, 2)
    assert lr == pytest.approx([4.0 * (0.01 + 0.99 * t / 10) for t in range(2 * epochs)])


def schedule(steps, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = WarmupCosineLR(optimizer, **options)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return values


def test_schedule_by_epoch_without_warmup_and_begin():
    assert schedule(4, end=4, warmup=0, eta_min=0.0) == pytest.approx(
        [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5]
    )
    values = schedule(6, begin=2, end=6, warmup=2, start_factor=0.0, eta_min=0.0)
    assert values == pytest.approx([2.0, 2.0, 0.0, 1.0, 2.0, 1.0])
    # A finished schedule leaves the last value.
    values = schedule(6, end=4, warmup=0, eta_min=0.0)
    assert values[4] == values[5] == values[3]


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(warmup=-1), 'WarmupCosineLR: warmup must be a number from 0, got -1'),
        (dict(warmup=None), 'warmup must be a number from 0, got None'),
        (dict(start_factor=1.5), 'start_factor must be a number from 0 to 1, got 1.5'),
        (dict(eta_min=float('nan')), 'eta_min must be a number from 0, got nan'),
    ],
)
def test_bad_schedules(options, message):
    with pytest.raises(InputError, match=message):
        schedule(1, end=4, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.raises(InputError, match=message):
        WarmupCosineLR.build_iter_from_epoch(optimizer, end=4, epoch_length=10, **options)


# --------------------------------------------------------------------------- of other methods


@pytest.mark.parametrize(
    'name, options',
    [
        ('mocov3_lars_three_steps', {}),
        ('byol_lars_three_steps', {}),
        ('simclr_lars_three_steps', dict(lr_in_buffer=True)),
        ('swav_larc_three_steps', dict(adapt_all=True)),
    ],
)
def test_golden_variants(golden, name, options):
    g = golden(name)
    gradient = 'g.{}_{}' if name.startswith('byol') else '{}_{}'
    names = [k[:-2] for k in g if k.endswith('_0') and not k.startswith('g')]
    params = {n: nn.Parameter(g[f'{n}_0'].clone()) for n in names}
    optimizer = LARS(
        params.values(),
        lr=1.0,
        momentum=float(g['momentum']),
        weight_decay=float(g['weight_decay']),
        trust_coefficient=float(g['trust_coefficient']),
        **options,
    )
    for step, lr in enumerate(g['lrs'].tolist()):
        for n, p in params.items():
            of = n if name.startswith('byol') else f'g{n[1:]}'
            p.grad = g[gradient.format(of, step)].clone()
        optimizer.param_groups[0]['lr'] = lr
        optimizer.step()
        for n, p in params.items():
            torch.testing.assert_close(p.data, g[f'{n}_{step + 1}'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('options', [dict(lr_in_buffer=True), dict(adapt_all=True)])
def test_variants_never_wait_and_resume(options, as_on_a_gpu):
    params = make_params()
    optimizer = LARS(params, lr=0.5, weight_decay=0.2, **options)
    with NoSync():
        optimizer.step()
    again = [nn.Parameter(p.detach().clone()) for p in params]
    for p, q in zip(params, again):
        q.grad = p.grad
    restored = LARS(again, lr=0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    restored.step()
    assert all(torch.equal(p, q) for p, q in zip(params, again))


def test_a_zero_norm_of_larc_takes_the_bare_gradient():
    fresh, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3, 2))
    fresh.grad, still.grad = torch.arange(3.0), torch.zeros(3, 2)
    LARS([fresh, still], lr=0.1, weight_decay=0.3, adapt_all=True).step()
    torch.testing.assert_close(fresh.data, -0.1 * fresh.grad)
    assert torch.equal(still.data, torch.ones(3, 2))  # no decay either


def test_state_of_before_these_arguments():
    optimizer = LARS(make_params(), lr=0.5, weight_decay=0.2)
    state = optimizer.state_dict()
    for group in state['param_groups']:
        del group['lr_in_buffer'], group['adapt_all']
    optimizer.load_state_dict(state)
    optimizer.step()


@pytest.mark.parametrize('name', ['mocov3_schedules', 'byol_schedules'])
def test_golden_schedules_from_0_to_0(golden, name):
    g = golden(name)
    base, total, warmup = (
        (
            g['lr_base'],
            g['epochs'] * g['iters_per_epoch'],
            g['warmup_epochs'] * g['iters_per_epoch'],
        )
        if 'epochs' in g
        else (g['base_lr'] * g['batch'] / 256, g['total_steps'], g['warmup_steps'])
    )
    found = schedule(
        len(g['lr']),
        end=int(total),
        warmup=int(warmup),
        start_factor=0.0,
        eta_min=0.0,
        by_epoch=False,
    )
    assert [lr / 2.0 * float(base) for lr in found] == pytest.approx(
        g['lr'].tolist(), rel=1e-5, abs=1e-7
    )


def test_golden_schedule_of_swav(golden):
    g = golden('swav_lr_schedule')
    iters, base = int(g['iters_per_epoch']), float(g['base_lr'])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = WarmupCosineLR(
        optimizer,
        end=int(g['epochs']) * iters,
        warmup=int(g['warmup_epochs']) * iters,
        start_factor=float(g['start_warmup']) / base,
        eta_min=float(g['final_lr']),
        reach_early=True,
        by_epoch=False,
    )
    found = []
    for _ in g['lr']:
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(g['lr'].tolist(), rel=1e-6)
