# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Mixed precision on a CPU: bfloat16 in the networks, float32 in all that stays."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from runs import tiny_config
from tiny_algorithms import each_algorithm, joined_batch, one_a_family, tiny_form, tiny_model

from mmdense.apis import planning
from mmdense.engine import AmpOptimWrapper, training
from mmdense.engine.optimizers import amp_optim_wrapper

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is used, not the CPU')
AMP = {'optim_wrapper.type': 'AmpOptimWrapper'}


def wrapper(**arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    return AmpOptimWrapper(optimizer=optimizer, **arguments)


@pytest.fixture
def cpu(monkeypatch):
    """Lets PyTorch report these units of the CPU; None: it is too old to report any."""

    def call(amx, avx512):
        for unit, value in dict(AMX=amx, AVX512_BF16=avx512).items():
            report = None if value is None else lambda value=value: value
            monkeypatch.setattr(torch.cpu, amp_optim_wrapper._UNITS[unit], report, raising=False)

    return call


def merged(*flags, scope='mmdense', **options):
    path = str(tiny_form().config)
    args = training.train_parser().parse_args([path, '--amp', *flags])
    args.cfg_options = options
    cfg = Config.fromfile(path)
    cfg.default_scope = scope
    training.merge_train_arguments(cfg, args)
    return cfg.optim_wrapper


@pytest.mark.parametrize(
    'reported, units',
    [
        ((True, True), 'AMX and AVX512_BF16'),
        ((True, False), 'AMX'),
        ((False, True), 'AVX512_BF16'),
        ((None, True), 'AVX512_BF16'),  # an older PyTorch
    ],
)
def test_a_cpu_that_is_fast(reported, units, cpu):
    cpu(*reported)
    assert amp_optim_wrapper.find_bfloat16_units() == units
    found = merged()
    assert (found.type, found.dtype) == ('AmpOptimWrapper', 'bfloat16')
    assert found.loss_scale == dict(enabled=False)
    # another scope finds MMEngine's own class by the short name
    assert merged(scope='mmseg').type == 'mmdense.AmpOptimWrapper'

    machine = planning.survey_machine()
    assert (machine.device, machine.name, machine.half) == ('cpu', units, 'bfloat16')


@pytest.mark.parametrize(
    'reported, reason',
    [
        ((False, False), 'more slowly than in float32'),
        ((None, None), 'cannot report whether'),
    ],
)
def test_a_cpu_that_is_slow(reported, reason, cpu, monkeypatch):
    cpu(*reported)
    lines = []
    monkeypatch.setattr(amp_optim_wrapper, 'print_log', lambda line, *_: lines.append(line))
    assert planning.survey_machine().half == ''
    with pytest.raises(ValueError, match=f'--amp saves no time here: .*{reason}') as error:
        merged()
    # the remedy of the message; it says what it costs
    option = str(error.value).rsplit(' ', 1)[-1]
    name, value = option.split('=')
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))))
    cfg.merge_from_dict({name: value})
    built = build_optim_wrapper(torch.nn.Linear(2, 2), cfg.optim_wrapper)
    assert isinstance(built, AmpOptimWrapper)
    (line,) = lines
    assert reason in line


@pytest.mark.parametrize(
    'arguments, error, message',
    [
        (dict(dtype='float16'), ValueError, "must be 'bfloat16'"),
        (dict(dtype=torch.float32), ValueError, "must be 'bfloat16'"),
        (dict(use_fsdp=True), ValueError, 'use_fsdp=True needs a GPU'),
        (dict(loss_scale='static'), TypeError, "'static'"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        wrapper(**arguments)


def test_nothing_is_scaled():
    amp = wrapper()
    (parameter,) = amp.optimizer.param_groups[0]['params']
    amp.update_params((parameter * torch.tensor([2.0, 4.0])).sum())
    assert parameter.tolist() == [0.0, -1.0]
    assert amp.loss_scaler.get_scale() == 1
    state = amp.state_dict()
    assert state['loss_scaler'] == {}
    wrapper().load_state_dict(state)


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='no scaler on the CPU')
def test_a_scale_on_request():
    scaled = wrapper(loss_scale=512.0, clip_grad=dict(max_norm=100.0))
    (parameter,) = scaled.optimizer.param_groups[0]['params']
    assert scaled.scale_loss(torch.ones(())) == 1 and scaled.loss_scaler.get_scale() == 512
    scaled.update_params((parameter * torch.tensor([2.0, 4.0])).sum())
    assert parameter.tolist() == [0.0, -1.0]
    assert wrapper(loss_scale=dict(init_scale=8.0)).loss_scaler.get_scale() == 8


@each_algorithm(labelled=True)
def test_what_stays_is_float32(algorithm):
    """The network computes in bfloat16; parameters, gradients, buffers, losses, the optimizer's
    state do not."""
    model, (views, samples) = tiny_model(algorithm), joined_batch(algorithm)
    config = dict(type='mmdense.AmpOptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
    amp = build_optim_wrapper(model, config)
    outputs = []
    first = model.backbone.get_submodule(tiny_form(algorithm).first_layer)
    first.register_forward_hook(lambda _, __, out: outputs.append(out.dtype))
    with amp.optim_context(model):
        losses = model(views, samples, mode='loss')
    assert set(outputs) == {torch.bfloat16}
    amp.update_params(sum(losses.values()))
    state = amp.optimizer.state_dict()['state']
    kept = [*losses.values(), *model.state_dict().values()]
    kept += [v['momentum_buffer'] for v in state.values()]
    kept += [p.grad for p in model.parameters() if p.grad is not None]
    assert {x.dtype for x in kept} <= {torch.float32, torch.int64, torch.bool}
    assert state


@each_algorithm(quick=one_a_family())
def test_exact_resume(algorithm, images, tmp_path):
    """A run in bfloat16 that was stopped in the midst of an epoch is the uninterrupted one."""

    def train(name, **options):
        torch.manual_seed(0)
        Runner.from_cfg(tiny_config(images, tmp_path / name, algorithm, **AMP, **options)).train()
        return torch.load(tmp_path / name / 'iter_8.pth', weights_only=False)

    whole = train('whole')
    torch.manual_seed(1)
    resumed = train('resumed', load_from=str(tmp_path / 'whole' / 'iter_2.pth'), resume=True)
    assert whole['state_dict'].keys() == resumed['state_dict'].keys()
    for name, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][name]), name
    float32 = Runner.from_cfg(tiny_config(images, tmp_path / 'float32', algorithm))
    float32.train()
    other = float32.model.state_dict()
    assert any(not torch.equal(v, other[k]) for k, v in whole['state_dict'].items())
