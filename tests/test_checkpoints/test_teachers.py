# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Files of teachers are known by their content, fill the network, and compute what its own code
computes. Released ones have these names and shapes; the weights are random."""

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from mmdense.checkpoints import SelfSupPretrained
from mmdense.models import FrozenTeacher
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError
from mmdense.utils.imagenet import CLIP_PIXELS, IMAGENET_PIXELS

pytestmark = pytest.mark.usefixtures('mmdense_scope')

TINY = dict(embed_dim=192, depth=12, num_heads=3, num_classes=0)


def vary(network):
    """Give a network random weights, none of them 0 or 1."""
    torch.manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.05 * torch.randn_like(value).abs() + 0.02)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)
    return network.eval()


def timm_vit(img_size=64, **settings):
    from timm.models.vision_transformer import VisionTransformer

    return vary(VisionTransformer(img_size=img_size, **{**TINY, **settings}))


def read(tmp_path, content):
    """Return the teacher of a file, filled."""
    torch.save(content, tmp_path / 'teacher.pth')
    teacher = FrozenTeacher(checkpoint=str(tmp_path / 'teacher.pth'))
    teacher.init_weights()
    return teacher


@torch.no_grad()
def compare(teacher, tokens, image, extra=1):
    """Compare the teacher's map with tokens N×(extra + L)×C of its own code."""
    (found,) = teacher.backbone(image)  # of the same pixels
    torch.testing.assert_close(found, tokens, rtol=1e-4, atol=1e-4)
    assert teacher.backbone.num_extra_tokens == extra
    side = round((tokens.size(1) - extra) ** 0.5)
    (standardized,), token = teacher(image)
    assert standardized.shape == (len(image), tokens.size(2), side, side)
    assert token.shape == (len(image), tokens.size(2))


def image(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('kind', ['DINO', 'DINO training', 'MAE', 'MoCo v3', 'timm'])
def test_vision_transformers(kind, tmp_path, require):
    require('timm')
    network = timm_vit()
    tensors, other = network.state_dict(), {'last_layer.weight_v': torch.zeros(2, 2)}
    content = {
        'DINO': tensors,
        'DINO training': dict(
            student={f'module.backbone.{k}': torch.zeros_like(v) for k, v in tensors.items()},
            teacher={
                **{f'backbone.{k}': v for k, v in tensors.items()},
                **{f'head.{k}': v for k, v in other.items()},
            },
        ),
        'MAE': dict(model=tensors),
        'MoCo v3': dict(
            state_dict={
                **{f'module.base_encoder.{k}': v for k, v in tensors.items()},
                **{f'module.momentum_encoder.{k}': v for k, v in tensors.items()},
                'module.predictor.0.weight': torch.zeros(2, 2),
            }
        ),
        'timm': dict(tensors, **{'head.weight': torch.zeros(5, 192), 'head.bias': torch.zeros(5)}),
    }[kind]
    teacher = read(tmp_path, content)
    with torch.no_grad():
        compare(teacher, network.forward_features(image()), image())


@pytest.mark.parametrize('registers, names', [(0, 'meta'), (4, 'meta'), (4, 'timm')])
def test_dinov2(registers, names, tmp_path, require):
    """In the names of its authors, whose positions have one of the class token, and of timm."""
    require('timm')
    settings = dict(img_size=70, patch_size=14, init_values=0.1, reg_tokens=registers)
    network = timm_vit(**settings, no_embed_class=names == 'timm' or registers > 0)
    tensors = network.state_dict()
    if names == 'meta' and registers:  # timm's has no position of the class token
        tensors['register_tokens'] = tensors.pop('reg_token')
        first = torch.zeros(1, 1, 192)
        tensors['pos_embed'] = torch.cat([first, tensors['pos_embed']], 1)
    if names == 'meta':
        tensors['mask_token'] = torch.zeros(1, 192)
    teacher = read(tmp_path, tensors)
    with torch.no_grad():
        wanted = network.forward_features(image(70))
    compare(teacher, wanted, image(70), 1 + registers)


class CLIPBlock(nn.Module):
    """CLIP's residual attention block, written out."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module('c_fc', nn.Linear(width, 4 * width))
        self.mlp.add_module('c_proj', nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        y = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(y * torch.sigmoid(1.702 * y))


class CLIPTower(nn.Module):
    """CLIP's visual tower with the names of its released code, written out."""

    def __init__(self, size=64, width=192, heads=3, depth=12, patch=16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(CLIPBlock(width, heads) for _ in range(depth))
        self.proj = nn.Parameter(torch.zeros(width, 8))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x)


@pytest.mark.parametrize('whole', [True, False])
def test_clip(whole, tmp_path):
    """Take the visual tower of a complete model, or the tower alone."""
    network = vary(CLIPTower())
    tensors = network.state_dict()
    if whole:
        tensors = {f'visual.{k}': v for k, v in tensors.items()}
        tensors['transformer.resblocks.0.ln_1.weight'] = torch.zeros(4)
        tensors.update({'logit_scale': torch.zeros(()), 'text_projection': torch.zeros(4, 4)})
    teacher = read(tmp_path, tensors)
    with torch.no_grad():
        compare(teacher, network(image()), image())
    pixels = SelfSupPretrained(str(tmp_path / 'teacher.pth')).describe_network()
    assert (pixels['mean'], pixels['std']) == (CLIP_PIXELS['mean'], CLIP_PIXELS['std'])


def test_clip_of_transformers(tmp_path):
    network = vary(CLIPTower())
    tensors = {}
    for name, value in network.state_dict().items():
        for theirs, other in (
            ('transformer.resblocks.', 'encoder.layers.'),
            ('class_embedding', 'embeddings.class_embedding'),
            ('positional_embedding', 'embeddings.position_embedding.weight'),
            ('conv1.', 'embeddings.patch_embedding.'),
            ('ln_pre.', 'pre_layrnorm.'),
            ('ln_post.', 'post_layernorm.'),
            ('.ln_1.', '.layer_norm1.'),
            ('.ln_2.', '.layer_norm2.'),
            ('.c_fc.', '.fc1.'),
            ('.c_proj.', '.fc2.'),
            ('.attn.', '.self_attn.'),
        ):
            name = name.replace(theirs, other)
        if 'in_proj_' in name:
            for part, rows in zip('qkv', value.chunk(3)):
                tensors[f'vision_model.{name.replace("in_proj_", f"{part}_proj.")}'] = rows
        elif name != 'proj':
            tensors[f'vision_model.{name}'] = value
    tensors['vision_model.embeddings.position_ids'] = torch.arange(17)[None]
    tensors['visual_projection.weight'] = torch.zeros(8, 192)
    tensors['text_model.final_layer_norm.weight'] = torch.zeros(8)
    torch.save(tensors, tmp_path / 'teacher.pth')
    described = SelfSupPretrained(str(tmp_path / 'teacher.pth')).describe_network()
    act = dict(layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')))
    backbone = dict(described.pop('backbone'), **act)
    teacher = FrozenTeacher(backbone, str(tmp_path / 'teacher.pth'), **described)
    teacher.init_weights()
    with torch.no_grad():
        compare(teacher, network(image()), image())


@pytest.mark.parametrize(
    'name, arch, size, patch, registers',
    [
        ('vit_small_patch14_dinov2', 'deit-s', 518, 14, 0),
        ('vit_base_patch14_reg4_dinov2', 'b', 518, 14, 4),
        ('vit_base_patch16_224', 'b', 224, 16, 0),
        ('vit_base_patch32_clip_224', 'b', 224, 32, 0),
    ],
)
def test_full_sizes(name, arch, size, patch, registers, require):
    """Recognise the released networks by names and shapes."""
    require('timm')
    import timm

    from mmdense.checkpoints import recognise
    from mmdense.checkpoints.networks import describe_network

    tensors = timm.create_model(name, num_classes=0).state_dict()
    described = describe_network(recognise(tensors), name)
    config = described['backbone']
    assert config['arch'] == arch
    assert (config['img_size'], config['patch_size']) == (size, patch)
    assert config.get('num_registers', 0) == registers
    pixels = CLIP_PIXELS if 'clip' in name else IMAGENET_PIXELS
    assert described['mean'] == pixels['mean']


def test_efficientnet_lite0(tmp_path, require):
    """Compute what timm's port of the same weights computes, in the names of lukemelas's code."""
    require('timm')
    import timm

    network = vary(timm.create_model('tf_efficientnet_lite0'))
    tensors, block, last = {}, -1, None
    for name, value in network.state_dict().items():
        *path, layer, kind = name.split('.')
        if path:
            block += path != last
            last = path
            depthwise_first = path == ['blocks', '0', '0']
            names = dict(conv_pw='_expand_conv', bn1='_bn0', conv_dw='_depthwise_conv', bn2='_bn1')
            names.update(conv_pwl='_project_conv', bn3='_bn2')
            if depthwise_first:
                names.update(conv_pw='_project_conv', bn1='_bn1', bn2='_bn2')
            tensors[f'_blocks.{block}.{names[layer]}.{kind}'] = value
        else:
            names = dict(conv_stem='_conv_stem', bn1='_bn0', conv_head='_conv_head', bn2='_bn1')
            tensors[f'{names.get(layer, "_fc")}.{kind}'] = value
    teacher = read(tmp_path, tensors)
    with torch.no_grad():
        wanted = network.forward_features(image(96))
        torch.testing.assert_close(teacher.backbone(image(96))[-1], wanted, rtol=1e-4, atol=1e-4)
    # its pixels are (x − 127) / 128
    mean, std = (torch.tensor(IMAGENET_PIXELS[k]).view(3, 1, 1) for k in ('mean', 'std'))
    pixels = image(32) * std + mean
    torch.testing.assert_close(teacher.prepare(image(32)), (pixels - 127) / 128)


def test_a_run_of_mmpretrain(tmp_path):
    """Take the pixels of the run's config."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(dict(type='ResNet', depth=18))
    config = (
        "model = dict(type='ImageClassifier', backbone=dict(type='mmpretrain.ResNet', depth=18), "
        'data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=False))'
    )
    state = {f'backbone.{k}': v for k, v in network.state_dict().items()}
    state['head.fc.weight'] = torch.zeros(2, 512)
    torch.save(dict(meta=dict(cfg=config), state_dict=state), tmp_path / 'teacher.pth')
    described = SelfSupPretrained(str(tmp_path / 'teacher.pth')).describe_network()
    assert described['backbone']['depth'] == 18
    assert (described['mean'], described['std']) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert described['to_rgb'] is False


def test_a_network_of_timm_by_its_config(tmp_path, require):
    require('timm')
    import timm

    network = vary(timm.create_model('resnet18', features_only=True))
    torch.save(network.state_dict(), tmp_path / 'teacher.pth')
    backbone = dict(type='mmpretrain.TIMMBackbone', model_name='resnet18', features_only=True)
    teacher = FrozenTeacher(backbone, str(tmp_path / 'teacher.pth'))
    teacher.init_weights()
    with torch.no_grad():
        torch.testing.assert_close(teacher.backbone(image())[-1], network(image())[-1])


def test_an_unknown_network_is_one_line(tmp_path):
    torch.save({'a.weight': torch.zeros(2, 2), 'b.c.weight': torch.zeros(3)}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='TIMMBackbone|prefix') as error:
        FrozenTeacher(checkpoint=str(tmp_path / 'x.pth'))
    assert '\n' not in str(error.value)
