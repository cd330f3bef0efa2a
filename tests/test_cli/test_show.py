# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest

from mmdense.cli import main


def test_prints_what_it_wrote(exported, images, tmp_path, capsys):
    out = tmp_path / 'out'
    main(['show', exported(18)[0], f'{images}/01.jpg', '--out', str(out), '--size', '64'])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(out / 'index.html')
    assert sorted(printed) == sorted(map(str, out.iterdir()))


def test_another_architecture(images, tmp_path, capsys):
    """Of an exported backbone, which says what it is, or whose tensors do; no other."""
    from mmengine.registry import MODELS, DefaultScope

    from mmdense.checkpoints import save_backbone

    kind = dict(type='mmpretrain.ConvNeXt', arch='atto', gap_before_final_norm=False)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        tensors = MODELS.build(kind).state_dict()
    command = [f'{images}/01.jpg', '--out', str(tmp_path / 'out'), '--size', '64']
    save_backbone({'a.weight': tensors['norm3.weight']}, str(tmp_path / 'a.pth'))
    with pytest.raises(SystemExit):
        main(['show', str(tmp_path / 'a.pth'), *command])
    assert 'holds a backbone of unknown kind' in capsys.readouterr().err
    save_backbone(tensors, str(tmp_path / 'old.pth'))
    save_backbone(tensors, str(tmp_path / 'backbone.pth'), backbone=kind)
    for name in ('old.pth', 'backbone.pth'):
        main(['show', str(tmp_path / name), *command])
        assert capsys.readouterr().out.endswith(f'{tmp_path}/out/index.html\n')


@pytest.mark.parametrize(
    'checkpoint, path, arguments, words',
    [
        ('none.pth', '{images}', [], 'none.pth does not exist'),
        ('{exported}', 'none', [], 'none does not exist'),
        ('{exported}', '.', [], 'no image found in'),
        ('{exported}', '{images}', ['--point', '2', '0'], 'x of --point must be in [0, 1]'),
        ('{exported}', '{images}', ['--size', '9'], '--size must be at least 64, got 9'),
        ('{exported}', '{images}', ['--config', 'none.py'], 'none.py'),
    ],
)
def test_a_mistake_is_one_line(
    checkpoint, path, arguments, words, exported, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    checkpoint = checkpoint.format(exported=exported(18)[0])
    with pytest.raises(SystemExit) as ended:
        main(['show', checkpoint, path.format(images=images), *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and len(lines) == 1
    assert lines[0].startswith('mmdense: error: ') and words in lines[0]
    assert not (tmp_path / 'work_dirs').exists()
