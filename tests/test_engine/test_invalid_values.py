# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Steps that are not finite: skipped, explained, and not too many of them."""

import re
from functools import partial

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, OPTIMIZERS, TRANSFORMS
from mmengine.runner import Runner
from runs import tiny_config
from tiny_algorithms import algorithms_of, each_algorithm, tiny_form, tiny_forms, tiny_model

from mmdense.engine import CheckInvalidValuesHook
from mmdense.engine.events import read_events
from mmdense.engine.hooks import invalid_values
from mmdense.engine.step_guard import StepGuard
from mmdense.utils.errors import InputError, MMDenseError

NAN, INF = float('nan'), float('inf')


@TRANSFORMS.register_module(force=True)
class PlantNaN:
    """Into a pixel of the images whose names begin so; others become floats."""

    def __init__(self, prefix):
        self.prefix = prefix

    def __call__(self, results):
        results['inputs'] = [view.float() for view in results['inputs']]
        if results['data_samples'].img_path.rsplit('/', 1)[-1].startswith(self.prefix):
            results['inputs'][0][0, 3, 5] = NAN
        return results


@HOOKS.register_module(force=True)
class Plant(Hook):
    """Calls ``plant(model)`` before some iterations, and undoes it after each."""

    def __init__(self, plant, iterations):
        self.plant, self.iterations = plant, iterations

    def before_train_iter(self, runner, *_, **__):
        if runner.iter in self.iterations:
            self.handle = self.plant(runner.model)

    def after_train_iter(self, runner, *_, **__):
        if runner.iter in self.iterations and self.handle is not None:
            self.handle.remove()


@pytest.fixture
def train(images, tmp_path):
    """A run of an algorithm's recipe, tiny: eight steps, a checkpoint after each. What it has
    logged, and what it was ended by; ``train.load(n)`` is its n-th checkpoint."""

    def call(algorithm=None, bad_images=None, plant=None, name='run', **options):
        cfg = tiny_config(
            images,
            tmp_path / name,
            algorithm,
            **{
                'default_hooks.checkpoint.interval': 1,
                'randomness.seed': 1,
                **options,
            },
        )
        if bad_images is not None:
            pipeline = cfg.train_dataloader.dataset.pipeline
            pipeline.append(dict(type='PlantNaN', prefix=bad_images))
        runner = Runner.from_cfg(cfg)
        if plant is not None:
            runner.register_hook(Plant(*plant), 'LOWEST')
        ended = None
        try:
            runner.train()
        except MMDenseError as e:
            ended = str(e)
            assert '\n' not in ended
        call.load = lambda n: torch.load(tmp_path / name / f'iter_{n}.pth', weights_only=False)
        call.saved = lambda: sorted(p.name for p in (tmp_path / name).glob('iter_*.pth'))
        call.events = lambda: read_events(next((tmp_path / name).glob('*/*.log')).parent)
        return next((tmp_path / name).glob('*/*.log')).read_text(), ended

    return call


def skipped(log):
    """Numbers of the iterations whose steps were skipped."""
    return [int(n) for n in re.findall(r'of iteration (\d+)[^\n]*its step is skipped', log)]


def assert_untouched(before, after):
    """By the step between two checkpoints: all but the twin, which follows weights that are good,
    and counts of iterations. Vectors that a forward pass divides by their lengths point where they
    did."""
    unit = {name for form in tiny_forms().values() for name in form.unit}
    for name, value in before['state_dict'].items():
        now = after['state_dict'][name]
        if name in unit:
            torch.testing.assert_close(now, torch.nn.functional.normalize(value, dim=1))
            continue
        assert not now.is_floating_point() or now.isfinite().all(), name
        twin = name.startswith('encoder_k') and not name.endswith(('running_mean', 'running_var'))
        assert twin or torch.equal(now, value), name
    for number, state in before['optimizer']['state'].items():
        for key, value in state.items():
            assert torch.equal(after['optimizer']['state'][number][key], value)


@each_algorithm()
def test_an_image(algorithm, train):
    """It is named, alone, and its steps leave no trace; the run goes on."""
    log, ended = train(algorithm, bad_images='05')
    assert ended is None
    (first, second) = skipped(log)
    assert 1 <= first <= 4 < second <= 8  # once an epoch
    events = [event for event in train.events() if event['kind'] == 'skipped_step']
    assert [event['iteration'] for event in events] == [first, second]
    for event in events:
        assert event['cause'] == 'loss' and event['level'] == 'WARNING'
        assert [path[-7:] for path in event['images']] == ['/05.jpg']
    for line in re.findall('.*NaN or Inf in the loss.*', log):
        assert 'images that hold NaN or Inf as they enter the model' in line
        layer = tiny_form(algorithm).first_layer.split('.')[0]  # or a part of it
        assert re.search(rf'the output of (detector\.)?backbone\.{layer}', line)
        assert re.fullmatch(r'\S*/05\.jpg', line.split('Images: ')[1])
    if first > 1:
        assert_untouched(train.load(first - 1), train.load(first))
    assert_untouched(train.load(second - 1), train.load(second))
    with pytest.raises(AssertionError):  # by others it is not
        good = next(n for n in range(2, 9) if n not in (first, second))
        assert_untouched(train.load(good - 1), train.load(good))


@each_algorithm(quick=[tiny_form().algorithm, *algorithms_of('momentum')])
def test_good_steps_are_as_they_would_be(algorithm, train):
    train(algorithm)
    with_hook = train.load(8)
    train(algorithm, name='without', **{'default_hooks.invalid_values': None})
    for name, value in train.load(8)['state_dict'].items():
        assert torch.equal(with_hook['state_dict'][name], value), name


@OPTIMIZERS.register_module(force=True)
class CallsItsBase(torch.optim.SGD):
    """PyTorch calls its step hooks twice."""

    def step(self, closure=None):
        return super().step(closure)


@OPTIMIZERS.register_module(force=True)
class CallsNoHooks(torch.optim.SGD):
    """PyTorch 2.1 marks classes so once a model was compiled: it never calls their step hooks."""

    @torch.no_grad()
    def step(self, closure=None):
        return torch.optim.SGD.step.__wrapped__(self, closure)

    step.hooked = True


@pytest.mark.parametrize('optimizer', ['SGD', 'CallsItsBase', 'CallsNoHooks', 'mmdense.LARS'])
def test_gradients_after_a_compiled_model(optimizer, train):
    """Whatever PyTorch makes of its own step hooks, a NaN does not reach the weights."""
    model = torch.nn.Linear(2, 2)
    fitted = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.compile(model, backend='eager')(torch.ones(1, 2)).sum().backward()
    fitted.step()

    def plant(model):
        def spoil(module, args, output):
            output[-1].register_hook(lambda grad: grad * NAN)

        return model.backbone.register_forward_hook(spoil)

    options = {'optim_wrapper.optimizer': dict(_delete_=True, type=optimizer, lr=0.1, momentum=0.9)}
    log, ended = train(plant=(plant, [3]), **options)
    assert ended is None and skipped(log) == [4]
    assert_untouched(train.load(3), train.load(4))
    with pytest.raises(AssertionError):
        assert_untouched(train.load(4), train.load(5))
    assert 'has been overridden' not in log


@pytest.mark.parametrize('schedule', [False, True])
def test_the_optimizer_is_given_back(schedule):
    """Its step is its own again, also where a schedule of PyTorch has replaced it."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    if schedule:
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    calls, before = [], optimizer.step
    guard = StepGuard(optimizer, lambda _: calls.append(1), lambda _: calls.append(2))
    other = StepGuard(optimizer, lambda _: calls.append(3))
    optimizer.step()
    assert calls == [3, 1, 2]
    guard.remove()
    optimizer.step()
    assert calls == [3, 1, 2, 3]
    other.remove()
    assert optimizer.step == before
    optimizer.step()
    assert calls == [3, 1, 2, 3]


def test_a_weight(train):
    """No step can mend it: the run ends at once, with its name; no checkpoint holds it."""

    def plant(model):
        model.backbone.layer2[0].conv1.weight.data[0, 0, 0, 0] = NAN

    _, ended = train(plant=(plant, [3]))
    assert 'backbone.layer2.0.conv1.weight holds NaN' in ended and 'iteration 4' in ended
    assert 'the output of backbone.layer2.0.conv1 (Conv2d)' in ended
    assert re.search(r'iter_3\.pth, is good', ended)
    assert train.saved() == ['iter_1.pth', 'iter_2.pth', 'iter_3.pth']
    assert all(v.isfinite().all() for v in train.load(3)['state_dict'].values())


def test_a_weight_after_the_step(train):
    """It is the checkpoint that meets it first; the good one is that before."""

    def plant(model):
        model.backbone.layer2[0].conv1.weight.data[0, 0, 0, 0] = NAN

    class Spoil(Hook):
        priority = 'NORMAL'

        def after_train_iter(self, runner, *_, **__):
            if runner.iter == 3:
                plant(runner.model)

    HOOKS.register_module(module=Spoil, force=True)
    _, ended = train(custom_hooks=[dict(type='Spoil')])
    assert 'conv1.weight holds NaN: no checkpoint is written' in ended
    assert re.search(r'iter_3\.pth, is good', ended)
    assert train.saved() == ['iter_1.pth', 'iter_2.pth', 'iter_3.pth']


@pytest.mark.parametrize('max_in_a_row', [1, 3])
def test_too_many_in_a_row(max_in_a_row, train):
    options = {'default_hooks.invalid_values.max_in_a_row': max_in_a_row}
    log, ended = train(plant=(overflow_of_the_neck, range(2, 9)), **options)
    assert ended.startswith(f'{max_in_a_row} step(s) in a row were not finite')
    assert len(skipped(log)) == max_in_a_row
    assert train.saved()[-1] == f'iter_{max_in_a_row + 1}.pth'
    assert_untouched(train.load(2), train.load(max_in_a_row + 1))


def overflow_of_the_neck(model):
    def multiply(module, args, output):  # beyond float16
        return tuple((value.half() * 6e4 * 6e4).float() for value in output)

    return model.neck.register_forward_hook(multiply)


def test_a_good_step_in_between(train):
    log, ended = train(
        plant=(overflow_of_the_neck, [1, 2, 4, 5, 7]),
        **{'default_hooks.invalid_values.max_in_a_row': 3},
    )
    assert ended is None and skipped(log) == [2, 3, 5, 6, 8]
    # a forward pass that is not planted is finite
    assert log.count('Images:') == 5 and 'gave finite values when it was run once more' not in log


def test_gradients(train):
    """Of a finite loss."""

    def plant(model):
        def overflow(module, args, output):
            output[-1].register_hook(lambda grad: grad * INF)

        return model.backbone.register_forward_hook(overflow)

    log, ended = train(plant=(plant, [4]))
    assert ended is None and skipped(log) == [5]
    assert 'in the gradients of iteration 5' in log
    assert 'the gradient that reaches the output of backbone (ResNet)' in log
    assert len(re.findall(r'\.jpg', log.split('Images:')[1].split('\n')[0])) == 4
    assert_untouched(train.load(4), train.load(5))


@pytest.mark.parametrize(
    'values, finite',
    [
        ([1e30, -1e30, 0.0], True),  # its squares are not
        ([INF, -INF, 0.0], False),
        ([INF, 0.0, 0.0], False),
        ([NAN, 0.0, 0.0], False),
    ],
)
def test_gradients_that_are_large(values, finite):
    assert bool(invalid_values._all_finite([torch.ones(2, 2), torch.tensor(values)])) is finite


def test_the_queue(train):
    """What no module puts out is named too."""

    def plant(model):
        model.queue.keys.data[3, 5] = INF

    _, ended = train(plant=(plant, [3]))
    assert 'queue.keys holds Inf' in ended


def test_accumulated_gradients(train):
    """One bad iteration spoils its step, and only the good ones of it leave statistics."""
    log, ended = train(
        bad_images='05',
        **{
            'optim_wrapper.accumulative_counts': 2,
            'default_hooks.invalid_values.max_in_a_row': 2,
            'param_scheduler.0.end': 2,
        },
    )
    first, second = skipped(log)
    steps = [(n + 1) // 2 * 2 for n in (first, second)]
    assert ended is None or steps[1] - steps[0] == 2
    before, after = train.load(steps[0] - 2) if steps[0] > 2 else None, train.load(steps[0])
    assert all(v.isfinite().all() for v in after['state_dict'].values())
    if before is not None:
        name = 'backbone.conv1.weight'
        assert torch.equal(before['state_dict'][name], after['state_dict'][name])


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='no scaler on the CPU')
class TestScaler:
    """AmpOptimWrapper with PyTorch's gradient scaler of the CPU, where there is no GPU."""

    def options(self, scale):
        return {
            'optim_wrapper.type': 'AmpOptimWrapper',
            'optim_wrapper.dtype': 'bfloat16',
            'optim_wrapper.loss_scale': dict(init_scale=scale),
            'default_hooks.invalid_values.max_in_a_row': 2,
        }

    def test_it_finds_its_scale(self, train):
        """That is no failure, and statistics are kept."""

        def plant(model):
            def steep(module, args, output):
                output[-1].register_hook(lambda grad: grad * 2.0**20)

            return model.backbone.register_forward_hook(steep)

        log, ended = train(plant=(plant, range(9)), **self.options(2.0**127))
        assert ended is None and not skipped(log)
        before, after = (train.load(n)['state_dict'] for n in (1, 2))
        assert torch.equal(before['neck.mlp.0.weight'], after['neck.mlp.0.weight'])
        name = 'backbone.bn1.running_mean'
        assert not torch.equal(before[name], after[name])
        scale = train.load(8)['optimizer']['loss_scaler']['scale']
        assert scale < 2.0**124

    def test_no_scale_helps(self, train):
        def plant(model):
            def overflow(module, args, output):
                output[0].register_hook(lambda grad: grad * INF)

            return model.neck.register_forward_hook(overflow)

        log, ended = train(plant=(plant, range(9)), **self.options(2.0))
        # at 2 and 1 it may be the scale; then at 0.5 and 0.25 it is not
        assert ended.startswith('2 step(s) in a row') and skipped(log) == [2, 3]

    def test_forward_overflow(self, train):
        log, ended = train(plant=(overflow_of_the_neck, [4]), **self.options(2.0))
        neck = type(tiny_model().neck).__name__
        assert ended is None and skipped(log) == [5] and f'the output of neck ({neck})' in log
        assert all(v.isfinite().all() for v in train.load(8)['state_dict'].values())


def test_gradients_under_activation_checkpointing(train):
    def plant(model):
        def overflow(module, args, output):
            if output.requires_grad:
                output.register_hook(lambda grad: grad * INF)

        return model.backbone.layer1[0].conv1.register_forward_hook(overflow)

    log, ended = train(plant=(plant, [4]), **{'model.backbone.with_cp': True})
    assert ended is None and skipped(log) == [5]
    assert 'activation checkpointing hides the module' in log


def test_values_that_are_infinite_by_design(train):
    class WithMask(Hook):
        def before_run(self, runner):
            runner.model.register_buffer('mask', torch.full((3,), -INF))

    HOOKS.register_module(module=WithMask, force=True)
    log, ended = train(custom_hooks=[dict(type='WithMask')])
    assert ended is None and not skipped(log)
    assert train.load(8)['state_dict']['mask'].isinf().all()


def test_it_is_never_saved(tmp_path):
    """Whoever asks for it."""
    hook = CheckInvalidValuesHook()
    runner = type('Runner', (), dict(work_dir=str(tmp_path)))
    hook.before_save_checkpoint(runner, dict(state_dict=dict(a=torch.zeros(2))))
    with pytest.raises(MMDenseError, match='^b holds Inf: no checkpoint is written'):
        hook.before_save_checkpoint(runner, dict(state_dict=dict(b=torch.tensor([0, INF]))))


@pytest.mark.parametrize('value', [0, -1, 1.5, True, None])
def test_bad_arguments(value):
    with pytest.raises(InputError, match='max_in_a_row must be a whole number of at least 1'):
        CheckInvalidValuesHook(max_in_a_row=value)


def test_two_processes(tiny, run_forked, tmp_path):
    """One of them has the image; both skip, and know its name. What communicates in the backward
    pass, as synchronised BatchNorm does, waits for nobody."""
    (tmp_path / 'planted.py').write_text(
        'import torch\n'
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS, TRANSFORMS\n'
        'from mmpretrain.datasets import PackInputs\n\n\n'
        '@TRANSFORMS.register_module()\n'
        'class PlantNaN(PackInputs):\n'
        '    def transform(self, results):\n'
        '        results = super().transform(results)\n'
        '        results["inputs"] = [view.float() for view in results["inputs"]]\n'
        '        if results["data_samples"].img_path.endswith("05.jpg"):\n'
        '            results["inputs"][0][0, 3, 5] = float("nan")\n'
        '        return results\n\n\n'
        'class Reduce(torch.autograd.Function):\n'
        '    @staticmethod\n'
        '    def forward(ctx, x):\n'
        '        return x.clone()\n\n'
        '    @staticmethod\n'
        '    def backward(ctx, grad):\n'
        '        torch.distributed.all_reduce(torch.ones(1))\n'
        '        return grad\n\n\n'
        '@HOOKS.register_module()\n'
        'class CommunicatesBackward(Hook):\n'
        '    def before_train(self, runner):\n'
        '        def add(module, args, output):\n'
        '            return [Reduce.apply(value) for value in output]\n'
        '        runner.model.module.backbone.register_forward_hook(add)\n'
    )
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(tiny_form().config)!r}\n'
        'custom_imports = dict(imports=["planted"])\n'
        'custom_hooks = [dict(type="CommunicatesBackward")]\n'
    )
    options = [
        'train_dataloader.batch_size=2',
        'train_dataloader.dataset.pipeline.2.type=PlantNaN',
        'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.max_keep_ckpts=-1',
    ]
    arguments = [tmp_path / 'config.py', *tiny(*options)[1:]]
    arguments = ['tools/train.py', *arguments, '--launcher=pytorch']
    result = run_forked(*arguments, number=2, path=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:]
    first, second = skipped(next(tiny.work_dir.glob('*/*.log')).read_text())
    assert 1 <= first <= 4 < second <= 8
    load = partial(torch.load, weights_only=False)
    files = [load(tiny.work_dir / f'iter_{n}.pth') for n in (second - 1, second)]
    assert_untouched(*files)
    assert len(re.findall(r'Images: \S*05\.jpg\n', result.stdout)) == 2
