# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest
import torch
from recipes import check_lars_recipe, load_recipe
from tiny_algorithms import PAIRS, RANK, STD, Tiny, health_names
from torch import nn
from torch.nn.functional import normalize

from mmdense.models import (
    SemanticGrouping,
    SlotContrastHead,
    TeacherCenter,
    group_distillation,
    kept_slots,
)
from mmdense.models.utils import align_maps, is_flipped, overlap_in_view
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')

MLP = dict(
    type='ProjectionMLP',
    hid_channels=32,
    out_channels=16,
    num_layers=3,
    act_cfg=dict(type='GELU'),
)
PREDICTOR = dict(MLP, in_channels=16, dense=False)


def tiny():
    """Return what the generic tests need."""
    dim, prototypes = 8, 12

    def parts(norm):
        mlp = dict(type='ProjectionMLP', hid_channels=16, out_channels=dim, norm_cfg=norm)
        predictor = dict(mlp, in_channels=dim, dense=False, num_layers=3)
        return dict(
            total_steps=10,
            num_prototypes=prototypes,
            neck=dict(mlp, in_channels=64),
            head=dict(type='SlotContrastHead', predictor=predictor),
        )

    def calls(image, patches, seen):
        # the center; two numbers in each direction; the kept slots of both
        return [
            ('all_reduce', prototypes * 4),
            ('all_gather', 4 * 8),
            ('all_gather', max(seen[-1]) * dim * 4),
        ]

    return Tiny(
        algorithm='SlotCon',
        family='teacher',
        parts=parts,
        product='encoder_k.module.backbone',
        recipe='slotcon_r50_coco',
        options=[
            'model.neck.in_channels=512',
            'model.neck.hid_channels=64',
            'model.head.predictor.hid_channels=64',
            'model.num_prototypes=16',
            'train_dataloader.dataset.pipeline.1.transforms.1.0.scale=64',
        ],
        health=[
            *health_names(global_=[STD, RANK], dense=[STD, RANK], slot=PAIRS[2:]),
            *('prototypes_used', 'prototypes_dead'),
        ],
        losses=['loss_group', 'loss_slot'],
        own=['slots', 'unsupervised_iou'],
        reads=['tolist'],  # the numbers of slots
        watch=watch_slots,
        calls=calls,
    )


def watch_slots():
    """Record how many slots every process has kept."""
    from mmdense.models.heads import slot_contrast_head

    seen, gather = [], slot_contrast_head.gather_rows

    def gather_rows(rows, counts):
        seen.append(counts)
        return gather(rows, counts)

    slot_contrast_head.gather_rows = gather_rows
    return seen


def config(depth=18, **changes):
    cfg = dict(
        type='SlotCon',
        num_prototypes=24,
        backbone=dict(type='mmpretrain.ResNet', depth=depth),
        neck=dict(MLP, in_channels=512 if depth < 50 else 2048),
        head=dict(type='SlotContrastHead', predictor=PREDICTOR),
        total_steps=10,
    )
    cfg.update(changes)
    return cfg


def identity_head(channels, **kwargs):
    """The published slot loss without its predictor, as its golden has it."""
    widths = dict(in_channels=channels, out_channels=channels)
    head = SlotContrastHead(dict(PREDICTOR, **widths), **kwargs)
    head.predictor = nn.Identity()
    return head


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_golden_grouping(golden):
    g = golden('slotcon_grouping')
    grouping = SemanticGrouping(*g['prototypes'].shape, temperature=float(g['temp']))
    grouping.slot_embed.weight.data.copy_(g['prototypes'])
    slots, scores = grouping(g['feat'])
    close(slots, g['slots'])
    close(scores, g['scores'])


def test_golden_group_loss(golden):
    g = golden('slotcon_group_loss')
    temperatures = float(g['student_temp']), float(g['teacher_temp'])
    loss = group_distillation(g['student'], g['teacher'], g['center'], *temperatures)
    close(loss, g['loss'])
    # the same locations as maps
    student, teacher = as_maps(g['student']), as_maps(g['teacher'])
    close(group_distillation(student, teacher, g['center'][0], *temperatures), g['loss'])


def as_maps(rows):
    """Locations in rows, M×P, as the maps of some images, N×P×H×W."""
    number, prototypes = rows.shape
    n = next(n for n in (4, 3, 2, 1) if number % n == 0)
    width = next(w for w in (7, 5, 3, 2, 1) if number // n % w == 0)
    return rows.view(n, -1, width, prototypes).permute(0, 3, 1, 2)


def test_golden_slot_loss(golden):
    g = golden('slotcon_slot_loss')
    head = identity_head(g['q'].size(2), temperature=float(g['temp']))
    close(head.loss(g['q'], g['k'], g['score_q'], g['score_k']), g['loss'])


def test_golden_slot_loss_with_the_predictor(golden):
    g = golden('slotcon_slot_loss_predictor')
    layers = [g[key] for key in g if key.startswith('mlp_') and g[key].dim() == 2]
    widths = dict(
        in_channels=layers[0].size(1), hid_channels=len(layers[0]), out_channels=len(layers[-1])
    )
    predictor = dict(PREDICTOR, num_layers=len(layers), **widths)
    head = SlotContrastHead(predictor, temperature=float(g['temp']))
    assert len(list(head.predictor.parameters())) == sum(key.startswith('mlp_') for key in g)
    for name, parameter in head.predictor.named_parameters():
        parameter.data.copy_(g[name.replace('.', '_')])
    close(head.loss(g['q'], g['k'], g['score_q'], g['score_k']), g['loss'])


def test_golden_center(golden):
    g = golden('slotcon_center')
    center = TeacherCenter(g['center'].size(1), float(g['momentum']))
    center.value.copy_(g['center'][0])
    center.update(*g['teacher_scores'].chunk(2))
    close(center.value, g['center_next'][0])
    # and from maps of two views
    center.value.copy_(g['center'][0])
    center.update(*map(as_maps, g['teacher_scores'].chunk(2)))
    close(center.value, g['center_next'][0])


class Recorded(nn.Module):
    """A backbone or projector whose output for each view is written down."""

    def __init__(self, maps):
        super().__init__()
        self.maps = nn.Parameter(torch.stack(maps))
        self.out_channels = maps[0].size(1)

    def forward(self, x):
        return self.maps[int(x.flatten()[0])]


def test_golden_total(golden, boxed):
    """The published sum of all four losses, through loss() itself."""
    g = golden('slotcon_total')
    num_prototypes, channels = g['prototypes_student'].shape
    cfg = config(num_prototypes=num_prototypes, group_weight=float(g['group_loss_weight']))
    cfg['neck'] = dict(cfg['neck'], in_channels=1, out_channels=channels)
    cfg['head']['predictor'] = dict(PREDICTOR, in_channels=channels, out_channels=channels)
    model = MODELS.build(cfg)
    # z → the recorded projections of the student and of the teacher, by view
    model.backbone, model.neck = nn.Identity(), Recorded([g['x1'], g['x2']])
    model.head = identity_head(channels)
    model.grouping.slot_embed.weight.data.copy_(g['prototypes_student'])
    twin = model.encoder_k.module
    twin['backbone'], twin['neck'] = nn.Identity(), Recorded([g['y1'], g['y2']])
    twin['grouping'].slot_embed.weight.data.copy_(g['prototypes_teacher'])
    model.encoder_k.update_parameters = lambda online: None
    model.center.value.copy_(g['center'][0])
    views = [torch.full((len(g['x1']), 1, 1, 1), float(i)) for i in range(2)]
    losses = model.loss(views, boxed(g['box_1'], g['box_2']))
    close(sum(losses.values()), g['loss'])
    assert not torch.equal(model.center.value, g['center'][0])


def test_kept_slots_are_some_cells_best():
    scores = torch.zeros(2, 4, 1, 3)
    scores[0, 2, 0, 0] = scores[0, 1, 0, 1] = scores[0, 2, 0, 2] = 1
    scores[1, 3] = 1
    expected = [[False, True, True, False], [False, False, False, True]]
    assert kept_slots(scores).tolist() == expected


def literal_slot_loss(head, slots_q, slots_k, scores_q, scores_k):
    """The published formula, row by row."""
    losses = []
    keys, names = [], []
    for n, p in kept_slots(scores_k).nonzero().tolist():
        keys.append(normalize(slots_k[n, p], dim=0))
        names.append((n, p))
    positive = [np for np in names if kept_slots(scores_q)[np]]
    queries = normalize(head.predictor(torch.stack([slots_q[np] for np in positive])), dim=1)
    for query, np in zip(queries, positive):
        logits = torch.stack(keys) @ query / head.temperature
        losses.append(-logits.log_softmax(0)[names.index(np)])
    return 2 * head.temperature * torch.stack(losses).mean()


def test_slot_loss_is_the_formula_row_by_row():
    torch.manual_seed(0)
    head = SlotContrastHead(PREDICTOR)
    slots_q, slots_k = torch.randn(2, 3, 8, 16)
    scores_q, scores_k = torch.randn(2, 3, 8, 2, 2)
    arguments = slots_q.requires_grad_(), slots_k, scores_q, scores_k
    ours, theirs = head.loss(*arguments), literal_slot_loss(head, *arguments)
    close(ours, theirs)
    grads = [torch.autograd.grad(loss, slots_q)[0] for loss in (ours, theirs)]
    close(*grads)
    # the predictor and its BatchNorm saw the positives alone
    assert int(head.predictor.mlp[1].num_batches_tracked) == 2


def all_one(n=2):
    """Every cell of both views takes one prototype."""
    scores = torch.randn(n, 8, 3, 3)
    scores[:, 5] = 10
    return scores


def none_shared():
    scores_q, scores_k = torch.randn(2, 2, 8, 3, 3)
    scores_q[:, :4] += 100
    scores_k[:, 4:] += 100
    return scores_q, scores_k


@pytest.mark.parametrize(
    'scores_q, scores_k',
    [none_shared(), (all_one(), all_one()), (all_one(1), all_one(1))],
    ids=['no slot is shared', 'one prototype', 'one prototype, one image'],
)
@pytest.mark.parametrize('training', [True, False])
def test_slot_loss_is_finite_in_a_pinch(scores_q, scores_k, training):
    n = len(scores_q)
    head = SlotContrastHead(PREDICTOR).train(training)
    slots = torch.randn(n, 8, 16, requires_grad=True)
    statistics = head.predictor.mlp[1].running_mean.clone()
    loss = head.loss(slots, torch.randn(n, 8, 16), scores_q, scores_k)
    loss.backward()
    assert torch.isfinite(loss) and loss >= 0
    assert torch.isfinite(slots.grad).all()
    # every parameter has a gradient, or DistributedDataParallel would wait for it
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    assert head.predictor.training == training
    positives = int((kept_slots(scores_q) & kept_slots(scores_k)).sum())
    assert (loss == 0) == (positives < 2)
    if positives < 2:  # BatchNorm's statistics are not touched by one row
        assert torch.equal(head.predictor.mlp[1].running_mean, statistics)


@pytest.mark.parametrize('n', [1, 2])
def test_a_step_on_one_image_and_on_views_without_overlap(n, boxed):
    model = MODELS.build(config())
    model.init_weights()
    a, b = torch.tensor([[0.0, 0, 0.4, 0.4]] * n), torch.tensor([[0.9, 0.5, 0.6, 1.0]] * n)
    losses = model.loss(list(torch.randn(2, n, 3, 96, 96)), boxed(a, b))
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.isfinite(p.grad).all(), name
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize(
    'backbone, channels',
    [
        (dict(type='mmpretrain.ResNet', depth=18), 512),
        (dict(type='mmpretrain.ResNet', depth=50), 2048),
        (dict(type='mmpretrain.ConvNeXt', arch='tiny', gap_before_final_norm=False), 768),
        (
            dict(type='mmpretrain.SwinTransformer', arch='tiny', img_size=64, pad_small_map=True),
            768,
        ),
    ],
    ids=['resnet18', 'resnet50', 'convnext-tiny', 'swin-tiny'],
)
def test_backbones_build_and_step(backbone, channels, two_views):
    model = MODELS.build(config(backbone=backbone, neck=dict(MLP, in_channels=channels)))
    model.init_weights()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = model(*two_views(n=2), mode='loss')
    sum(losses.values()).backward()
    unused = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, unused  # or DistributedDataParallel would stop
    assert all(p.grad is None for p in model.encoder_k.parameters())
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_product_is_the_teacher_with_its_own_statistics(two_views):
    model = MODELS.build(config())
    model.init_weights()
    for _ in range(2):
        model.loss(*two_views(n=2))
        for p in model.backbone.parameters():
            p.data.add_(0.01 * torch.randn_like(p))
    product = model.get_product()
    assert product is model.encoder_k.module['backbone']
    assert int(product.bn1.num_batches_tracked) == 4  # two views a step
    assert not torch.equal(product.layer4[1].bn2.running_mean,
                           model.backbone.layer4[1].bn2.running_mean)  # fmt: skip
    image = torch.randn(1, 3, 64, 64)
    model.eval()
    assert torch.equal(model(image, mode='tensor')[-1], product(image)[-1])


def test_twin_covers_backbone_projector_and_prototypes(two_views):
    model = MODELS.build(config())
    model.loss(*two_views(n=2))
    for p in model.parameters():
        p.data.add_(1.0) if p.requires_grad else None
    alpha = model.encoder_k.current_momentum()
    before = {k: v.clone() for k, v in model.encoder_k.module.named_parameters()}
    model.loss(*two_views(n=2))
    names = {k.split('.')[0] for k in before}
    assert names == {'backbone', 'neck', 'grouping'}
    for key, value in before.items():
        online = model.get_parameter(key)
        close(model.encoder_k.module.get_parameter(key), value + alpha * (online - value))


def test_its_own_state_dict_goes_round(two_views):
    model, other = MODELS.build(config()), MODELS.build(config())
    for _ in range(3):
        model.loss(*two_views(n=2))
    other.load_state_dict(model.state_dict(), strict=True)
    batch = two_views(n=2)
    for m in (model, other):
        m.loss(*batch)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert model.center.value.abs().max() > 0


def test_learns_to_group(two_views):
    torch.manual_seed(0)
    model = MODELS.build(config(total_steps=100))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batch = two_views(n=8, seed=0)
    history = []
    for _ in range(12):
        losses = model.loss(*batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append([v.item() for v in losses.values()])
    assert history[-1][0] < history[0][0] and history[-1][1] < history[0][1]


def test_init_follows_the_published_code(repo):
    from mmengine.config import Config

    cfg = Config.fromfile(str(repo / 'configs/_base_/models/slotcon_r50.py')).model
    model = MODELS.build(cfg)
    model.init_weights()
    conv = model.backbone.layer3[0].conv2.weight
    assert conv.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert (model.backbone.layer3[0].bn3.weight == 0).all()
    for mlp in (model.neck.mlp, model.head.predictor.mlp):
        assert mlp[3].weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert (mlp[3].bias == 0).all() and mlp[2].approximate == 'none'
        assert len(mlp) == 7
    assert model.grouping.slot_embed.weight.std().item() == pytest.approx(1, rel=0.02)
    assert model.grouping.slot_embed.weight.shape == (256, 256)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(num_prototypes=0), 'num_prototypes must be a whole number'),
        (dict(student_temperature=0), 'student_temperature must be a number above 0'),
        (dict(teacher_temperature=-1), 'temperature must be a number above 0'),
        (dict(center_momentum=1.1), r'center_momentum must be in \[0, 1\]'),
        (dict(group_weight='half'), r'group_weight must be in \[0, 1\]'),
        (dict(momentum=0), 'momentum must be in'),
        (
            dict(head=dict(type='SlotContrastHead', predictor=PREDICTOR, temperature=0)),
            'temperature must be a number above 0',
        ),
    ],
)
def test_wrong_arguments_say_so(changes, message):
    with pytest.raises(InputError, match=message):
        MODELS.build(config(**changes))


def test_half_precision(two_views):
    """Losses and center are float32 under autocast, and near those without, where rounding changes
    no location's group: with other weights other slots would count."""
    torch.manual_seed(1)
    model = MODELS.build(config())
    model.init_weights()
    batch = two_views(n=4, seed=0)
    plain = model.loss(*batch)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(*batch)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(plain[name].item(), rel=0.1)
    assert model.center.value.dtype == torch.float32
    sum(losses.values()).backward()


def test_wrong_batches_say_so(two_views):
    model = MODELS.build(config())
    views, samples = two_views()
    with pytest.raises(InputError, match='SlotCon needs 2 views of every image, got 3'):
        model.loss([*views, views[0]], samples)
    with pytest.raises(InputError, match='carry no boxes of the views'):
        model.loss(views, None)


@pytest.mark.parametrize(
    'path, epochs, prototypes, images',
    [
        ('configs/slotcon_r50_coco.py', 800, 256, 'train2017'),
        ('configs/slotcon_r50_cocoplus.py', 800, 256, ['train2017', 'unlabeled2017']),
        ('configs/slotcon_r50_in1k.py', 100, 2048, 'train'),
        ('configs/slotcon/slotcon_resnet50_8xb64-coslr-200e_in1k.py', 200, 2048, 'train'),
    ],
)
def test_slotcon_recipe(path, epochs, prototypes, images):
    config = load_recipe(path)
    check_lars_recipe(config, 512, epochs, images)
    model = config.model
    assert (model.num_prototypes, model.group_weight) == (prototypes, 0.5)
    assert (model.student_temperature, model.teacher_temperature) == (0.1, 0.07)
    assert (model.head.temperature, model.center_momentum) == (0.2, 0.9)
    for mlp, channels in ((model.neck, 2048), (model.head.predictor, 256)):
        assert (mlp.in_channels, mlp.hid_channels, mlp.out_channels) == (channels, 4096, 256)
        assert (mlp.num_layers, mlp.act_cfg.type, mlp.norm_cfg.type) == (3, 'GELU', 'SyncBN')
        assert mlp.init_cfg.std == 0.02
    first, second = config.train_dataloader.dataset.pipeline[1].transforms
    for view in (first, second):
        assert view[0].crop_ratio_range == (0.08, 1.0) and view[0].interpolation == 'bicubic'
    assert 'min_overlap' not in first[0] and second[0].min_overlap == 0.01


def test_golden_view_alignment(golden):
    g = golden('slotcon_view_alignment')
    for one, other in (('1', '2'), ('2', '1')):
        box, other_box = g[f'box_{one}'], g[f'box_{other}']
        torch.testing.assert_close(
            overlap_in_view(box, other_box), g[f'overlap_in_view_{one}'], rtol=1e-5, atol=1e-5
        )
        assert torch.equal(is_flipped(box)[0], g[f'flip_{one}'])
        aligned, expected = align_maps(g[f'scores_{one}'], box, other_box), g[f'aligned_{one}']
        torch.testing.assert_close(aligned, expected, rtol=1e-5, atol=1e-5)
        # a pair without overlap is zero, not nearly so
        assert (aligned[(expected == 0).flatten(1).all(1)] == 0).all()
