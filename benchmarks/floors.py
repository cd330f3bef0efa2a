# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Parts of a training step that no implementation can leave out, each timed alone."""

import common
import torch


def forward_backward(encode, inputs, model, args):
    """Forward and backward of ``encode(x)``, a tensor or several, for each of several x.

    Args:
        inputs (list): Tensors, or lists of them.
        model (nn.Module): Whose gradients are zeroed first.
    """
    gradients = {}

    def run():
        model.zero_grad()
        for i, x in enumerate(inputs):
            for leaf in x if isinstance(x, list) else [x]:
                leaf.grad = None
            with common.autocast(args):
                out = encode(x)
            out = [out] if isinstance(out, torch.Tensor) else [o for o in out if o.requires_grad]
            if i not in gradients:
                # Random: BatchNorm's gradient of a constant is noise around 0, and denormal numbers
                # are slow.
                gradients[i] = [torch.randn_like(o) for o in out]
            torch.autograd.backward(out, gradients[i])

    return run


def forward(encode, inputs, args):
    """Forward on each of several inputs, without gradients."""

    @torch.no_grad()
    def run():
        for x in inputs:
            with common.autocast(args):
                encode(x)

    return run


def last_map(backbone):
    return lambda x: backbone(x)[-1]


def maps_of(backbone, views, args):
    """Last maps of several views, without gradients."""
    with torch.no_grad(), common.autocast(args):
        return [backbone(view)[-1] for view in views]


def leaf(x):
    return x.detach().clone().requires_grad_()


def product(a, b, needs_grad=(True, True)):
    """A matrix product, and those of its gradients that are needed.

    Args:
        a, b (tuple): Shapes, M×K and K×N, or both with a batch in front.
    """
    return a, b, needs_grad


def matrix_products(shapes, args):
    """Computes a list of :func:`product`."""
    pairs = []
    for a, b, needs_grad in shapes:
        pair = [torch.randn(s, device=args.device) for s in (a, b)]
        pairs.append([x.requires_grad_(needed) for x, needed in zip(pair, needs_grad)])

    def run():
        for a, b in pairs:
            with common.autocast(args):
                out = a @ b
            if out.requires_grad:
                leaves = [x for x in (a, b) if x.requires_grad]
                torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def student_passes(model, views, maps, args):
    """Run the backbone on several views, and the neck on several maps, forward and backward."""
    return {
        'backbone': forward_backward(last_map(model.backbone), views, model, args),
        'neck': forward_backward(lambda x: model.neck((x,)), [leaf(m) for m in maps], model, args),
    }


def queue_products(rows, args):
    """Run the matrix products and the softmax of InfoNCE with a queue, for several numbers of
    queries."""
    queue = torch.randn(128, args.queue_len, device=args.device)
    queries = [torch.randn(number, 128, device=args.device) for number in rows]
    matrix = torch.empty(max(rows), args.queue_len, device=args.device)

    def run():
        for query in queries:
            logits = matrix[: len(query)]
            torch.mm(query, queue, out=logits)
            torch.softmax(logits, dim=1, out=logits)
            torch.mm(logits, queue.t())

    return {'products': run}


def both_encoders(model, views, args):
    """Run backbone and projector of both views of PixPro and SlotCon, with gradients, and those of
    the momentum encoder without."""
    twin = model.encoder_k.module
    maps = maps_of(model.backbone, views, args)
    return {
        'backbone': forward_backward(last_map(model.backbone), views, model, args),
        'twin_backbone': forward(twin['backbone'], views, args),
        'projector': forward_backward(model.neck, [leaf(m) for m in maps], model, args),
        'twin_projector': forward(twin['neck'], maps, args),
    }


def predicting_encoders(model, views, args):
    """Run backbone, projector and predictor of both views of BYOL and MoCo v3, with gradients, and
    backbone and projector of the momentum encoder without."""
    maps = maps_of(model.backbone, views, args)
    with torch.no_grad(), common.autocast(args):
        z = [leaf(model.neck((m,))[0]) for m in maps]
    backbone, neck = model.encoder_k.module
    return {
        'backbone': forward_backward(last_map(model.backbone), views, model, args),
        'momentum_backbone': forward(backbone, views, args),
        'projector': forward_backward(
            lambda x: model.neck((x,)), [leaf(m) for m in maps], model, args
        ),
        'momentum_projector': forward(lambda x: neck((x,)), maps, args),
        'predictor': forward_backward(lambda x: model.head.predictor([x])[0], z, model, args),
    }
