# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""MAE.

Losses: the squared error of hidden patches, with normalised targets.
Floor: the encoder on the visible patches and the decoder on all, forward and backward.
"""

import common
import models
import torch
from floors import forward_backward, leaf
from torch import nn

SETTING = ''
TARGET = 1.03
GPU = False
CONFIG = 'mae/mae_vit-base-p16_8xb512-amp-coslr-800e_in1k.py'


class OneView(nn.Module):
    """mmpretrain's, which takes a tensor for a list of one view."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, views, samples, mode):
        return self.model(views[0], samples, mode=mode)


def shipped(args):
    """Return mmpretrain's algorithm for images of a size."""
    config = models.shipped_config(CONFIG).model
    config.backbone.img_size = args.size
    config.neck.num_patches = (args.size // 16) ** 2
    return OneView(models.build(config, 'mmpretrain', args))


PEERS = {'mmpretrain MAE': shipped, 'lightly MAE': lambda args: LightlyMAE(args)}


def squared_error_written_out(prediction, images, mask, patch=16):
    """Return section 3's loss of https://arxiv.org/abs/2111.06377, patch by patch."""
    rows = images.unfold(2, patch, patch).unfold(3, patch, patch)  # N×C×G×G×p×p
    target = rows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    mean = target.mean(2, keepdim=True)
    variance = ((target - mean) ** 2).sum(2, keepdim=True) / (target.size(2) - 1)
    error = (prediction - (target - mean) / (variance + 1e-6).sqrt()) ** 2
    return error[mask.bool()].mean()


def losses(args):
    head = models.build(models.shipped_config(CONFIG).model.head, 'mmpretrain', args)
    n, patches = args.batch_size, (args.size // 16) ** 2
    images = torch.randn(n, 3, args.size, args.size, device=args.device)
    prediction = torch.randn(n, patches, 768, device=args.device, requires_grad=True)
    order = torch.rand(n, patches, device=args.device).argsort(1).argsort(1)
    mask = (order >= patches // 4).float()
    losses = {
        'mmdense': lambda: head.loss(prediction, images, mask),
        'written out': lambda: squared_error_written_out(prediction, images, mask),
    }
    return {'Hidden patches': (losses, [prediction])}


def floor(model, views, args):
    with torch.no_grad():
        latent, _, places = model.backbone(views[0])
    parts = {
        'backbone': forward_backward(lambda x: model.backbone(x)[0], views, model, args),
        'decoder': forward_backward(lambda x: model.neck(x, places), [leaf(latent)], model, args),
    }
    return parts, 'ViT-B'


class LightlyMAE(nn.Module):
    """lightly's parts for MAE on timm's ViT-Base, put together as in its example."""

    def __init__(self, args):
        super().__init__()
        import timm

        modules = common.peer('lightly.models.modules')
        vit = timm.create_model('vit_base_patch16_224', img_size=args.size, num_classes=0)
        self.encoder = modules.MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = modules.MAEDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            patch_size=16,
            embed_dim=vit.embed_dim,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        )
        self.utils = common.peer('lightly.models.utils')
        self.to(args.device).train()

    def forward(self, views, samples=None, mode='loss'):
        (images,) = views
        length = self.encoder.sequence_length
        keep, hidden = self.utils.random_token_mask(
            (len(images), length), 0.75, device=images.device
        )
        visible = self.decoder.embed(self.encoder.encode(images, idx_keep=keep))
        tokens = self.decoder.mask_token.repeat(len(images), length, 1)
        tokens = self.utils.set_at_index(tokens, keep, visible.type_as(tokens))
        decoded = self.decoder.decode(tokens)
        predicted = self.decoder.predict(self.utils.get_at_index(decoded, hidden))
        patches = self.utils.patchify(images, 16)
        target = self.utils.normalize_mean_var(self.utils.get_at_index(patches, hidden - 1))
        return dict(loss=(predicted - target).square().mean())
