# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import json

import pytest

from mmdense.cli import main


def test_prints_where_the_page_is(tmp_path, capsys):
    data = tmp_path / 'work' / '20260131_100000' / 'vis_data'
    data.mkdir(parents=True)
    line = dict(loss=2.5, time=0.1, epoch=1, iter=5, step=5)
    (data / 'scalars.json').write_text(json.dumps(line))
    main(['report', str(tmp_path / 'work')])
    page = tmp_path / 'work' / 'report.html'
    assert capsys.readouterr().out == f'{page}\n' and page.is_file()
    # the folder of a session will do as well
    main(['report', str(data.parent), '--out', str(tmp_path / 'new' / 'a.html')])
    assert 'aria-label="Loss' in (tmp_path / 'new' / 'a.html').read_text()


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(['report', str(tmp_path)])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and len(lines) == 1
    assert lines[0].startswith(f'mmdense: error: {tmp_path} holds no run')
    assert list(tmp_path.iterdir()) == []
