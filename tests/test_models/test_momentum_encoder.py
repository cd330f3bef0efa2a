# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest
import torch
from tiny_algorithms import algorithms, has_momentum_encoder, joined_batch, tiny_model
from torch import nn

from mmdense.models.layers import MomentumEncoder
from mmdense.utils.errors import InputError


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_first_update_copies_then_averages():
    online = network()
    twin = MomentumEncoder(online, momentum=0.1)
    for p in online.parameters():
        p.data.normal_()  # init_weights() comes after the twin was made
    twin.update_parameters(online)
    for a, b in zip(twin.module.parameters(), online.parameters()):
        assert torch.equal(a, b)
    before = [p.clone() for p in twin.module.parameters()]
    for p in online.parameters():
        p.data.normal_()
    twin.update_parameters(online)
    for a, b, p in zip(twin.module.parameters(), before, online.parameters()):
        torch.testing.assert_close(a, 0.9 * b + 0.1 * p)
    assert int(twin.steps) == 2


@pytest.mark.parametrize('algorithm', filter(has_momentum_encoder, algorithms(variants=True)))
def test_the_twin_begins_with_the_initialisation(algorithm):
    """Its backbone may be evaluated before the first step."""
    model = tiny_model(algorithm)
    model.init_weights()

    def same():
        twin = list(model.encoder_k.module.parameters())
        return len(twin) > 50 and all(map(torch.equal, twin, model.online_network().parameters()))

    assert same() and int(model.encoder_k.steps) == 0
    model(*joined_batch(algorithm), mode='loss')
    assert same() and int(model.encoder_k.steps) == 1
    # one that has moved, such as a checkpoint's, stays
    with torch.no_grad():
        for p in model.online_network().parameters():
            p.add_(1)
    model.encoder_k.initialize(model.online_network())
    assert not same()


def test_twin_keeps_its_own_batch_norm_statistics():
    online = network()
    twin = MomentumEncoder(online, momentum=0.5)
    for shift in (0.0, 10.0):
        online(torch.randn(4, 3, 5, 5) + 100)
        twin.update_parameters(online)
        twin(torch.randn(4, 3, 5, 5) + shift)
    ours, theirs = twin.module[1], online[1]
    assert int(ours.num_batches_tracked) == 2
    assert not torch.allclose(ours.running_mean, theirs.running_mean, rtol=0.1)


def test_twin_gets_no_gradient():
    twin = MomentumEncoder(network())
    assert not any(p.requires_grad for p in twin.parameters())


def test_schedule_survives_a_resume():
    online = network()
    twin = MomentumEncoder(online, momentum=0.5, end_momentum=0.0, total_steps=10)
    for _ in range(4):
        twin.update_parameters(online)
    resumed = MomentumEncoder(online, momentum=0.5, end_momentum=0.0, total_steps=10)
    resumed.load_state_dict(twin.state_dict())
    assert resumed.current_momentum() == twin.current_momentum() != 0.5


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(end_momentum='x'), r'end_momentum must be in \[0, 1\)'),
        (dict(end_momentum=-0.1), r'end_momentum must be in \[0, 1\)'),
        (dict(end_momentum=1.0), r'end_momentum must be in \[0, 1\)'),
        (dict(end_momentum=0.0, total_steps=-5), 'total_steps must be a whole number'),
        (dict(end_momentum=0.0, total_steps=0), 'total_steps must be a whole number'),
    ],
)
def test_schedule_is_checked(options, message):
    with pytest.raises(InputError, match=message):
        MomentumEncoder(network(), **options)


def test_the_schedule_stays_at_its_end():
    twin = MomentumEncoder(network(), momentum=0.5, end_momentum=0.0, total_steps=2)
    for _ in range(5):
        twin.update_parameters(network())
    assert twin.current_momentum() == pytest.approx(0)


@pytest.mark.parametrize('momentum', [0, 1, -0.1, 1.5])
def test_momentum_is_checked(momentum):
    with pytest.raises(InputError, match=r'momentum must be in \(0, 1\)'):
        MomentumEncoder(network(), momentum=momentum)
