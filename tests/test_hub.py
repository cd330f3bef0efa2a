# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The zoo's functions and commands. Weights come from a server on this machine."""

import hashlib
import io
import re
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models import ResNet

import mmdense
from mmdense.apis import hub
from mmdense.cli import main
from mmdense.models.selfsup import registered_algorithms
from mmdense.utils import model_index
from mmdense.utils.errors import CheckpointError, InputError

FULL, AUTHORS = 'densecl_resnet50_8xb32-coslr-200e_in1k', 'densecl_resnet50_8xb32-coslr-800e_coco'
SLOTCON, NONE = 'slotcon_resnet50_8xb64-coslr-800e_coco', 'detco_resnet50_8xb32-coslr-800e_coco'
TINY = dict(backbone=dict(depth=18), neck=dict(in_channels=512, hid_channels=16))
TINY_DENSECL = dict(TINY, queue_len=32)
TINY_SLOTCON = dict(TINY, num_prototypes=8, head=dict(predictor=dict(hid_channels=16)))


@pytest.fixture
def publish(server, tmp_path, monkeypatch):
    """Puts a file on the server in place of a recipe's."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'cache'))

    def call(name, saved, key, file='backbone.pth', **more):
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        content = saved if isinstance(saved, bytes) else buffer.getvalue()
        url = server.put(file.format(hashlib.sha256(content).hexdigest()[:8]), content)
        entries = [dict(e, **{key: url}, **more) if e['Name'] == name else e for e in before]
        monkeypatch.setattr(model_index, 'entries', lambda: entries)
        return url

    before = model_index.entries()
    return call


def changed(model):
    """A state dict, none of whose numbers a new model has."""
    return {k: v + 0.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}


def equal(found, wanted):
    assert found.keys() == wanted.keys()
    return all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_names():
    names = mmdense.list_models()
    assert names == sorted(names) and {FULL, AUTHORS, SLOTCON, NONE} < set(names)
    assert mmdense.list_models('slotcon') == [name for name in names if 'slotcon' in name]
    assert mmdense.list_models('densecl*800e') == [AUTHORS]
    assert mmdense.list_models('densecl_r50') == [FULL, AUTHORS]
    assert mmdense.list_models('densecl_r50*coco') == [AUTHORS]
    assert mmdense.list_models('nothing') == []


@pytest.mark.parametrize('name', [AUTHORS, 'densecl_r50_coco'])
def test_random_weights(name, capfd):
    model = mmdense.get_model(name, **TINY_DENSECL)
    assert type(model).__name__ == 'DenseCL' and not model.training
    assert model.backbone.depth == 18 and model.queue.queue_len == 32
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert capfd.readouterr().out == ''
    model.init_weights()  # as a runner does
    assert equal(model.state_dict(), before)


def test_unknown_names():
    with pytest.raises(InputError, match=f"no recipe 'densecl_r50_coc'; the nearest: .*{FULL[:7]}"):
        mmdense.get_model('densecl_r50_coc', pretrained=True)
    with pytest.raises(AttributeError, match='no_such'):
        mmdense.no_such  # noqa: B018


def test_a_license_that_forbids_commercial_use_is_said(monkeypatch, tmp_path, capsys):
    """By `list`, `download` and `check`; a license that does not forbid it is not."""
    restricted = [e['Name'] for e in model_index.entries() if 'NC' in e.get('Authors License', '')]
    free = [e['Name'] for e in model_index.entries() if e.get('Authors License') == 'MIT']
    said = 'CC BY-NC 4.0: not for commercial use'
    main(['list'])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    monkeypatch.setattr(hub, 'download', lambda name, dest: f'{dest}/{name}.pth')
    for names, forbidden in ((restricted, True), (free, False)):
        assert names
        for name in names:
            weights = hub.find_weights(name)
            expected = forbidden and weights.by_authors
            assert lines[name].endswith(', non-commercial') == expected
            main(['download', name, '--dest', str(tmp_path)])
            printed = capsys.readouterr()
            assert (said in printed.err) == expected and printed.out.endswith(f'{name}.pth\n')
            entry = hub._find_entry(name)
            published = entry['Authors Weights'].rsplit('/', 1)[-1]
            for path in (f'/somewhere/{name}.pth', f'https://elsewhere.org/{published}'):
                assert hub.find_restriction(path) == (said if forbidden else '')
    assert hub.find_restriction('backbone.pth') == ''
    torch.save(ResNet(18).state_dict(), tmp_path / f'{restricted[0]}.pth')
    main(['check', str(tmp_path / f'{restricted[0]}.pth')])
    assert re.search(f'license +{re.escape(said)}\n', capsys.readouterr().out)


def test_a_renamed_file_of_the_authors_keeps_its_license(tmp_path, capsys):
    """The format says it; it is that of the metafile."""
    licenses = {
        entry['In Collection']: entry['Authors License']
        for entry in model_index.entries()
        if 'NC' in entry.get('Authors License', '')
    }
    formats = {f.license for kind in registered_algorithms() for f in kind.AUTHORS if f.license}
    assert formats == set(licenses.values())
    kinds = {
        kind.__name__ for kind in registered_algorithms() if any(f.license for f in kind.AUTHORS)
    }
    kinds.remove('UPDETR')  # its weights are on Google Drive: no entry has them
    assert {name.rstrip('V12') for name in licenses} == {name.rstrip('V12') for name in kinds}

    resnet = {f'module.encoder_q.{k}': v for k, v in ResNet(18).state_dict().items()}
    queue = {'module.queue': torch.rand(8, 16), 'module.queue_ptr': torch.zeros(1).long()}
    head = {
        'module.encoder_q.fc.weight': torch.rand(8, 512),
        'module.encoder_q.fc.bias': torch.rand(8),
    }
    keys = {k.replace('_q', '_k'): v for k, v in {**resnet, **head}.items()}
    words = 'CC BY-NC 4.0: not for commercial use, if the authors released these weights'
    mlp = {name.replace('fc.', 'fc.0.'): tensor for name, tensor in head.items()}  # v2's
    # a training checkpoint, and those that were released, which have the query encoder alone
    for rest in ({**head, **keys, **queue}, head, mlp):
        torch.save({'state_dict': {**resnet, **rest}}, tmp_path / 'renamed.pth')
        main(['check', str(tmp_path / 'renamed.pth')])
        assert re.search(f'license +{re.escape(words)}\n', capsys.readouterr().out)
    torch.save(ResNet(18).state_dict(), tmp_path / 'own.pth')
    main(['check', str(tmp_path / 'own.pth')])
    assert 'license' not in capsys.readouterr().out


def test_no_weights():
    with pytest.raises(InputError, match=f'no weights were published for {NONE}; .*detco-aa_resn'):
        mmdense.get_model(NONE, pretrained=True)
    assert hub.find_weights(NONE) is None
    assert hub.find_weights('densecl_r50_in1k').url.startswith('https://download.openmmlab.com/')


@pytest.mark.parametrize('name, options', [(FULL, TINY_DENSECL), (SLOTCON, TINY_SLOTCON)])
def test_whole_algorithms(publish, server, name, options):
    saved = changed(mmdense.get_model(name, **options))
    kind = dict(algorithm=dict(d='DenseCL', s='SlotCon')[name[0]])
    product = 'backbone' if name == FULL else 'encoder_k.module.backbone'
    meta = dict(mmdense=dict(kind, product=product))
    publish(name, dict(state_dict=saved, meta=meta), 'Weights', 'model-{}.pth')
    for _ in range(2):
        model = mmdense.get_model(name, pretrained=True, **options)
        assert equal(model.state_dict(), saved) and not model.training
    assert len(server.asked) == 1
    with pytest.raises(CheckpointError, match='nothing was loaded'):
        mmdense.get_model(name, pretrained=True, **dict(options, neck=dict(in_channels=512)))


def test_mmpretrains_file(publish):
    """The one that is published: its queues have other names."""
    from mmpretrain.registry import MODELS

    config = Config.fromfile(model_index.config_path(FULL))
    config.merge_from_dict(dict(model=TINY_DENSECL))
    head = dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = MODELS.build(dict(config.model, head=head))
    saved = changed(theirs)
    assert 'queue_ptr' in saved
    publish(FULL, dict(state_dict=saved, meta={}), 'Weights', 'densecl-{}.pth')
    model = mmdense.get_model(FULL, pretrained=True, **TINY_DENSECL)
    for part in ('backbone', 'neck', 'encoder_k.module'):
        theirs_part = {k: v for k, v in saved.items() if k.startswith(f'{part}.')}
        ours = {k: v for k, v in model.state_dict().items() if k.startswith(f'{part}.')}
        assert equal(ours, theirs_part)
    assert torch.equal(model.queue.keys, saved['queue'])
    assert torch.equal(model.queue2.keys, saved['queue2'])


@pytest.mark.parametrize('name, options', [(AUTHORS, TINY_DENSECL), (SLOTCON, TINY_SLOTCON)])
def test_backbones(publish, monkeypatch, name, options):
    """Of the product, and of what learns beside it; and the log says that the rest is random."""
    lines = []
    monkeypatch.setattr('mmengine.logging.print_log', lambda line, *_, **__: lines.append(line))
    saved = changed(mmdense.get_model(name, **options).backbone)
    url = publish(name, dict(state_dict=saved, author='DenseCL'), 'Authors Weights')
    for source in (True, url):
        model = mmdense.get_model(name, pretrained=source, **options)
        assert equal(model.backbone.state_dict(), saved)
        assert equal(model.get_product().state_dict(), saved)
        assert lines.pop().endswith('its backbone alone: neck and head are untrained')
    model.init_weights()
    assert equal(model.get_product().state_dict(), saved)


def test_of_another_algorithm(prototypes_checkpoint):
    model = mmdense.get_model(FULL, pretrained=str(prototypes_checkpoint), **TINY_DENSECL)
    found = torch.load(prototypes_checkpoint, weights_only=False)['state_dict']
    prefix = 'encoder_k.module.backbone.'
    wanted = {k[len(prefix) :]: v for k, v in found.items() if k.startswith(prefix)}
    assert equal(model.backbone.state_dict(), wanted)


def test_what_is_not_the_published_file(publish):
    publish(AUTHORS, b'<html>Log in</html>', 'Authors Weights')
    with pytest.raises(CheckpointError, match='answers with a web page'):
        mmdense.get_model(AUTHORS, pretrained=True)
    publish(AUTHORS, dict(a=torch.ones(1)), 'Authors Weights', SHA256='0' * 64)
    with pytest.raises(CheckpointError, match='not the file that was published'):
        mmdense.get_model(AUTHORS, pretrained=True)


def test_command_downloads(publish, server, tmp_path, capsys):
    url = publish(FULL, dict(a=torch.ones(1)), 'Weights', 'densecl-{}.pth')
    for _ in range(2):
        main(['download', 'densecl_r50_in1k', '--dest', str(tmp_path / 'new')])
        path = tmp_path / 'new' / url.rsplit('/')[-1]
        assert capsys.readouterr().out.splitlines()[-1] == str(path) and path.is_file()
    assert len(server.asked) == 1


def test_command_names_the_authors_files(publish, tmp_path):
    """They are called backbone.pth, or download?id=…"""
    publish(AUTHORS, dict(a=torch.ones(1)), 'Authors Weights', 'download')
    main(['download', AUTHORS, '--dest', str(tmp_path)])
    assert torch.load(tmp_path / f'{AUTHORS}.pth', weights_only=True)['a'] == 1


@pytest.mark.parametrize(
    'name, content, error',
    [
        (NONE, None, 'no weights were published for'),
        ('moco', None, 'there is no recipe'),
        (AUTHORS, b'{"error": "quota"}', 'is not a PyTorch file'),
    ],
)
def test_command_says_what_is_wrong(publish, tmp_path, capsys, name, content, error):
    if content:
        publish(name, content, 'Authors Weights')
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(['download', name, '--dest', str(tmp_path / 'dest')])
        err = capsys.readouterr().err
        assert ended.value.code == 1 and error in err and err.count('\n') == 1, err
    assert {p.suffix for p in (tmp_path / 'dest').glob('*')} <= {'.lock'}


def test_command_lists(repo, tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'mmdense', 'list', 'densecl'],
        cwd=tmp_path,
        env=dict(PYTHONPATH=str(repo), PATH='/usr/bin:/bin', HOME=str(tmp_path)),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert lines[FULL] == ['densecl_r50_in1k', 'full']
    assert lines[AUTHORS] == ['densecl_r50_coco', "authors'"]
    assert lines['densecl_resnet101_8xb32-coslr-200e_in1k'] == ['-', "authors'"]
    assert list(lines) == mmdense.list_models('densecl')


def test_every_short_form_is_listed(capsys):
    main(['list'])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    main(['list', '_r50_'])
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert (
        sorted(listed) == sorted(n for n in hub.short_names().values() if '_r50_' in n)
        and 'pixpro_r50_in1k' in listed
    )


@pytest.mark.parametrize(
    'method, backbone, name',
    [
        ('densecl', 'resnet50', 'densecl_r50_coco'),
        ('pixpro', 'resnet50', 'pixpro_r50_in1k'),
        ('densecl', 'resnet101', 'densecl_resnet101_8xb32-coslr-200e_in1k'),
        ('slotcon', 'resnet101', None),
        ('densecl', 'resnet18', None),
    ],
)
def test_a_plan_advises_what_was_published(method, backbone, name):
    from types import SimpleNamespace

    from mmdense.apis import planning

    plan = SimpleNamespace(options=planning.Options(method=method, backbone=backbone))
    found = planning.published_weights(plan)
    assert found == name
    images = planning.Images({}, 100, 100)
    machine = planning.Machine('cpu', '', 0, 0, 1, '')
    cfg = Config(dict(model={}, train_dataloader=dict(num_workers=1)))
    times = planning.Times(8, 0.1, 1.0, 1e9, 0)
    line = planning.advise(times, images, machine, cfg, weights=found)[0]
    if name:
        assert line.endswith(f'--init {name} starts from published weights')
    else:
        assert 'CHECKPOINT starts from weights of your own; none were published' in line
