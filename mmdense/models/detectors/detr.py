# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""DETR that keeps the weights that fill it, with post-norm or pre-norm layers, on mmdet's classes.

Import this module only to build one: it imports mmdet.
"""

from typing import Optional

from mmcv.cnn import build_norm_layer
from mmdet.models.detectors import DETR as _DETR
from mmdet.models.layers.transformer.detr_layers import (
    DetrTransformerDecoder,
    DetrTransformerDecoderLayer,
    DetrTransformerEncoder,
    DetrTransformerEncoderLayer,
)
from mmengine.model import ModuleList
from torch import Tensor, nn


class PreNormEncoderLayer(DetrTransformerEncoderLayer):
    """Normalize the input of self-attention and of the FFN, not the output."""

    def forward(
        self, query: Tensor, query_pos: Tensor, key_padding_mask: Optional[Tensor], **kwargs
    ) -> Tensor:
        """Return N×S×D tokens after the layer; arguments as in mmdet's class."""
        x = self.norms[0](query)
        query = self.self_attn(
            query=x,
            key=x,
            value=x,
            identity=query,
            query_pos=query_pos,
            key_pos=query_pos,
            key_padding_mask=key_padding_mask,
            **kwargs,
        )
        return self.ffn(self.norms[1](query), identity=query)


class PreNormDecoderLayer(DetrTransformerDecoderLayer):
    """Normalize the input of both attentions and of the FFN, not the output."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Optional[Tensor] = None,
        key_pos: Optional[Tensor] = None,
        self_attn_mask: Optional[Tensor] = None,
        cross_attn_mask: Optional[Tensor] = None,
        key_padding_mask: Optional[Tensor] = None,
        **kwargs,
    ) -> Tensor:
        """Return N×Q×D queries after the layer; arguments as in mmdet's class."""
        x = self.norms[0](query)
        query = self.self_attn(
            query=x,
            key=x,
            value=x,
            identity=query,
            query_pos=query_pos,
            key_pos=query_pos,
            attn_mask=self_attn_mask,
            **kwargs,
        )
        query = self.cross_attn(
            query=self.norms[1](query),
            key=key,
            value=value,
            identity=query,
            query_pos=query_pos,
            key_pos=key_pos,
            attn_mask=cross_attn_mask,
            key_padding_mask=key_padding_mask,
            **kwargs,
        )
        return self.ffn(self.norms[2](query), identity=query)


class PreNormEncoder(DetrTransformerEncoder):
    """Stack pre-norm layers, and normalize the output of the last one (``post_norm``)."""

    def _init_layers(self) -> None:
        layers = [PreNormEncoderLayer(**self.layer_cfg) for _ in range(self.num_layers)]
        self.layers = ModuleList(layers)
        self.embed_dims = layers[0].embed_dims
        self.post_norm = build_norm_layer(dict(type='LN'), self.embed_dims)[1]

    def forward(self, *args, **kwargs) -> Tensor:
        """Return N×S×D tokens; arguments as in mmdet's class."""
        return self.post_norm(super().forward(*args, **kwargs))


class PreNormDecoder(DetrTransformerDecoder):
    """Stack pre-norm layers; ``post_norm`` applies to the output of every layer."""

    def _init_layers(self) -> None:
        layers = [PreNormDecoderLayer(**self.layer_cfg) for _ in range(self.num_layers)]
        self.layers = ModuleList(layers)
        self.embed_dims = layers[0].embed_dims
        self.post_norm = build_norm_layer(self.post_norm_cfg, self.embed_dims)[1]


class DETR(_DETR):
    """Detect as mmdet's ``DETR``, and keep the weights that ``init_cfg`` fills in.

    mmdet's ``init_weights()`` initializes the transformer after ``init_cfg`` has filled it.
    """

    keeps_filled_weights = True

    def init_weights(self) -> None:
        """Initialize as the authors' code: Xavier in the transformer, PyTorch's default in the
        input convolution; or by a checkpoint alone."""
        if isinstance(self.init_cfg, dict) and str(self.init_cfg['type']).endswith('Pretrained'):
            super(_DETR, self).init_weights()
            return
        super().init_weights()
        for part in self.neck.modules() if self.with_neck else ():
            if isinstance(part, nn.Conv2d):
                part.reset_parameters()


class PreNormDETR(DETR):
    """Detect as mmdet's ``DETR``, with a pre-norm transformer.

    Its names are mmdet's, and ``encoder.post_norm``. A file of one does not fit the other.
    """

    def _init_layers(self) -> None:
        encoder, decoder = dict(self.encoder), dict(self.decoder)
        # mmdet's class builds what has the same form in both
        super()._init_layers()
        self.encoder = PreNormEncoder(**encoder)
        self.decoder = PreNormDecoder(**decoder)
