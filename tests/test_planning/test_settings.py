# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The rules hold for any images and any machine; the config says what the table says."""

import re
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from tiny_algorithms import algorithms_of, each_method, tiny_form

from mmdense.apis import planning
from mmdense.apis.planning import Images, Machine, Network, Options
from mmdense.apis.planning.settings import choose_size
from mmdense.apis.planning.survey import find_backbone
from mmdense.apis.planning.view_settings import read_views, scale_views
from mmdense.models.selfsup.momentum import power_of_two
from mmdense.utils.errors import DataError, InputError

EXAMPLE = tiny_form()
WITH_PROTOTYPES = tiny_form(*algorithms_of('teacher')).method

R50 = Network({}, 2048, 28_000_000, 86_000_000)
PROTOTYPES = {'grouping.slot_embed.weight': (256, 256)}
CPU = Machine('cpu', '', 0, 16 << 30, 8, '')
GPU = Machine('cuda', 'A100', 8, 80 << 30, 64, 'bfloat16')
recipe_of = lru_cache(maxsize=None)(planning.read_recipe)
base_of = lru_cache(maxsize=None)(planning.read_config)


def images_of(count, side=480):
    return Images(dict(data_root='/images', data_prefix=''), count, side)


def derive(count, machine=GPU, network=R50, side=480, base=None, **options):
    options = Options(**options)
    recipe = recipe_of(options.method)
    return planning.derive_settings(images_of(count, side), machine, network, recipe, options, base)


def changes(rows):
    return {key: value for row in rows for key, value in row.config.items()}


def shown(rows):
    return {row.name: row.value for row in rows}


machines = st.builds(
    Machine,
    device=st.sampled_from(['cpu', 'cuda']),
    name=st.just('a GPU'),
    gpus=st.just(64),
    memory=st.integers(1 << 28, 200 << 30),
    cores=st.integers(1, 256),
    half=st.sampled_from(['', 'float16', 'bfloat16']),
)


@settings(deadline=None, max_examples=400)
@given(
    method=st.sampled_from(planning.METHODS),
    count=st.integers(8, 3_000_000),
    side=st.integers(1, 9000),
    gpus=st.integers(1, 64),
    machine=machines,
    init=st.sampled_from([None, 'a.pth']),
    epochs=st.one_of(st.none(), st.integers(1, 5000)),
)
def test_rules(method, count, side, gpus, machine, init, epochs):
    recipe = recipe_of(method)
    asked = dict(method=method, gpus=gpus, init=init, epochs=epochs)
    if count < 8 * gpus:
        with pytest.raises(DataError, match='at least 8 are needed for each of'):
            derive(count, machine, side=side, **asked)
        return
    rows = derive(count, machine, side=side, **asked)
    new = changes(rows)
    assert all(row.reason and '\n' not in row.reason for row in rows)
    base = recipe.auto_scale_lr.base_batch_size
    total = new.get('auto_scale_lr.base_batch_size', base)
    batch = new.get('train_dataloader.batch_size', recipe.train_dataloader.batch_size)
    assert total == batch * gpus <= count
    assert batch >= 2 and (batch == power_of_two(batch) or total == base)
    assert total <= max(base, 2 * gpus)
    lr = new.get('optim_wrapper.optimizer.lr', recipe.optim_wrapper.optimizer.lr)
    power = 0.5 if recipe.optim_wrapper.optimizer.type in ('mmdense.LARS', 'LARS', 'AdamW') else 1
    usual = recipe.optim_wrapper.optimizer.lr
    assert lr == pytest.approx(usual * (total / base) ** power, rel=1e-5)
    length = new.get('train_cfg.max_epochs', 800)
    assert length * (count // total) >= 1
    assert epochs in (None, length)
    if epochs is None:
        limit = 20_000 if machine.device == 'cpu' else planning.settings.COCO_IMAGES_SEEN
        assert 1 <= length <= 2000 and (length == 1 or length * count <= 1.5 * limit)
    if 'queue_len' in recipe.model:
        queue = new.get('model.queue_len', recipe.model.queue_len)
        steps = length * (count // total)
        # as many steps old as in the recipe, or fewer
        age = recipe.model.queue_len // base
        most = min(count, recipe.model.queue_len, total * steps / 20, total * age)
        most = max(total, most)
        assert total <= queue <= most and queue % total == 0
        assert queue == power_of_two(queue) or total != power_of_two(total)
        # the largest power of two: not less than half of what there is
        assert total != power_of_two(total) or 2 * queue > most
    assert 'model.momentum' not in new  # a faster twin gives its keys away by their age
    workers = new.get('train_dataloader.num_workers', recipe.train_dataloader.num_workers)
    assert 1 <= workers <= 8 and (workers == 1 or workers * gpus <= machine.cores)
    for schedule in new.get('param_scheduler', [s.to_dict() for s in recipe.param_scheduler]):
        warmup = {'WarmupCosineLR': 'warmup', 'LinearWarmupLR': 'end'}.get(schedule['type'])
        if warmup:
            assert 1 <= schedule[warmup] <= max(1, length // 10)
        else:
            assert not {'T_max', 'end'} & set(schedule)  # as long as the run
    size = shown(rows)['view size']
    assert 64 <= int(size.split()[0]) <= (480 if method in ('detreg', 'updetr') else 224)


@given(st.integers(1, 20_000))
def test_view_size(side):
    size = choose_size(side, 224)
    assert size % 32 == 0 and 64 <= size <= 224
    assert side < 64 or side >= 224 or side - 32 < size <= side


@pytest.mark.parametrize('method', planning.METHODS)
def test_blur_is_as_much_of_a_view_as_in_the_recipe(method):
    """Two pixels' blur of 96 px views cost a segmenter four points (docs/evidence.md)."""
    new = changes(derive(3435, CPU, method=method, size=96))
    sigmas = [value for key, value in new.items() if key.endswith('.sigma')]
    groups = read_views(recipe_of(method).train_pipeline)
    shares = {group.crop.place: side / group.size for group, side in scale_views(groups, 96)}
    blurred = [group for group in groups if group.blurs]
    shares = [shares.get(g.crop.place, 96 / 224) for g in blurred]  # patches as the largest
    assert sigmas == [pytest.approx((0.1 * share, 2 * share), rel=1e-2) for share in shares]
    assert 'blur' not in shown(derive(3435, CPU, method=method))


def test_170_images():
    """The question that people ask."""
    rows = shown(derive(170))
    assert rows['batch'] == '32' and rows['queue'] == '128'
    assert rows['epochs'] == '2,000' and rows['lr'] == '0.0375'
    assert rows['precision'] == 'bfloat16'
    rows = shown(derive(3424, CPU, epochs=3))
    assert rows['queue'] == '512'
    rows = shown(derive(170, CPU))
    assert rows['epochs'] == '118' and rows['workers'] == 2
    rows = shown(derive(170, method=WITH_PROTOTYPES))
    assert rows['prototypes'] == 16 and rows['warm-up'] == '100 epochs'


@pytest.mark.parametrize('method', planning.METHODS)
def test_coco_is_the_recipe(method):
    """Eight large GPUs and COCO's images: what the paper did, but for how it is written."""
    epochs = recipe_of(method).train_cfg.max_epochs
    assert epochs in (50, 200, 300, 800)
    asked = None if epochs == 800 else epochs  # the rules' length, or a published one
    new = changes(derive(118_287, gpus=8, method=method, epochs=asked))
    incidental = {'randomness.seed'}
    prefixes = ('train_dataloader.dataset.', 'default_hooks.p', 'optim_wrapper.')
    left = {k: v for k, v in new.items() if k not in incidental and not k.startswith(prefixes)}
    assert left == {}
    assert 'optim_wrapper.optimizer.lr' not in new


@each_method(planning.METHODS)
def test_the_preset_for_small_data_is_by_the_rules(method):
    """What it says of itself: 2,000 images, one GPU of 24 GB, mixed precision."""
    machine = Machine('cuda', '', 1, 24 << 30, 8, 'bfloat16')
    network = planning.survey_network(recipe_of(method), None, 224)
    base = planning.read_config(planning.base_config(method, 2000))
    new = changes(derive(2000, machine, network, method=method, base=base))
    prefixes = ('train_dataloader.dataset.', 'default_hooks.pr', 'optim_wrapper.', 'randomness.')
    assert [key for key in new if not key.startswith(prefixes)] == []
    assert 'optim_wrapper.optimizer.lr' not in new


@settings(deadline=None, max_examples=100)
@given(
    method=st.sampled_from(planning.METHODS),
    count=st.integers(8, 3_000_000),
    side=st.integers(1, 9000),
    init=st.sampled_from([None, 'a.pth']),
    machine=machines,
)
def test_what_is_inherited_changes_nothing(method, count, side, init, machine):
    """The same settings from the preset as from the recipe."""
    merged = []
    for base in (recipe_of(method), base_of(planning.base_config(method, count))):
        rows = derive(count, machine, side=side, base=base, method=method, init=init)
        cfg = Config(base.to_dict())
        for key, value in changes(rows).items():
            cfg.merge_from_dict({re.sub('^pipeline', 'train_pipeline', key): value})
        merged.append(cfg.to_dict())
    assert merged[0].pop('custom_hooks', []) == merged[1].pop('custom_hooks', [])
    assert merged[0] == merged[1]


def test_memory_bounds_the_batch():
    rows = shown(derive(100_000, GPU._replace(memory=8 << 30, half='')))
    # 0.8 · 8 GiB less 16 bytes a parameter, 1.4 · 86 MB an image
    assert rows['batch'] == str(power_of_two((0.8 * (8 << 30) - 16 * 28e6) / (1.4 * 86e6))) == '32'
    assert shown(derive(100_000, GPU._replace(memory=8 << 30)))['batch'] == '64'


def test_going_on_from_weights():
    fresh, going_on = derive(5000), derive(5000, init='a.pth')
    assert changes(going_on)['load_from'] == 'a.pth'
    assert (shown(fresh)['epochs'], shown(going_on)['epochs']) == ('800', '200')
    backbone = derive(5000, init='a.pth', init_whole=False)
    assert changes(backbone)['model.pretrained'] == 'a.pth'
    assert 'load_from' not in changes(backbone)
    rows = derive(500, method=WITH_PROTOTYPES, init='a.pth', init_shapes=PROTOTYPES)
    assert shown(rows)['prototypes'] == 256


def test_refusals():
    with pytest.raises(DataError, match='^3 images in /images: at least 8 are needed, and hund'):
        derive(3)
    with pytest.raises(InputError, match='--gpus 9, but there are 8'):
        derive(1000, gpus=9)
    with pytest.raises(InputError, match='--batch-size 64 × 2 process.* more than 100 images'):
        derive(100, batch_size=64, gpus=2)
    with pytest.raises(InputError, match='--batch-size must be at least 2'):
        derive(100, batch_size=1)
    with pytest.raises(InputError, match=f'method must be one of {planning.METHODS[0]}'):
        planning.read_recipe('moco')


def lookup(cfg, key):
    for name in key.split('.'):
        cfg = cfg[int(name) if isinstance(cfg, list) else name]
    return cfg


TINY = dict(_delete_=True, type='mmpretrain.ConvNeXt', arch='tiny')
CONVNEXT = Network(TINY, 768, 3 * 10**7, 10**8, False)
OPTIONS = dict(
    small=dict(count=170, side=80),
    cpu=dict(count=3000, machine=CPU, workers=0, seed=3),
    large=dict(count=10**6, side=4000, gpus=3),
    init=dict(count=500, init='a.pth'),
    other=dict(
        count=500,
        network=CONVNEXT,
    ),
    transformer=dict(
        count=500,
        network=CONVNEXT._replace(attention=True),
    ),
)


@pytest.mark.parametrize('method', planning.METHODS)
@pytest.mark.parametrize('case', OPTIONS)
def test_config_is_the_settings(method, case):
    count = OPTIONS[case]['count']
    base = planning.base_config(method, count)
    assert base.startswith('small/' if count <= 20_000 else method)
    rows = derive(method=method, base=planning.read_config(base), **OPTIONS[case])
    text = planning.config_text(base, rows, '/work', 'mmdense pretrain "a b"')
    assert max(map(len, text.splitlines())) <= 130
    cfg, recipe = Config.fromstring(text, '.py'), recipe_of(method)
    assert cfg.work_dir == '/work'
    pipelines = [
        dict(pipeline=p) for p in (cfg.train_pipeline, cfg.train_dataloader.dataset.pipeline)
    ]
    for key, value in changes(rows).items():
        if key.startswith('pipeline.'):
            found = [lookup(pipeline, key) for pipeline in pipelines]
        else:
            found = [lookup(cfg, key)]
        for item in found:
            item = item.to_dict() if hasattr(item, 'to_dict') else item
            plain = value
            if isinstance(value, dict):
                plain = {k: v for k, v in value.items() if k != '_delete_'}
            if isinstance(plain, dict):
                assert plain.items() <= item.items(), key
                assert key != 'model.backbone' or plain.keys() == item.keys() - {'_scope_'}
            else:
                assert item == plain, key
    # each setting's reason is beside it, and what is as in the recipe is not there
    joined = ' '.join(line.strip().lstrip('# ') for line in text.splitlines())
    for row in rows:
        assert (f'{row.name}: {row.reason}' in joined) == bool(row.config), row
    types = [(c.model.type, c.model.get('neck', {}).get('type')) for c in (cfg, recipe)]
    assert types[0] == types[1]


VITS = {
    'vit-small': ('deit-small', None),
    'ViT-S/16': ('deit-small', 16),
    'vit_base_patch16_224': ('base', 16),
    'vit_b_16': ('base', 16),
    'vit_large_patch32_384.orig': ('large', 32),
    'deit-tiny': ('deit-tiny', None),
    'deit_small_patch16_224': ('deit-small', 16),
    'visiontransformer-deit-tiny': ('deit-tiny', None),
}


@pytest.mark.parametrize('name', VITS)
def test_names_of_vits_that_people_type(name):
    found = find_backbone(name, recipe_of(EXAMPLE.method).model.backbone)
    arch, patch = VITS[name]
    assert found['type'] == 'mmpretrain.VisionTransformer' and found['arch'] == arch
    assert found.get('patch_size') == patch and found['out_type'] == 'featmap'


def test_a_name_that_is_nearly_a_vit():
    with pytest.raises(InputError, match='the nearest: .*vit-small'):
        find_backbone('vit-smal', recipe_of(EXAMPLE.method).model.backbone)


def test_a_vit_is_known_as_a_transformer():
    recipe = recipe_of(EXAMPLE.method)
    assert planning.survey_network(recipe, 'vit-tiny', 64).attention
    assert not planning.survey_network(recipe, 'convnext-atto', 64).attention


@pytest.mark.parametrize('method', planning.METHODS)
@pytest.mark.parametrize('epochs', [1, 40])
def test_transformers_get_adamw_with_its_reason(method, epochs):
    rows = derive(500, method=method, network=CONVNEXT._replace(attention=True), epochs=epochs)
    if recipe_of(method).optim_wrapper.optimizer.type == 'AdamW':  # a recipe for transformers
        assert 'optim_wrapper.optimizer' not in changes(rows)
        return
    (row,) = [row for row in rows if row.name == 'optimizer']
    assert row.value == 'AdamW' and 'MoCo v3' in row.reason
    new = changes(rows)
    optimizer = new['optim_wrapper.optimizer']
    total = new.get('train_dataloader.batch_size', recipe_of(method).train_dataloader.batch_size)
    base = recipe_of(method).auto_scale_lr.base_batch_size
    lr = pytest.approx(1.5e-4 * base / 256 * (total / base) ** 0.5, rel=1e-5)
    assert optimizer == dict(_delete_=True, type='AdamW', lr=lr, weight_decay=0.1)
    assert new.get('default_hooks.predictor_lr.lr', optimizer['lr']) == optimizer['lr']
    first, *rest = new.get('param_scheduler', recipe_of(method).param_scheduler)
    if first['type'] == 'LinearLR':
        assert first['end'] == max(1, epochs // 10) and len(rest) == (epochs > 1)
    else:  # the recipe's own warm-up
        assert first['type'] in ('WarmupCosineLR', 'LinearWarmupLR')
    assert 'optimizer' not in shown(derive(500, method=method))
