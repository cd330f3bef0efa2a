# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names, main
from torch import nn

from mmdense.apis import planning
from mmdense.apis.planning.survey import find_backbone
from mmdense.checkpoints import read_checkpoint, recognise
from mmdense.cli import main as main_command
from mmdense.engine import LARS
from mmdense.engine.training import start_from_checkpoint
from mmdense.models import ConvStem, InfoNCEPredictionHead, MoCoV3, MoCoV3ViT, batch_info_nce
from mmdense.models.layers import MomentumEncoder
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""

    def parts(norm):
        norm = dict(norm, type='BN1d') if norm['type'] == 'BN' else norm  # of vectors
        neck, head = networks(64, 16, 32, norm=norm)
        return dict(neck=neck, head=head, total_steps=50)

    return Tiny(
        algorithm='MoCoV3',
        family='momentum',
        parts=parts,
        recipe='mocov3_r50_coco',
        options=[
            'model.neck.in_channels=512',
            'model.neck.hid_channels=64',
            'model.head.predictor.hid_channels=64',
        ],
        health=health_names(global_=PAIRS),
        losses=['loss'],
        collapses=False,  # its last BatchNorm keeps projections apart
        # the keys of each view
        calls=lambda image, patches, seen: 2 * [('all_gather', 3 * 32 * 4)],
    )


def networks(in_channels, hidden, channels, vit=False, temperature=1.0, norm=None):
    """Return the configs of the projector and of the head, as the published code has them."""
    mlp = dict(
        type='mmpretrain.NonLinearNeck',
        hid_channels=hidden,
        out_channels=channels,
        with_bias=False,
        with_last_bias=False,
        with_last_bn_affine=False,
        norm_cfg=norm or dict(type='BN1d'),
    )
    neck = dict(mlp, in_channels=in_channels, num_layers=3 if vit else 2, with_avg_pool=not vit)
    predictor = dict(mlp, in_channels=channels, with_last_bn=vit, with_avg_pool=False)
    return neck, dict(type='InfoNCEPredictionHead', predictor=predictor, temperature=temperature)


def config(**changes):
    neck, head = networks(512, 32, 16)
    backbone = dict(type='mmpretrain.ResNet', depth=18)
    cfg = dict(type='MoCoV3', backbone=backbone, neck=neck, head=head, total_steps=100)
    return dict(cfg, **changes)


ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)


def vit_config(**changes):
    neck, head = networks(32, 32, 16, vit=True, temperature=0.2)
    backbone = dict(type='MoCoV3ViT', arch=ARCH, img_size=64)
    return config(backbone=backbone, neck=neck, head=head, **changes)


def close(ours, theirs, name=None, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=name)


def test_golden_loss(golden):
    g = golden('mocov3_loss')
    queries = [g[name].requires_grad_() for name in ('q1', 'q2')]
    loss = sum(
        2 * float(g['temperature']) * batch_info_nce(q, k, float(g['temperature']))
        for q, k in zip(queries, (g['k2'], g['k1']))
    )
    close(loss, g['loss'])
    for grad, name in zip(torch.autograd.grad(loss, queries), ('q1', 'q2')):
        close(grad, g[f'grad_{name}'])


def contrast_two(rank):
    """Compute the loss of one of two processes."""
    g = read_golden('mocov3_loss_two_processes')
    temperature = float(g['temperature'])
    q = g['q'][rank].requires_grad_()
    loss = 2 * temperature * batch_info_nce(q, g['k'][rank], temperature)
    (grad,) = torch.autograd.grad(loss, q)
    return loss.detach(), grad


def test_golden_loss_of_two_processes(golden, in_processes):
    g = golden('mocov3_loss_two_processes')
    losses, grads = zip(*in_processes(contrast_two))
    close(torch.stack(losses), g['losses'].float())
    close(torch.stack(grads), g['grad_q'])


class Body(nn.Module):
    """The backbone of the goldens: a linear layer and ReLU, on vectors."""

    def __init__(self, rows, columns):
        super().__init__()
        self.body = nn.Linear(columns, rows)

    def forward(self, x):
        return (self.body(x.flatten(1)).relu()[:, :, None, None],)


OUR_NAMES = {
    'predictor.': 'head.predictor.',
    **{f'base_encoder.{head}.': 'neck.' for head in ('fc', 'head')},
    'base_encoder.': 'backbone.',
    **{f'momentum_encoder.{head}.': 'encoder_k.module.1.' for head in ('fc', 'head')},
    'momentum_encoder.': 'encoder_k.module.0.',
}


def our_name(theirs):
    """Return our name of a tensor of the published code."""
    start = next(start for start in OUR_NAMES if theirs.startswith(start))
    rest = theirs[len(start) :]
    if rest[0].isdigit():
        number, kind = rest.split('.')
        rest = f'{("fc", "bn")[int(number) % 3]}{int(number) // 3}.{kind}'
    return OUR_NAMES[start] + rest


def golden_model(state, temperature, momentum):
    """Build the networks whose tensors a golden has; the momentum encoder is a copy."""
    rows, columns = state['backbone.body.weight'].shape
    hidden, channels = state['head.predictor.fc0.weight'].shape
    vit = 'neck.fc2.weight' in state
    neck, head = networks(rows, hidden, channels, vit=vit, temperature=temperature)
    model = MODELS.build(config(neck=dict(neck, with_avg_pool=True), head=head))
    model.backbone = Body(rows, columns)
    model.encoder_k = MomentumEncoder(model.online_network(), momentum, 0.0, 100)
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith('encoder_k.') for name in missing.missing_keys)
    model.encoder_k.initialize(model.online_network())
    model.encoder_k.steps.fill_(1)  # the first update is no copy in the published code
    model.encoder_k._steps = None
    return model


@pytest.mark.parametrize('kind', ['resnet', 'vit'])
def test_golden_steps(golden, kind):
    """Take the published steps, with LARS and with AdamW: losses, weights and statistics of both
    encoders. Rounding is amplified by those of the ResNet: 1-D weights move by 9e-5 when inputs
    move by 6e-8, thus 1e-4."""
    g = golden(f'mocov3_steps_{kind}')
    tolerance = 1e-4 if kind == 'resnet' else 1e-5
    before, after = (
        {our_name(k[len(part) :]): v for k, v in g.items() if k.startswith(part)}
        for part in ('before.', 'after.')
    )
    model = golden_model(before, float(g['temperature']), 0.1)
    trained = [p for name, p in model.named_parameters() if not name.startswith('encoder_k.')]
    decay = float(g['weight_decay'])
    if kind == 'resnet':
        optimizer = LARS(
            trained,
            lr=1.0,
            momentum=float(g['sgd_momentum']),
            weight_decay=decay,
            trust_coefficient=float(g['trust_coefficient']),
        )
    else:
        optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=decay)
    steps = sorted(int(k[len('loss_') :]) for k in g if re.fullmatch(r'loss_\d+', k))
    for step in steps:
        optimizer.param_groups[0]['lr'] = float(g[f'lr_{step}'])
        alpha = 1 - float(g[f'momentum_{step}'])
        model.encoder_k.current_momentum = lambda alpha=alpha: alpha
        (loss,) = model.loss([g[f'x{i}_{step}'][:, :, None, None] for i in (1, 2)]).values()
        close(loss, g[f'loss_{step}'], f'loss {step}', tolerance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = model.state_dict()
    assert len(steps) > 1 and any(name.startswith('encoder_k.') for name in after)
    assert state.keys() - {'encoder_k.steps'} == after.keys()
    for name, value in after.items():
        close(state[name], value, name, tolerance)


def test_golden_momentum(golden):
    g = golden('mocov3_schedules')
    total = int(g['epochs'] * g['iters_per_epoch'])
    model = MODELS.build(config(base_momentum=1 - float(g['momentum'][0]), total_steps=total))
    for step, momentum in enumerate(g['momentum'].tolist()):
        model.encoder_k.steps.fill_(step)
        model.encoder_k._steps = None
        assert 1 - model.encoder_k.current_momentum() == pytest.approx(momentum, abs=1e-7)


def test_golden_positions(golden):
    """The fixed position embeddings, row first."""
    g = golden('mocov3_pos_embed')
    arch = dict(ARCH, embed_dims=int(g['dim']), num_heads=2)
    vit = MODELS.build(dict(type='MoCoV3ViT', arch=arch, img_size=16 * int(g['grid'])))
    vit.init_weights()
    close(vit.pos_embed.data, g['pos_embed'])
    assert not vit.pos_embed.requires_grad


def test_golden_convolutional_stem(golden):
    g = golden('mocov3_conv_stem')
    state = {k[len('before.proj.') :]: v for k, v in g.items() if k.startswith('before.proj.')}
    stem = ConvStem(state['12.weight'].size(0))
    stem.load_state_dict(
        {
            (f'projection.{k[3:]}' if k.startswith('12.') else f'stem.{k}'): v
            for k, v in state.items()
        },
        strict=True,
    )
    tokens, grid = stem(g['x'])
    close(tokens, g['tokens'])
    assert grid == tuple(side // 16 for side in g['x'].shape[2:])


def test_the_stem_is_part_of_a_vit():
    vit = MODELS.build(dict(type='MoCoV3ViT', arch=ARCH, img_size=64, conv_stem=True))
    vit.init_weights()
    assert isinstance(vit.patch_embed, ConvStem)
    assert all(p.requires_grad for p in vit.patch_embed.parameters())
    assert [tuple(m.shape) for m in vit(torch.randn(2, 3, 64, 64))] == [(2, 32)]


def test_vit_is_initialized_as_published():
    vit = MODELS.build(dict(type='MoCoV3ViT', arch=ARCH, img_size=64))
    vit.init_weights()
    projection = vit.patch_embed.projection
    assert not projection.weight.requires_grad and not projection.bias.any()
    bound = (6 / (3 * 16**2 + 32)) ** 0.5
    assert 0.9 * bound < projection.weight.abs().max() <= bound
    qkv = vit.layers[0].attn.qkv.weight
    assert 0.9 * (6 / 64) ** 0.5 < qkv.abs().max() <= (6 / 64) ** 0.5
    assert vit.cls_token.std() < 1e-5


def test_a_vit_gives_maps_but_in_training():
    """Evaluation, figures and transfer need maps, of images of any size."""
    model = MODELS.build(vit_config())
    model.init_weights()
    image = torch.randn(2, 3, 64, 96)
    assert model.train() is model
    assert [tuple(m.shape) for m in model.backbone(image)] == [(2, 32)]
    model.eval()
    assert [tuple(m.shape) for m in model(image, mode='tensor')] == [(2, 32, 4, 6)]


def test_a_vit_trains():
    torch.manual_seed(0)
    model = MODELS.build(vit_config())
    # before init_weights(), as DistributedDataParallel sees it
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.randn(8, 3, 64, 64)
    history = []
    for _ in range(20):
        views = [batch + 0.1 * torch.randn_like(batch) for _ in range(2)]
        (loss,) = model.loss(views).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert used == trained  # or DistributedDataParallel would stop
    assert history[-1] < history[0] / 2, history


@pytest.mark.parametrize('kind', ['resnet', 'vit'])
def test_equals_mmpretrain(kind):
    """State dict, loss and gradients, where mmpretrain computes what the published code does."""
    from mmpretrain.registry import MODELS as MMPRETRAIN

    cfg = config() if kind == 'resnet' else vit_config()
    cfg.pop('total_steps')
    temperature = cfg['head']['temperature']
    loss = dict(type='CrossEntropyLoss', loss_weight=2 * temperature)
    cfg['head'] = dict(cfg['head'], type='MoCoV3Head', loss=loss)
    if kind == 'vit':
        cfg['backbone'] = dict(cfg['backbone'], patch_size=16, stop_grad_conv1=True)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = MMPRETRAIN.build(cfg)
    ours = MODELS.build(dict(cfg, total_steps=100, channels_last=False))
    assert (
        type(ours) is MoCoV3
        and type(ours.head) is InfoNCEPredictionHead
        and type(theirs) is not MoCoV3
    )
    assert (kind == 'vit') == (type(ours.backbone) is MoCoV3ViT)
    theirs.init_weights()
    theirs.momentum_encoder.steps += 1
    state = theirs.state_dict()
    assert any(name.startswith('momentum_encoder.') for name in state)
    ours.load_state_dict(state, strict=True)
    theirs.momentum_encoder.update_parameters = ours.encoder_k.update = lambda model: None
    views = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    for model in (theirs, ours):
        model.train()
        model.result = model(views, mode='loss', data_samples=None)
        sum(model.result.values()).backward()
    close(ours.result['loss'], theirs.result['loss'])
    for name, p in theirs.named_parameters():
        if p.grad is not None:
            largest = (
                p.grad.abs().max().clamp(min=1)
            )  # hundreds for the class token, which begins near 0
            close(ours.get_parameter(name).grad / largest, p.grad / largest, name)


@pytest.mark.parametrize('kind', ['resnet', 'vit'])
def test_files_of_the_authors(kind, tmp_path):
    """The complete algorithm continues from the authors' file, the backbone has our names."""
    cfg = config() if kind == 'resnet' else vit_config()
    model = MODELS.build(cfg)
    state = authors_state(model.state_dict(), 'fc' if kind == 'resnet' else 'head')
    file = dict(epoch=100, arch=kind, state_dict=state, optimizer={}, scaler={})
    torch.save(file, tmp_path / 'file.pth.tar')
    found = recognise(read_checkpoint(tmp_path / 'file.pth.tar'))
    assert (found.writer, found.algorithm_type) == ('MoCo v3 (base encoder)', 'MoCoV3')
    backbone = model.backbone.state_dict()
    assert found.backbone.keys() == backbone.keys()
    assert all(torch.equal(found.backbone[k], backbone[k]) for k in backbone)
    other = MODELS.build(cfg)
    other.load_state_dict(other.as_new_run(found.algorithm), strict=True)
    for name, value in other.state_dict().items():
        if name != 'encoder_k.steps':
            assert torch.equal(value, model.state_dict()[name]), name
    assert int(other.encoder_k.steps) == 1


def authors_state(state, head):
    """Return the tensors of an algorithm under the authors' names."""
    names = [
        ('neck.', f'base_encoder.{head}.'),
        ('backbone.', 'base_encoder.'),
        ('encoder_k.module.1.', f'momentum_encoder.{head}.'),
        ('encoder_k.module.0.', 'momentum_encoder.'),
        ('head.predictor.', 'predictor.'),
    ]
    found = {}
    for name, value in state.items():
        for ours, theirs in names:
            if name.startswith(ours):
                rest = name[len(ours) :]
                match = re.fullmatch(r'(fc|bn)(\d)\.(\w+)', rest)
                if match and not theirs.endswith('encoder.'):
                    rest = f'{3 * int(match[2]) + (match[1] == "bn")}.{match[3]}'
                found[f'module.{theirs}{timm_name(rest)}'] = value.clone()
                break
    return found


def timm_name(name):
    """Return timm's name of a layer of a ViT; that of a ResNet stays."""
    for ours, theirs in (
        ('patch_embed.projection', 'patch_embed.proj'),
        ('ffn.layers.0.0', 'mlp.fc1'),
        ('ffn.layers.1', 'mlp.fc2'),
        (r'^layers\.', 'blocks.'),
        (r'\.ln([12])\.', r'.norm\1.'),
        (r'^ln1\.', 'norm.'),
    ):
        name = re.sub(ours, theirs, name)
    return name


def test_a_vit_is_transferred_as_a_plain_one():
    """Other packages get a network of mmpretrain with the same weights and maps."""
    vit = MODELS.build(dict(type='MoCoV3ViT', arch=ARCH, img_size=64))
    vit.init_weights()
    cfg = dict(type='MoCoV3ViT', arch=ARCH, img_size=64, stop_grad_conv1=True)
    plain = MODELS.build(MoCoV3ViT.transfer_config(cfg))
    plain.load_state_dict(vit.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 64)
    plain.eval()  # returns None
    assert torch.equal(vit.eval()(image)[-1], plain(image)[-1])
    small = MODELS.build(MoCoV3ViT.transfer_config(dict(arch='mocov3-small')))
    assert (small.embed_dims, len(small.layers)) == (384, 12)


def test_a_vit_of_six_heads_is_refused(tmp_path):
    """The shapes of DeiT-S are those of the ViT-S with 12 heads; its positions tell them apart."""
    cfg = dict(type='MoCoV3ViT', arch='deit-small')
    other = MODELS.build(cfg)
    nn.init.normal_(other.pos_embed)
    file = str(tmp_path / 'x.pth')
    torch.save({k: v.half() for k, v in other.state_dict().items()}, file)
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=file)
    own = MODELS.build(dict(cfg, arch='mocov3-small', init_cfg=init_cfg))
    with pytest.raises(CheckpointError, match='does not fit MoCoV3ViT.*a ViT-S with 6 heads'):
        own.init_weights()
    same = MODELS.build(dict(cfg, init_cfg=init_cfg))
    same.init_weights()
    assert torch.equal(same.pos_embed, other.pos_embed.half().float())


def test_a_neck_and_a_head_are_needed():
    for part in ('neck', 'head'):
        with pytest.raises(InputError, match='MoCoV3 needs a neck and a head'):
            MODELS.build(config(**{part: None}))


@pytest.mark.parametrize(
    'path, epochs, base_lr, decay, momentum, low',
    [
        ('configs/mocov3_r50_in1k.py', 100, 0.6, 1e-6, 0.01, 0.2),
        (
            'configs/mocov3/mocov3_resnet50_8xb512-coslr-300e_in1k.py',
            *(300, 0.3, 1e-6, 0.01, 0.2),
        ),
        (
            'configs/mocov3/mocov3_resnet50_8xb512-coslr-1000e_in1k.py',
            *(1000, 0.3, 1.5e-6, 0.004, 0.2),
        ),
        ('configs/mocov3_vit-small_in1k.py', 300, 1.5e-4, 0.1, 0.01, 0.08),
        ('configs/mocov3_vit-base_in1k.py', 300, 1.5e-4, 0.1, 0.01, 0.08),
        ('configs/mocov3_r50_coco.py', 800, 0.6, 1e-6, 0.01, 0.2),
    ],
)
def test_recipe(path, epochs, base_lr, decay, momentum, low):
    """Published settings by network and length."""
    recipe = load_recipe(path)
    vit = 'vit' in path
    assert recipe.train_cfg.max_epochs == epochs and recipe.model.base_momentum == momentum
    optimizer = recipe.optim_wrapper.optimizer
    assert optimizer.type == ('AdamW' if vit else 'mmdense.LARS')
    batch = recipe.auto_scale_lr.base_batch_size
    assert optimizer.lr == pytest.approx(base_lr * batch / 256)
    assert optimizer.weight_decay == decay and 'paramwise_cfg' not in recipe.optim_wrapper
    (schedule,) = recipe.param_scheduler
    assert (schedule.warmup, schedule.start_factor, schedule.eta_min) == (40 if vit else 10, 0, 0)
    assert recipe.model.head.temperature == (0.2 if vit else 1.0)
    for pipeline in recipe.train_pipeline[1].transforms:
        assert pipeline[0].crop_ratio_range[0] == low
        assert pipeline[-1].type == 'RandomFlip'


# ---------------------------------------------------------------- by one command

ASKED = dict(method='mocov3', backbone='vit-small')


@pytest.fixture
def photos(tmp_path):
    """Return a folder of 24 pictures of 96×72 px."""
    rng = np.random.default_rng(0)
    (tmp_path / 'photos').mkdir()
    for i in range(24):
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((96, 72), Image.BICUBIC).save(tmp_path / 'photos' / f'{i:02}.jpg')
    return str(tmp_path / 'photos')


def test_one_command_trains_the_recipes_vit(photos, tmp_path, monkeypatch, capsys):
    """The network, the head and the optimizer are those of the recipe; the patch projection and
    the positions stay as they are initialized."""
    monkeypatch.chdir(tmp_path)
    command = ['pretrain', photos, '--method', 'mocov3', '--backbone', 'vit-small', '--out', 'run']
    try:
        main_command([*command, '--epochs', '1', '--batch-size', '12', '--workers', '0'])
    except SystemExit as end:
        assert not end.code, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert re.search(r"^backbone +vit-small +the recipe's$", printed, re.M), printed
    assert re.search(r'^lr +0.000129904 +0.0024 for 4096 images, by the root', printed, re.M)
    assert not re.search(r'^optimizer ', printed, re.M)
    text = (tmp_path / 'run/config.py').read_text()
    assert 'small/mocov3_vit-small_small.py' in text
    cfg, recipe = Config.fromstring(text, '.py'), load_recipe('configs/mocov3_vit-small_in1k.py')
    assert _plain(cfg.model) == _plain(recipe.model)
    optimizer = dict(
        recipe.optim_wrapper.optimizer, lr=pytest.approx(2.4e-3 * (12 / 4096) ** 0.5, rel=1e-5)
    )
    assert dict(cfg.optim_wrapper.optimizer) == optimizer
    (schedule,) = cfg.param_scheduler
    assert dict(schedule, warmup=40) == recipe.param_scheduler[0] and schedule.warmup == 1
    saved = read_checkpoint('run/epoch_1.pth')['state_dict']
    vit = MODELS.build(cfg.model.backbone)
    vit.init_weights()
    assert vit.layers[0].attn.num_heads == 12
    assert torch.equal(saved['backbone.pos_embed'], vit.pos_embed)
    online, momentum = (
        saved[f'{part}.patch_embed.projection.weight']
        for part in ('backbone', 'encoder_k.module.0')
    )
    assert torch.equal(online, momentum)  # what is trained has left its average behind
    qkv = 'layers.0.attn.qkv.weight'
    assert not torch.equal(saved[f'backbone.{qkv}'], saved[f'encoder_k.module.0.{qkv}'])


def _plain(config):
    """Return a config without the scopes that MMEngine adds."""
    if not isinstance(config, dict):
        return config
    return {key: _plain(value) for key, value in config.items() if key != '_scope_'}


def test_init_fills_the_complete_algorithm_of_a_vit(photos, tmp_path):
    """From the authors' file of their ViT-S, by the line of the config."""
    model = MODELS.build(load_recipe('configs/mocov3_vit-small_in1k.py').model)
    model.init_weights()
    state = {  # a file of half the size
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    theirs = authors_state(state, 'head')
    for name, shape in {
        'module.base_encoder.patch_embed.proj.weight': (384, 3, 16, 16),
        'module.base_encoder.head.6.weight': (256, 4096),
        'module.momentum_encoder.blocks.11.mlp.fc1.weight': (1536, 384),
        'module.momentum_encoder.head.7.running_mean': (256,),
        'module.predictor.3.weight': (256, 4096),
    }.items():
        assert theirs[name].shape == shape, name
    file = str(tmp_path / 'vit-s-300ep.pth.tar')
    torch.save(dict(epoch=300, arch='vit_small', state_dict=theirs, optimizer={}), file)

    plan = planning.make_plan(photos, planning.Options(**ASKED, epochs=1, init=file))
    (row,) = [row for row in plan.settings if row.name == 'init']
    assert row.reason == 'fills the complete algorithm, strictly'
    cfg = Config.fromstring(planning.plan_text(plan, str(tmp_path / 'run'), 'x'), '.py')
    start_from_checkpoint(cfg)
    filled = MODELS.build(cfg.model)
    filled.init_weights()
    found = filled.state_dict()
    assert found.keys() == state.keys()
    for name, value in found.items():
        if name != 'encoder_k.steps':
            assert torch.equal(value, state[name].to(value.dtype)), name


@pytest.mark.parametrize(
    'name, changes',
    [
        ('vit-small', {}),
        ('ViT-S/16', dict(patch_size=16)),
        ('deit_small_patch16_224', dict(patch_size=16)),
        ('vit-base', dict(arch='base')),
        ('vit_b_16', dict(arch='base', patch_size=16)),
        ('deit-tiny', dict(arch='deit-tiny')),
        ('visiontransformer-deit-small', dict(arch='deit-small')),  # of 6 heads
    ],
)
def test_names_of_the_vit(name, changes):
    """Every name of a ViT takes the recipe of the ViT, with the network of that size."""
    method = planning.find_method('mocov3', backbone=name)
    assert method.recipe.model.backbone.type == 'MoCoV3ViT'
    assert find_backbone(name, method.recipe.model.backbone) == changes
    assert (method.base(20_000), method.base(20_001)) == (
        'small/mocov3_vit-small_small.py',
        'mocov3/mocov3_vit-small_in1k.py',
    )


@pytest.mark.parametrize('name', [None, 'resnet50', 'convnext-tiny', 'swintransformer-tiny'])
def test_other_networks_take_the_recipe_of_the_resnet(name):
    method = planning.find_method('mocov3', backbone=name)
    assert method.recipe.model.backbone.type == 'mmpretrain.ResNet'
    assert method.base(100) == 'small/mocov3_r50_small.py'


@pytest.mark.parametrize(
    'name, found',
    [('vit_small_patch16_224', 'small'), ('vit-b', 'base'), ('vit-small/8', None)],
)
def test_published_weights_of_a_vit(name, found):
    plan = SimpleNamespace(options=planning.Options(method='mocov3', backbone=name))
    weights = planning.published_weights(plan)
    assert weights == (found and f'mocov3_vit-{found}-p16_16xb256-coslr-300e_in1k')


def test_the_preset_of_the_vit_is_by_the_rules():
    """What it says of itself: 2,000 images, one GPU of 24 GB, mixed precision; that no other
    setting differs."""
    method = planning.find_method('mocov3', backbone='vit-small')
    # as survey_network() finds at 224 px, which takes long
    network = planning.Network({}, 384, 42_815_104, 117_106_256, attention=True)
    machine = planning.Machine('cuda', '', 1, 24 << 30, 8, 'bfloat16')
    images = planning.Images(dict(data_root='/images', data_prefix=''), 2000, 480)
    rows = planning.derive_settings(
        images, machine, network, method.recipe, planning.Options(**ASKED), method.read_base(2000)
    )
    expected = ('train_dataloader.dataset.', 'default_hooks.pr', 'randomness.')
    amp = {'optim_wrapper.type', 'optim_wrapper.dtype', 'optim_wrapper.loss_scale'}
    changed = {key for row in rows for key in row.config if not key.startswith(expected)}
    assert changed == amp
    for pipeline in method.read_base(2000).train_pipeline[1].transforms:
        assert pipeline[0].crop_ratio_range == (0.08, 1.0)


def read_golden(name):
    """Read a golden where there is no fixture: in a process of its own."""
    import os
    from pathlib import Path

    import numpy as np

    folder = os.environ.get('MMDENSE_GOLDEN') or Path(__file__).parents[1] / 'golden'
    with np.load(Path(folder) / f'{name}.npz') as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}


if __name__ == '__main__':
    main(globals())
