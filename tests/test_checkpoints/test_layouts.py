# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Trainings of other code: the backbone is found without a prefix, and computes the same."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.registry import MODELS, DefaultScope

from mmdense.checkpoints import convert_checkpoint, recognise, self_sup_pretrained
from mmdense.checkpoints.dialects import DIALECTS
from mmdense.checkpoints.layouts import LAYOUTS as KNOWN
from mmdense.utils.errors import CheckpointError

HEAD = {'0.weight': torch.zeros(4, 4), '0.bias': torch.zeros(4)}
DINO_HEAD = {'mlp.0.weight': torch.zeros(4, 4), 'last_layer.weight_g': torch.zeros(4, 1)}
LINEAR = {'weight': torch.zeros(4, 4), 'bias': torch.zeros(4)}


def put(**parts):
    """Join dicts of tensors; '__' in a name of one is a dot."""
    return {
        f'{part.replace("__", ".")}.{key}': value
        for part, tensors in parts.items()
        for key, value in tensors.items()
    }


@pytest.fixture(scope='module')
def networks():
    """Build the network to be taken, a second one with other weights, and an image."""
    torch.manual_seed(0)
    pair = [torchvision.models.resnet18() for _ in range(2)]
    for network in pair:
        network.fc = torch.nn.Identity()
        network.train()(torch.randn(2, 3, 32, 32))  # statistics of its own
        network.eval()
    return pair


def children(network):
    return torch.nn.Sequential(*list(network.children())[:-1]).state_dict()


def fc(tensors, head=HEAD):
    return dict(tensors, **put(fc=head))


# a: the backbone's tensors, b: those of the other network, n: the backbone itself
LAYOUTS = {
    'MoCo v2 (query encoder)': lambda a, b, n: dict(
        state_dict=put(module__encoder_q=fc(a), module__encoder_k=fc(b), module__queue=LINEAR)
    ),
    'MoCo v3 (base encoder)': lambda a, b, n: dict(
        arch='resnet18',
        state_dict=put(
            module__base_encoder=fc(a), module__momentum_encoder=fc(b), module__predictor=HEAD
        ),
    ),
    'DINO (teacher)': lambda a, b, n: dict(
        student=put(module__backbone=b, module__head=DINO_HEAD),
        teacher=put(backbone=a, head=DINO_HEAD),
        optimizer=dict(state={0: dict(exp_avg=torch.zeros(2))}),
        dino_loss=dict(center=torch.zeros(1, 4)),
    ),
    'DINO (teacher) of DistributedDataParallel': lambda a, b, n: dict(
        student=put(module__backbone=b, module__head=DINO_HEAD),
        teacher=put(module__backbone=a, module__head=DINO_HEAD),
    ),
    'DINOv2': lambda a, b, n: dict(teacher=put(backbone=a, dino_head=DINO_HEAD)),
    'SimSiam': lambda a, b, n: dict(state_dict=put(module__encoder=fc(a), module__predictor=HEAD)),
    'Barlow Twins': lambda a, b, n: dict(
        epoch=3,
        model=put(
            module__backbone=a, module__projector=HEAD, module__bn=dict(running_mean=torch.ones(4))
        ),
    ),
    'torchvision': lambda a, b, n: a,  # Barlow Twins' resnet50.pth
    'byol-pytorch (online encoder)': lambda a, b, n: put(
        net=fc(a, LINEAR),
        online_encoder__net=fc(a, LINEAR),
        online_encoder__projector=HEAD,
        target_encoder__net=fc(b, LINEAR),
        online_predictor=HEAD,
    ),
    'solo-learn': lambda a, b, n: dict(
        state_dict=put(backbone=a, projector=HEAD, classifier=LINEAR), loops={}, callbacks={}
    ),
    'solo-learn (student)': lambda a, b, n: dict(
        state_dict=put(
            backbone=a,
            momentum_backbone=b,
            projector=HEAD,
            momentum_projector=HEAD,
            predictor=HEAD,
            classifier=LINEAR,
        )
    ),
    'lightly': lambda a, b, n: put(backbone=children(n), projection_head__layers=HEAD),
    'lightly (student)': lambda a, b, n: dict(
        state_dict=put(
            backbone=children(n),
            backbone_momentum=b,
            projection_head__layers=HEAD,
            projection_head_momentum__layers=HEAD,
        )
    ),
    'lightly (teacher)': lambda a, b, n: put(
        student_backbone=b, student_head=HEAD, teacher_backbone=children(n), teacher_head=HEAD
    ),
    'lightly-train': lambda a, b, n: dict(
        state_dict=put(embedding_model__wrapped_model___features=a, projection_head=HEAD)
    ),
    'lightly-train (teacher)': lambda a, b, n: dict(
        state_dict=put(
            teacher_embedding_model__wrapped_model___model=a,
            student_embedding_model__wrapped_model___model=b,
            student_projection_head=HEAD,
            teacher_projection_head=HEAD,
            criterion=dict(center=torch.zeros(1)),
        )
    ),
    'lightly-train (teacher) of DINOv2': lambda a, b, n: dict(
        state_dict=put(
            teacher_embedding_model_wrapper___model=a,
            student_embedding_model_wrapper___model=b,
            teacher_dino_head=HEAD,
        )
    ),
    'lightly-train (query encoder)': lambda a, b, n: dict(
        state_dict=put(
            query_encoder__embedding_model__model_wrapper___features=a,
            key_encoder__embedding_model__model_wrapper___features=b,
        )
    ),
    'an unnamed training': lambda a, b, n: dict(
        state_dict=put(backbone=a, projector=HEAD)  # VICReg's
    ),
    'an unnamed training (student)': lambda a, b, n: dict(
        state_dict=put(model__backbone=a, model__ema_backbone=b, model__predictor=HEAD)
    ),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_training_of_other_code(name, networks, tmp_path, monkeypatch):
    network, other = networks
    a, b = network.state_dict(), other.state_dict()
    torch.save(LAYOUTS[name](a, b, network), tmp_path / 'x.pth')
    lines = []
    monkeypatch.setattr(self_sup_pretrained, 'print_log', lambda text, **_: lines.append(text))
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=str(tmp_path / 'x.pth'))
    model = MODELS.build(dict(type='mmpretrain.ResNet', depth=18, init_cfg=init_cfg))
    model.init_weights()
    model.eval()
    image = torch.randn(1, 3, 64, 64)
    network.avgpool = torch.nn.Identity()
    wanted = network(image).reshape(1, 512, 2, 2)
    torch.testing.assert_close(model(image)[0], wanted, rtol=1e-5, atol=1e-5)
    (line,) = lines
    assert f'(written by {name.partition(" of ")[0]}; ' in line
    converted = convert_checkpoint(str(tmp_path / 'x.pth'), str(tmp_path / 'y.pth'))
    assert '0 missed' in converted
    model.load_state_dict(torch.load(tmp_path / 'y.pth')['state_dict'])


@pytest.mark.parametrize('name', ['DINO (teacher)', 'MoCo v3 (base encoder)'])
def test_vision_transformers_of_trainings(name, require):
    """Their heads are left out, and all else has our names."""
    require('timm')
    from timm.models.vision_transformer import VisionTransformer

    sizes = dict(img_size=32, embed_dim=32, depth=2, num_heads=4, num_classes=0)
    a, b = (VisionTransformer(**sizes).state_dict() for _ in range(2))
    if name.startswith('DINO'):
        content = LAYOUTS[name](a, b, None)
    else:
        networks = [dict(tensors, **put(head=HEAD)) for tensors in (a, b)]
        parts = dict(zip(('module__base_encoder', 'module__momentum_encoder'), networks))
        content = dict(state_dict=put(**parts, module__predictor=HEAD))
    found = recognise(content)
    arch = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=128)
    cfg = dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=32, patch_size=16)
    assert found.writer == name and found.backbone.keys() == MODELS.build(cfg).state_dict().keys()
    assert torch.equal(found.backbone['layers.1.attn.qkv.weight'], a['blocks.1.attn.qkv.weight'])


def test_other_networks_with_a_backbone_are_no_trainings(networks):
    """A segmenter of torchvision has a backbone and a classifier."""
    a = networks[0].state_dict()
    for others in (dict(classifier=HEAD), dict(aux_classifier=HEAD), dict(neck=HEAD, roi=HEAD)):
        with pytest.raises(CheckpointError, match="prefix='backbone'"):
            recognise(put(backbone=a, **others))


@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_in_detectors_and_segmenters(package, networks, tmp_path, require):
    require(package)
    network, other = networks
    content = LAYOUTS['DINO (teacher)'](network.state_dict(), other.state_dict(), network)
    torch.save(content, tmp_path / 'x.pth')
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=str(tmp_path / 'x.pth'))
    with DefaultScope.overwrite_default_scope(package):
        model = MODELS.build(dict(type=f'{package}.ResNet', depth=18, init_cfg=init_cfg))
    model.init_weights()
    for name, value in network.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_the_tables_of_the_docs():
    """They list every training and every package that is known."""
    text = (Path(__file__).parents[2] / 'docs' / 'checkpoints.md').read_text()
    rows = [line.split(' | ') for line in text.splitlines() if line.startswith('| ')]
    written_by = [row[0].strip('| ') for row in rows]
    for source in {re.sub(r' v1| v2$', '', layout.source) for layout in KNOWN}:
        words = set(source.split())
        assert any(words <= set(re.split(r'[,: ]+', name)) for name in written_by), source
    packages = {row[0].strip('| '): set(row[1].strip('| ').split(', ')) for row in rows}
    for network in {dialect.network for dialect in DIALECTS}:
        assert packages[network] == {d.package for d in DIALECTS if d.network == network}
