# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Complete steps on a GPU that is not there: no operation mixes devices, and the host waits only
where an algorithm or a line of the log asks for a value."""

import copy
import importlib
from collections import Counter
from itertools import islice

import pytest
import torch
from mmengine.runner import Runner
from runs import tiny_config
from tiny_algorithms import (
    algorithm_class,
    each_algorithm,
    joined_batch,
    tiny_form,
    tiny_model,
    tiny_model_config,
)
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from mmdense.engine import LARS
from mmdense.engine.hooks import CheckInvalidValuesHook, FreezeLayersHook
from mmdense.models.layers import KeyQueue


@pytest.fixture
def module(repo, monkeypatch):
    """The module benchmarks/fake_gpu.py."""
    monkeypatch.syspath_prepend(str(repo / 'benchmarks'))
    module = importlib.import_module('fake_gpu')
    if not module.is_supported():
        pytest.skip('this PyTorch has no fake CUDA tensors where there is no GPU')
    return module


@pytest.fixture
def gpu(module, monkeypatch):
    """The same, with a backward pass that needs no GPU."""
    monkeypatch.setattr(torch.Tensor, 'backward', module.backward)
    return module


def build(images, work_dir, algorithm):
    """Return the runner of a recipe whose colours and blur are the device's, with a tiny model,
    and two batches."""
    views = f'train_dataloader.dataset.pipeline.{tiny_form(algorithm).multi_view}'
    cfg = tiny_config(
        images,
        work_dir,
        algorithm,
        **{
            f'{views}.device_augment': True,
            'default_hooks.logger.interval': 2,
            'default_hooks.health.interval': 2,
            'default_hooks.checkpoint.interval': 100,
            'log_level': 'WARNING',
        },
    )
    preprocessor = cfg.model.data_preprocessor
    sizes = algorithm_class(algorithm).size_settings(64)
    cfg.model = tiny_model_config(
        algorithm, dict(type='BN'), data_preprocessor=preprocessor, backbone=sizes
    )
    runner = Runner.from_cfg(cfg)
    return runner, list(islice(runner.train_loop.dataloader, 2))


@each_algorithm(variants=True)
def test_steps(algorithm, gpu, images, tmp_path):
    """With all hooks of the recipe: the second step has a line and a check."""
    if not tiny_form(algorithm).fake and algorithm == tiny_form(algorithm).algorithm:
        pytest.skip('fake tensors lack an operation of the network')
    matching = algorithm_class(algorithm).matching_on_host
    runner, batches = build(images, tmp_path, algorithm)
    model, half = runner.model, []
    model.train()
    # what is read once in a run
    model(**model.data_preprocessor(copy.deepcopy(batches[0])), mode='loss')
    with gpu.fake_cuda(model), gpu.Reads(matching) as reads:
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        first = model.backbone.get_submodule(tiny_form(algorithm).first_layer)
        first.register_forward_hook(lambda *args: half.append(args[2].dtype))
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        seen = []
        for number, batch in enumerate(gpu.to_fake(batches, 'cpu')):
            dtype = (torch.bfloat16, torch.float16)[number]
            runner.optim_wrapper.optim_context = lambda _, d=dtype: torch.autocast('cuda', d)
            reads.seen.clear()
            half.clear()
            runner.train_loop.run_iter(number, batch)
            seen.append(Counter(reads.seen))
            assert set(half) == {dtype}
        check_state(runner)

    declared = Counter(tiny_form(algorithm).reads)
    queue = any(isinstance(module, KeyQueue) for module in model.modules())
    # the line's losses and its queue; the check; the flags of the step before, long computed
    due = Counter([*['tolist'] * 2, *['item'] * queue, 'event'])
    if matching:  # in every layer, as the algorithm declares: by mmdet, whose reads are not ours
        assert set(seen[0]) == {'copy', 'item', 'rows'}
        # the health monitor looks at the last layer alone
        assert seen[1] - seen[0] == due + Counter(rows=tiny_form(algorithm).health_rows)
        return
    assert seen == [declared, declared + due]


def check_state(runner):
    """Every trained parameter has made a step, but those that stay in the first epoch; and what
    lasts is on the GPU in float32."""
    model, optimizer = runner.model, runner.optim_wrapper.optimizer
    trained = {p for p in model.parameters() if p.requires_grad}
    freezing = [hook for hook in runner.hooks if isinstance(hook, FreezeLayersHook)]
    assert set(optimizer.state) == trained.difference(*(hook.parameters for hook in freezing))
    assert len(optimizer.state) > 0
    kept = [*model.state_dict().values()]
    # Adam counts its steps on the host
    states = optimizer.state.values()
    kept += [v for state in states for name, v in state.items() if name != 'step']
    assert all(v.is_cuda and v.dtype in (torch.float32, torch.int64) for v in kept)
    (guard,) = [hook for hook in runner.hooks if isinstance(hook, CheckInvalidValuesHook)]
    assert len(guard.pending) == 1  # the last step's flags are not read yet


@pytest.mark.parametrize(
    'make',
    [
        lambda params: LARS(params, lr=0.1, weight_decay=1e-5),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=True),
        lambda params: torch.optim.AdamW(params, lr=0.1),
    ],
)
def test_optimizers(make, gpu):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    with gpu.fake_cuda(model), gpu.Reads() as reads:
        optimizer = make(list(model.parameters()))
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        assert len(optimizer.state) == 6
    assert not reads.seen


@pytest.mark.parametrize(
    'function, kind',
    [
        (lambda x: x.sum().item(), 'item'),
        (lambda x: bool(x[0] > 0), 'item'),
        (lambda x: x.tolist(), 'tolist'),
        (lambda x: x.cpu(), 'copy'),
        (lambda x: x.new_tensor([1.0, 2.0]), 'copy'),
        (lambda x: torch.zeros(3).to(x), 'copy'),
        (lambda x: torch.zeros(3).copy_(x), 'copy'),
        (lambda x: x[[2, 1, 0]], 'copy'),
        (lambda x: x[torch.arange(2)], 'copy'),
        (lambda x: x.__setitem__(torch.arange(2), x[:2]), 'copy'),
        (lambda x: torch.cuda.Event().synchronize(), 'event'),
    ],
)
def test_waiting_is_noticed(function, kind, gpu):
    with gpu.fake_cuda(), gpu.Reads() as reads:
        function(torch.ones(3, device='cuda'))
    assert reads.seen == {kind: 1}


@pytest.mark.parametrize(
    'function',
    [
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x.unique(),
        lambda x: torch.bincount(x.long()),
        lambda x: x + torch.zeros(3),
        lambda x: x @ torch.zeros(3),
    ],
)
def test_mixed_devices_and_unknown_shapes_are_errors(function, gpu):
    errors = (DynamicOutputShapeException, RuntimeError)
    with gpu.fake_cuda(), gpu.Reads(), pytest.raises(errors, match='device|aten'):
        function(torch.ones(3, device='cuda'))


def test_what_waits_for_nothing(gpu):
    with gpu.fake_cuda(), gpu.Reads() as reads:
        x = torch.ones(4, 4, device='cuda')
        torch.zeros(4).to('cuda', non_blocking=True) + x
        torch.empty(4, 4, pin_memory=True).copy_(x, non_blocking=True)
        torch.arange(4).sum().item()
    assert not reads.seen


@each_algorithm(variants=True, labelled=True)
def test_backward_is_that_of_the_engine(algorithm, module):
    model, batch = tiny_model(algorithm), joined_batch(algorithm, number=2)
    loss = sum(model(*batch, mode='loss').values())
    loss.backward(retain_graph=True)
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    module.backward(loss)
    for name, p in model.named_parameters():
        assert (p.grad is None) == (grads[name] is None), name
        if p.grad is not None:
            scale = 1e-5 * grads[name].abs().max().item()  # sums in another order
            torch.testing.assert_close(p.grad, grads[name], rtol=0, atol=scale, msg=name)


def test_modules_are_given_back(gpu):
    model = tiny_model()
    state = model.state_dict()
    with gpu.fake_cuda(model):
        assert all(p.is_cuda for p in model.parameters())
        assert model.data_preprocessor.device.type == 'cuda'
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.data_preprocessor.device.type == 'cpu'
