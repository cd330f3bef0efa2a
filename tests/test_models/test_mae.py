# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from PIL import Image
from recipes import REPO, load_recipe
from tiny_algorithms import RANK, STD, Tiny, health_names
from torch import nn

from mmdense.checkpoints import SelfSupPretrained, recognise
from mmdense.cli import main
from mmdense.models import MAE, MAEViT
from mmdense.models.backbones.mae_vit import hide_patches
from mmdense.models.utils import sincos_positions
from mmdense.registry import MODELS, PARAM_SCHEDULERS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    decoder = [
        'model.neck.decoder_embed_dim=32',
        'model.neck.decoder_depth=1',
        'model.neck.decoder_num_heads=2',
    ]
    return Tiny(
        algorithm='MAE',
        family='masked',
        parts=lambda norm: decoder_and_head(32, 1, 2),
        backbone=dict(type='MAEViT', arch=arch, img_size=96, patch_size=16),
        small_backbone=['model.backbone.arch=deit-tiny', 'model.backbone.img_size=64'],
        first_layer='patch_embed.projection',
        backbone_name='vision transformer',
        probed='backbone',
        fix=hide_by_pixel,
        recipe='mae_vit-base_coco',
        options=decoder,
        health=health_names(global_=(STD, RANK), dense=(STD, RANK)),
        losses=['loss'],
        collapses=False,
        own=['position_embedding'],
    )


def decoder_and_head(channels, depth, heads, mlp_ratio=4, norm_pix=True):
    """Return the configs of the decoder and of the head."""
    loss = dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2')
    return dict(
        neck=dict(
            type='mmpretrain.MAEPretrainDecoder',
            decoder_embed_dim=channels,
            decoder_depth=depth,
            decoder_num_heads=heads,
            mlp_ratio=mlp_ratio,
        ),
        head=dict(type='mmpretrain.MAEPretrainHead', norm_pix=norm_pix, loss=loss),
    )


def hide_by_pixel(model):
    """Hide the patches whose first pixels have the largest values: the same in another process,
    in another batch, and in another precision."""
    patch = model.backbone.patch_embed.projection.stride[0]
    model.backbone.draw_noise = lambda images: images[:, 0, ::patch, ::patch].flatten(1)


def config(size=32, channels=3, **changes):
    """Return the config of a tiny MAE."""
    arch = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
    backbone = dict(type='MAEViT', arch=arch, img_size=size, patch_size=8, in_channels=channels)
    return dict(dict(type='MAE', backbone=backbone, **decoder_and_head(8, 1, 2)), **changes)


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


# ---------------------------------------------------------------- the published code


def golden_model(g):
    """Build the model of a golden, with the published weights, by the names of the authors."""
    dim = int(g['embed_dim'])
    arch = dict(
        embed_dims=dim,
        num_layers=int(g['depth']),
        num_heads=int(g['num_heads']),
        feedforward_channels=int(dim * float(g['mlp_ratio'])),
    )
    backbone = dict(
        type='MAEViT',
        arch=arch,
        img_size=int(g['img_size']),
        patch_size=int(g['patch_size']),
        mask_ratio=float(g['mask_ratio']),
        norm_cfg=dict(type='LN', eps=float(g['ln_eps'])),
    )
    decoder = [int(g[f'decoder_{name}']) for name in ('embed_dim', 'depth', 'num_heads')]
    parts = decoder_and_head(*decoder, float(g['mlp_ratio']), bool(g['norm_pix_loss']))
    model = MODELS.build(dict(type='MAE', backbone=backbone, **parts))
    found = recognise(dict(model=under(g, 'w.'), epoch=3))
    assert (found.source, found.algorithm_type) == ('MAE', 'MAE')
    model.load_state_dict(found.algorithm, strict=True)
    return model


def under(g, prefix):
    return {name[len(prefix) :]: value for name, value in g.items() if name.startswith(prefix)}


def test_golden_forward(golden):
    """Latent, prediction, mask, loss and gradients of the published weights and noise, through
    loss() itself."""
    g = golden('mae_forward')
    model, seen = golden_model(g), {}
    model.backbone.draw_noise = lambda images: g['noise']
    model.backbone.register_forward_hook(lambda _, __, out: seen.update(encoded=out))
    model.neck.register_forward_hook(lambda _, __, out: seen.update(pred=out))
    losses = model(g['images'], mode='loss')
    assert losses.keys() == {'loss'}
    close(losses['loss'], g['loss'])
    latent, mask, places = seen['encoded']
    close(latent, g['latent'])
    close(seen['pred'], g['pred'])
    assert torch.equal(mask, g['mask']) and torch.equal(places, g['ids_restore'])
    losses['loss'].backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    renamed = recognise(dict(model={**under(g, 'w.'), **under(g, 'grad.')})).algorithm
    names = dict(zip(under(g, 'w.'), renamed))  # in the same order
    for theirs, grad in under(g, 'grad.').items():
        close(grads[names[theirs]], grad, theirs)


def test_golden_mask_and_loss(golden):
    """Masking, patches and the loss with normalised targets and without."""
    g = golden('mae_mask_and_loss')
    kept, mask, places = hide_patches(g['tokens'], g['noise'], float(g['mask_ratio']))
    close(kept, g['kept'])
    assert torch.equal(mask, g['mask']) and torch.equal(places, g['ids_restore'])
    for norm_pix, name in ((True, 'loss_norm_pix'), (False, 'loss_raw')):
        head = dict(
            decoder_and_head(8, 1, 2, norm_pix=norm_pix)['head'],
            patch_size=int(g['patch_size']),
            in_channels=g['images'].size(1),
        )
        head = MODELS.build(head)
        close(head.patchify(g['images']), g['patches'])
        close(head.loss(g['pred'], g['images'], g['mask']), g[name])


def test_golden_positions(golden):
    g = golden('mae_pos_embed')
    positions = sincos_positions(int(g['grid']), int(g['dim']))
    close(positions, g['pos_embed'][None])


def test_golden_resized_positions(golden, tmp_path):
    """By SelfSupPretrained, into a model for larger images."""
    g = golden('mae_pos_interpolation')
    dim, grid = g['pos_embed'].size(2), round((g['pos_embed'].size(1) - 1) ** 0.5)
    arch = dict(embed_dims=dim, num_layers=1, num_heads=1, feedforward_channels=dim)

    def build(grid, **more):
        backbone = dict(arch=arch, img_size=4 * grid, patch_size=4)
        return MODELS.build(dict(type='MAEViT', **backbone, **more))

    state = dict(build(grid).state_dict(), pos_embed=g['pos_embed'])
    torch.save(state, tmp_path / 'x.pth')
    fill = dict(type='SelfSupPretrained', checkpoint=str(tmp_path / 'x.pth'))
    model = build(int(g['new_grid']), init_cfg=fill)
    model.init_weights()
    close(model.pos_embed, g['interpolated'])
    for name, value in model.state_dict().items():
        assert name == 'pos_embed' or torch.equal(value, state[name]), name
    # and in forward, for an image of that size
    small = build(grid)
    small.load_state_dict(state)
    image = torch.randn(1, 3, 4 * int(g['new_grid']), 4 * int(g['new_grid']))
    for backbone in (small, model):
        backbone.eval()
    close(small(image)[-1], model(image)[-1])


def test_golden_learning_rate(golden):
    """By the schedule of the recipe."""
    g = golden('mae_lr_schedule')
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=float(g['base_lr']))
    (schedule,) = load_recipe('configs/mae_vit-base_in1k.py').param_scheduler
    changes = dict(warmup=int(g['warmup_epochs']), eta_min=float(g['min_lr']))
    schedule = PARAM_SCHEDULERS.build(
        dict(schedule, **changes, end=int(g['epochs'])),
        default_args=dict(optimizer=optimizer, epoch_length=int(g['iters_per_epoch'])),
    )
    for expected in g['lr'].tolist():
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected, rel=1e-6, abs=1e-12)
        optimizer.step()
        schedule.step()


# ---------------------------------------------------------------- mmpretrain's


@pytest.mark.parametrize('views', ['tensor', 'list'])
def test_equals_mmpretrain(views):
    """The algorithm is mmpretrain's: state dict, losses and gradients, by the same seed."""
    from mmpretrain.registry import MODELS as MMPRETRAIN

    cfg = config()
    cfg['backbone'].pop('in_channels')
    cfg['neck'].update(num_patches=16, patch_size=8, embed_dim=16)
    cfg['head'].update(patch_size=8)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = MMPRETRAIN.build(cfg)
    ours = MODELS.build(config(channels_last=False))
    assert type(ours) is MAE and type(theirs) is not MAE and isinstance(ours, type(theirs))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(4, 3, 32, 32)
    for model in (theirs, ours):
        torch.manual_seed(3)
        model.result = model([images] if views == 'list' and model is ours else images, mode='loss')
        sum(model.result.values()).backward()
    assert ours.result.keys() == theirs.result.keys()
    assert torch.equal(ours.result['loss'], theirs.result['loss'])
    for name, p in theirs.named_parameters():
        grad = ours.get_parameter(name).grad
        assert (grad is None) == (p.grad is None) == (not p.requires_grad), name
        assert grad is None or torch.equal(grad, p.grad), name


SHIPPED = sorted((Path(mmpretrain.__file__).parent / '.mim/configs/mae').glob('mae_*.py'))
SHIPPED_DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_train(path, images, tmp_path):
    """mmpretrain's own config with one change, ``type='mmdense.MAE'``; what else is changed makes
    it small, and takes a folder of images for ImageNet."""
    hivit = 'hivit' in path.stem
    cfg = Config.fromfile(str(path))
    cfg.model.type = 'mmdense.MAE'
    cfg.model.neck.update(SHIPPED_DECODER, num_patches=16)
    patch = cfg.model.backbone.get('patch_size', 16)
    size = 64 if hivit else 4 * patch
    small = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    if hivit:
        small = dict(embed_dims=64, depths=[1, 1, 1], num_heads=2)
    cfg.model.backbone.update(arch=small, img_size=size)
    cfg.model.neck.embed_dim = small['embed_dims']
    if hivit:
        cfg.model.backbone.out_indices = [2]
    crop = next(t for t in cfg.train_dataloader.dataset.pipeline if 'Crop' in t.type)
    crop.scale = size
    dataset = dict(type='mmdense.UnlabeledDataset', data_root=images)
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset = dict(dataset, pipeline=cfg.train_dataloader.dataset.pipeline)
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=cfg.optim_wrapper.optimizer,
        paramwise_cfg=cfg.optim_wrapper.paramwise_cfg,
    )
    cfg.param_scheduler = []
    cfg.update(work_dir=str(tmp_path), experiment_name=f'shipped_{path.stem}', resume=False)
    cfg.train_cfg.max_epochs = 1
    cfg.merge_from_dict({'visualizer.vis_backends': [], 'log_level': 'ERROR'})
    runner = Runner.from_cfg(cfg)
    before = {k: v.clone() for k, v in runner.model.named_parameters()}
    runner.train()
    assert type(runner.model) is MAE and runner.iter == 4
    moved = [k for k, p in runner.model.named_parameters() if not torch.equal(p, before[k])]
    assert any(k.startswith('backbone') for k in moved) and any(k.startswith('neck') for k in moved)
    if not hivit:  # maps, where mmpretrain's masks
        assert type(runner.model.backbone) is MAEViT
        maps = runner.model.eval()(torch.randn(1, 3, size, 2 * size))
        assert maps[-1].shape == (1, 16, 4, 8)


# ---------------------------------------------------------------- the encoder


def test_initial_weights():
    """As the authors' code begins."""
    model = MODELS.build(config())
    model.init_weights()
    state = model.state_dict()
    assert torch.equal(state['backbone.pos_embed'], sincos_positions(4, 16))
    assert torch.equal(state['neck.decoder_pos_embed'], sincos_positions(4, 8))
    for name, value in state.items():
        if name == 'backbone.patch_embed.projection.bias':  # PyTorch's
            assert value.abs().max() <= (3 * 64) ** -0.5
        elif name.endswith('bias'):
            assert not value.any(), name
        elif 'ln' in name:
            assert (value == 1).all(), name
        elif name.endswith('weight'):  # Xavier's bound, of matrices
            matrix = value.flatten(1)
            bound = (6 / sum(matrix.shape)) ** 0.5
            assert 0.8 * bound < matrix.abs().max() <= bound, name
    for name in ('backbone.cls_token', 'neck.mask_token'):
        assert 0.005 < state[name].std() < 0.05


def test_maps_of_images_of_any_size():
    model = MODELS.build(config())
    model.init_weights()
    backbone = model.get_product()
    assert backbone is model.backbone
    vit = {k: v for k, v in config()['backbone'].items() if k != 'type'}
    plain = MODELS.build(dict(type='mmpretrain.VisionTransformer', out_type='featmap', **vit))
    plain.load_state_dict(backbone.state_dict())
    plain.eval()
    for size in ((32, 32), (48, 32), (37, 61)):
        image = torch.randn(2, 3, *size)
        (expected,) = plain(image)
        backbone.eval()
        close(backbone(image)[-1], expected)
        close(model(image, mode='tensor')[-1], expected)
        model.train()  # the maps of complete images, in train mode too
        close(model(image)[-1], expected)
        close(backbone(image, mask=None)[-1], expected)
    latent, mask, places = backbone(torch.randn(2, 3, 32, 32))
    assert latent.shape == (2, 1 + 4, 16) and mask.sum(1).tolist() == [12, 12]
    assert sorted(places[0].tolist()) == list(range(16))


def test_stages_are_quarters_of_the_blocks():
    from mmdense.evaluation.feature_maps import stage_maps

    backbone = MODELS.build(dict(config()['backbone'], out_indices=[0, 1, 2, 3]))
    backbone.eval()
    image = torch.randn(1, 3, 40, 32)
    with torch.no_grad():
        expected = backbone(image)
    backbone.out_indices = [3]
    stages = stage_maps(backbone, [image])
    assert len(stages) == 4 and backbone.out_indices == [3]
    for (found,), wanted in zip(stages, expected):
        assert torch.equal(found, wanted[0])


def test_masks_differ_by_image_step_and_process():
    """They come from PyTorch's generator, which a run seeds by its seed, process and iteration."""
    from mmdense.utils.randomness import seed_all

    backbone = MODELS.build(config()['backbone'])
    images = torch.randn(1, 3, 32, 32).repeat(2, 1, 1, 1)

    def mask(*seeds):
        seed_all(*seeds)
        return backbone(images)[1]

    first = mask(0, 0, 5)
    assert torch.equal(first, mask(0, 0, 5)) and not torch.equal(*first)
    assert not torch.equal(first, mask(0, 1, 5)) and not torch.equal(first, mask(0, 0, 6))


def test_names_without_a_prefix():
    """As in mmpretrain's configs, whatever the default scope is."""
    plain = {**config(), 'type': 'MAE'}
    for name in ('backbone', 'neck', 'head'):
        plain[name] = dict(plain[name], type=plain[name]['type'].split('.')[-1])
    for scope in ('mmdense', 'mmpretrain', 'mmseg'):
        with DefaultScope.overwrite_default_scope(scope):
            assert type(MAE(**{k: v for k, v in plain.items() if k != 'type'})) is MAE
    MODELS.build(dict(plain, type='mmdense.MAE'))


def test_channels_follow():
    """Images of five channels: decoder and head take as many."""
    model = MODELS.build(config(channels=5))
    assert model.neck.decoder_pred.out_features == 8 * 8 * 5
    assert model(torch.randn(2, 5, 32, 32), mode='loss')['loss'] > 0


def test_checkpointed():
    """Activation checkpointing of blocks changes nothing."""
    images, runs, results = torch.randn(2, 3, 32, 32), [], []
    plain = MODELS.build(config())
    model = MODELS.build(config())
    model.load_state_dict(plain.state_dict())
    turn_on_activation_checkpointing(model, ['backbone.layers.1', 'neck.decoder_blocks.0'])
    model.backbone.layers[1].ln1.register_forward_hook(lambda *_: runs.append(None))
    for one in (plain, model):
        hide_by_pixel(one)
        (loss,) = one(images, mode='loss').values()
        loss.backward()
        results.append((loss, one.backbone.cls_token.grad))
    assert len(runs) == 2
    for a, b in zip(*results):
        assert torch.equal(a, b)


def test_learns():
    """The loss of hidden patches falls below 1, what a constant prediction gives."""
    torch.manual_seed(0)
    model = MODELS.build(config())
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    ramp = torch.linspace(-1, 1, 32)
    images = torch.stack([ramp[None].expand(32, -1), ramp[:, None].expand(-1, 32)])
    images = images[:, None].repeat(4, 3, 1, 1)
    history = []
    for _ in range(60):
        (loss,) = model(images, mode='loss').values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[0] > 0.9 and history[-1] < 0.6


# ---------------------------------------------------------------- what goes wrong


def test_wrong_batches_say_so():
    model = MODELS.build(config())
    image = torch.randn(4, 3, 32, 32)
    with pytest.raises(InputError, match='MAE needs 1 view of every image, got 2'):
        model([image] * 2, mode='loss')
    with pytest.raises(InputError, match=r'trains on images of 32×32 px, got 48×32: set scale of'):
        model(torch.randn(4, 3, 48, 32), mode='loss')
    with pytest.raises(InputError, match='images have 4 channels, the backbone takes 3'):
        model(torch.randn(2, 4, 32, 32), mode='loss')


def test_wrong_backbones_say_so():
    for backbone in (
        dict(type='mmpretrain.ResNet', depth=18),
        dict(type='mmpretrain.VisionTransformer', arch='deit-tiny'),
    ):
        with pytest.raises(InputError, match='hides patches from its encoder, and a .* cannot'):
            MODELS.build(config(backbone=backbone))
    with pytest.raises(InputError, match='36×36 px have no whole patches of 8 px'):
        MODELS.build(config(size=36))
    with pytest.raises(TypeError, match='MAE got an unexpected argument: foo'):
        MODELS.build(config(foo=1))


# ---------------------------------------------------------------- checkpoints


def authors_state(model):
    """Return a state dict with the names of the authors."""
    names = {}
    for name in model.state_dict():
        theirs = name.replace('backbone.layers', 'backbone.blocks')
        theirs = re.sub(r'^backbone\.ln1', 'backbone.norm', theirs)
        theirs = re.sub(r'^neck\.ln1', 'neck.decoder_norm', theirs)
        theirs = re.sub(r'(\.\d+)\.ln', r'\1.norm', theirs).replace('projection', 'proj')
        theirs = theirs.replace('ffn.layers.0.0', 'mlp.fc1').replace('ffn.layers.1', 'mlp.fc2')
        names[name] = theirs.split('.', 1)[1]
    return {names[name]: value for name, value in model.state_dict().items()}


@pytest.fixture
def randomised(randomize):
    model = MODELS.build(config())
    randomize(model.state_dict())
    return model


@pytest.fixture
def randomize():
    """Fill tensors with random numbers, in place."""

    def fill(state):
        rng = torch.Generator().manual_seed(5)
        for value in state.values():
            value.copy_(torch.randn(value.shape, generator=rng))

    return fill


def test_training_file_of_the_authors_continues(randomised, tmp_path):
    """All of it, with the decoder, by load_from; its backbone alone, by pretrained."""
    path = str(tmp_path / 'checkpoint-3.pth')
    torch.save(dict(model=authors_state(randomised), epoch=3, args=None), path)
    fill = dict(type='Pretrained', _scope_='mmdense', checkpoint=path)
    complete = MODELS.build(config(init_cfg=fill))
    alone = MODELS.build(config(pretrained=path))
    complete.init_weights()
    alone.init_weights()
    for name, value in randomised.state_dict().items():
        assert torch.equal(complete.state_dict()[name], value), name
        same = torch.equal(alone.state_dict()[name], value)
        assert same == name.startswith('backbone.'), name


def test_released_encoder_of_the_authors(randomised, tmp_path):
    """It fills the encoder, and is told from a complete file by its content."""
    state = authors_state(randomised)
    state = {k: v for k, v in state.items() if not re.match('decoder_|mask_token', k)}
    path = str(tmp_path / 'released.pth')
    torch.save(dict(model=state), path)
    found = recognise(torch.load(path, weights_only=True))
    assert found.algorithm is None and not found.dropped
    model = MODELS.build(config(pretrained=path))
    model.init_weights()
    for name, value in randomised.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    match = SelfSupPretrained(path).match(MODELS.build(config(size=64)['backbone']))
    assert match.resized == 'pos_embed resized from 4×4 to 8×8 patches' and not match.problem


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize('size, patch, epochs', [('base', 16, 800), ('large', 16, 1600)])
def test_recipe(size, patch, epochs):
    """As mmpretrain's and the authors', but for the decay of the tokens."""
    cfg = load_recipe(f'configs/mae/mae_vit-{size}-p{patch}_8xb512-coslr-{epochs}e_in1k.py')
    theirs = SHIPPED[0].parent / f'mae_vit-{size}-p{patch}_8xb512-amp-coslr-{epochs}e_in1k.py'
    theirs = Config.fromfile(str(theirs))
    assert cfg.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
    assert cfg.auto_scale_lr == theirs.auto_scale_lr and cfg.train_cfg == theirs.train_cfg
    assert cfg.train_dataloader.batch_size == theirs.train_dataloader.batch_size == 512
    (crop, flip) = cfg.train_pipeline[1].transforms[0]
    (wanted,) = [t for t in theirs.train_pipeline if t.type == 'RandomResizedCrop']
    for key in ('scale', 'crop_ratio_range', 'interpolation'):
        assert crop[key] == wanted[key], key
    assert flip == dict(type='RandomFlip', prob=0.5)
    (schedule,) = cfg.param_scheduler
    assert (schedule.warmup, schedule.start_factor, schedule.eta_min) == (40, 0, 0)
    with torch.device('meta'):
        ours = MODELS.build(cfg.model).state_dict()
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            other = MODELS.build(dict(theirs.model, type='mmpretrain.MAE')).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in other.items()}


def test_decay_is_the_authors_rule():
    """Everything of more than one dimension, the class token and the mask token included."""
    cfg = load_recipe('configs/mae_vit-base_in1k.py')
    model = MODELS.build(config())
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert decay[id(p)] == (0.05 if p.dim() > 1 else 0), name
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {'backbone.pos_embed', 'neck.decoder_pos_embed'}


def test_every_recipe_is_there():
    names = {path.stem for path in (REPO / 'configs' / 'mae').glob('mae_vit-*-p*_in1k.py')}
    sizes = (('base', 16), ('large', 16), ('huge', 14))
    lengths = (800, 1600)
    assert names == {
        f'mae_vit-{size}-p{patch}_8xb512-coslr-{epochs}e_in1k'
        for size, patch in sizes
        for epochs in lengths
    }


# ---------------------------------------------------------------- commands


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """A command in this process, in an empty folder; what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def folder(tmp_path):
    """24 pictures."""
    rng = np.random.default_rng(0)
    (tmp_path / 'photos').mkdir()
    for i in range(24):
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((96, 72), Image.BICUBIC).save(tmp_path / 'photos' / f'{i:02}.jpg')
    return 'photos'


def test_commands(call, folder):
    """From a folder to a report, by one command each."""
    told = ['--method', 'mae', '--backbone', 'vit-tiny', '--out', 'run']
    code, out, err = call(
        'pretrain', folder, *told, '--epochs', 1, '--batch-size', 8, '--workers', 0
    )
    assert code == 0, err
    assert re.search(r'^backbone +vit-tiny +set explicitly', out, re.M), out
    assert re.search(r'^view size +64 px +images are of 72 px', out, re.M)
    assert re.search(
        r'^lr +0.000106066 +0.0024 for 4096 images, by the root of the batch', out, re.M
    )
    cfg = Config.fromfile('run/config.py')
    assert dict(cfg.model.backbone, _scope_=0) == dict(
        type='MAEViT', arch='deit-tiny', img_size=64, patch_size=16, mask_ratio=0.75, _scope_=0
    )
    assert cfg.optim_wrapper.optimizer.betas == (0.9, 0.95)
    assert [s.type for s in cfg.param_scheduler] == ['WarmupCosineLR']
    # for other software it is a vision transformer that hides nothing
    plain = "type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=64, patch_size=16"
    assert out.count(plain) == 2 and 'mmpretrain.models.VisionTransformer(' in out + err
    assert 'MAEViT' not in out + err and 'mask_ratio' not in out + err

    code, out, err = call('check', 'run/backbone.pth', '--images', folder)
    assert code == 0 and re.search(r'^ +random +0\.\d', out, re.M), out + err
    for file in ('run/epoch_1.pth', 'run/backbone.pth'):
        code, out, err = call('show', file, f'{folder}/01.jpg', '--out', 'pictures', '--size', 64)
        assert code == 0 and out.splitlines()[-1].endswith('pictures/index.html'), err
    code, out, err = call('report', 'run')
    assert code == 0 and Path('run/report.html').is_file(), err
    for target in ('mmpretrain', 'timm'):
        code, out, err = call('export', 'run/backbone.pth', '--to', target)
        assert code == 0 and 'VisionTransformer' in out, err


def test_plan(call, folder):
    code, out, err = call('plan', folder, '--method', 'mae', '--backbone', 'vit-tiny', '--gpus', 1)
    assert code == 0 and 'vit-tiny' in out, err
    code, _, err = call('plan', folder, '--method', 'mae', '--backbone', 'resnet50')
    (line,) = [line for line in err.splitlines() if 'error' in line]
    assert code == 1 and 'MAE cannot take the backbone resnet50: MAE hides patches from' in line
    code, _, err = call('plan', folder, '--method', 'mae', '--size', 72)
    assert code == 1 and '72×72 px have no whole patches of 16 px' in err


def test_sizes_in_the_plan():
    """The recipe's own at the recipe's size; another size changes the positions alone."""
    from mmdense.apis.planning import read_recipe, survey_network
    from mmdense.apis.planning.survey import backbone_name, find_backbone

    recipe = read_recipe('mae')
    backbone = recipe.model.backbone
    assert backbone_name(backbone) == 'vit-base'
    assert find_backbone('vit-base', backbone) == {}
    assert find_backbone('vit-large', backbone) == dict(arch='large')
    assert find_backbone('vit-huge/14', backbone) == dict(arch='huge', patch_size=14)
    network = survey_network(recipe, 'vit-tiny', 64, in_channels=5)
    assert network.backbone == dict(arch='deit-tiny', img_size=64, in_channels=5)
    assert network.attention and network.all_used


def test_dense_evaluation_of_a_run(folder, tmp_path):
    """The hook gets maps, before the first step and after the last."""
    maps = tmp_path / 'maps'
    maps.mkdir()
    for path in sorted(Path(tmp_path, 'photos').glob('*.jpg')):
        label = np.zeros((72, 96), np.uint8)
        label[:, 48:] = 1
        Image.fromarray(label).save(maps / f'{path.stem}.png')
    paths = dict(img_path='photos', seg_map_path='maps')
    data = dict(type='LabelledMaps', data_root=str(tmp_path), num_classes=2, train=paths, test=None)
    cfg = load_recipe('configs/mae_vit-base_coco.py')
    cfg.model = dict(config(size=64), data_preprocessor=cfg.model.data_preprocessor)
    cfg.merge_from_dict(
        {
            'train_dataloader.dataset.data_root': str(tmp_path / 'photos'),
            'train_dataloader.dataset.data_prefix': '',
            'train_dataloader.dataset.pipeline.1.transforms.0.0.scale': 64,
            'train_dataloader.batch_size': 8,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_cfg.max_epochs': 1,
            'default_hooks.evaluation': dict(type='DenseEvaluationHook', data=data, size=64),
            'work_dir': str(tmp_path / 'work'),
            'experiment_name': 'evaluated',
        }
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert re.findall(r'Features after (\d+) iterations: knn_mIoU', log) == ['0', '3']
