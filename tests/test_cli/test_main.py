# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What all commands have in common."""

import os
import pty
import signal
import subprocess
import sys

import pytest
from tiny_algorithms import tiny_form

import mmdense
from mmdense.cli import build_parser, main
from mmdense.cli.main import COMMANDS
from mmdense.utils import model_index

EXAMPLE = tiny_form()


def ended(*arguments):
    """The exit code of a command, run in this process."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture
def broken(monkeypatch):
    """Makes ``mmdense list`` end with an exception."""

    def raises(error):
        def run(*_):
            raise error

        monkeypatch.setattr('mmdense.apis.hub.list_models', run)

    return raises


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    for command in ('', *(c.name for c in COMMANDS)):
        assert ended(*filter(None, [command]), '--help') == 0
        lines = capsys.readouterr().out.rstrip('\n').split('\n')
        # the prompt comes below it
        assert len(lines) <= 23 or command, '\n'.join(lines)
        assert max(map(len, lines)) <= 80, command
        if not command:
            for name, _, about in COMMANDS:
                assert any(line.split()[:1] == [name] and about in line for line in lines), name


def test_no_command_is_wrong_usage(capsys):
    assert ended() == 2
    printed = capsys.readouterr()
    assert not printed.out and 'usage: mmdense' in printed.err and 'check' in printed.err
    assert ended('nothing') == 2
    capsys.readouterr()
    assert ended('list', '--nothing') == 2
    err = capsys.readouterr().err  # of the command that it is about
    assert err.startswith('usage: mmdense list [') and 'unrecognized arguments: --nothing' in err
    assert ended('-q', 'list', '-v') == 2
    printed = capsys.readouterr()
    assert '--quiet and --verbose exclude each other' in printed.err and not printed.out


def test_version(capsys):
    assert ended('--version') == 0
    assert capsys.readouterr().out == f'mmdense {mmdense.__version__}\n'


@pytest.mark.parametrize('flag', ['quiet', 'verbose', 'debug'])
def test_output_flags_before_and_after_the_command(flag):
    parser = build_parser()
    for words in (['list', f'--{flag}'], [f'--{flag}', 'list']):
        args = parser.parse_args(words)
        flags = {name: getattr(args, name) for name in ('quiet', 'verbose', 'debug')}
        assert flags == dict(dict.fromkeys(flags, False), **{flag: True}), words


def test_errors_are_one_line_and_debug_shows_all(broken, capsys, monkeypatch):
    monkeypatch.delenv('MMDENSE_TRACEBACK', raising=False)
    broken(OSError(28, 'No space left on device'))
    assert ended('list') == 1
    printed = capsys.readouterr()
    assert printed.err.startswith('mmdense: error: ') and printed.err.count('\n') == 1
    assert 'No space left' in printed.err and not printed.out
    assert printed.err.endswith('; --debug shows all)\n')
    broken(FileExistsError(17, 'File exists', 'bad.pth'))
    assert ended('list') == 1
    assert capsys.readouterr().err == 'mmdense: error: bad.pth: File exists\n'
    broken(OSError(28, 'No space left on device'))
    for words in (['--debug', 'list'], ['list', '--debug']):
        with pytest.raises(OSError, match='No space left'):
            main(words)
    assert 'MMDENSE_TRACEBACK' not in os.environ


def test_a_pattern_that_finds_nothing(capsys):
    assert ended('list', 'zzz') == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("mmdense: error: no recipe has 'zzz' in its name")


def test_interrupted(broken, capsys):
    broken(KeyboardInterrupt())
    assert ended('list') == 130
    assert capsys.readouterr().err == 'mmdense: interrupted\n'


def test_a_broken_pipe_that_is_not_ours_is_an_error(broken, capsys):
    broken(BrokenPipeError(32, 'of a worker'))
    with pytest.raises(BrokenPipeError, match='of a worker'):
        main(['list'])


def test_nobody_reads_on(repo):
    """As in ``mmdense list | head``: neither an error nor a word."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'mmdense', 'list'],
        env=dict(os.environ, PYTHONPATH=str(repo)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b''
    assert process.wait(timeout=120) == 141


def test_remarks_of_other_packages_go_to_stderr_as_asked(monkeypatch, capsys):
    from mmengine.logging import MMLogger, print_log

    def run(*_):
        for level in (10, 20, 30, 40):
            # MMEngine shows an equal warning once
            print_log(f'{flag} level {level}', 'current', level=level)
        return ['name']

    logger = MMLogger.get_current_instance()
    level = logger.level
    monkeypatch.setattr('mmdense.apis.hub.list_models', run)
    monkeypatch.setattr('mmdense.apis.hub.find_weights', lambda name: None)
    for flag, seen in (('-q', [40]), ('', [30, 40]), ('-v', [20, 30, 40])):
        assert ended('list', *filter(None, [flag])) == 0
        printed = capsys.readouterr()
        assert printed.out == 'name  -  no weights\n'
        for number in (10, 20, 30, 40):
            assert (f' level {number}' in printed.err) == (number in seen), (flag, number)
    assert logger.level == level


@pytest.mark.slow
def test_no_color(repo, tmp_path):
    """On a terminal, where a logger of other packages would write in colours."""
    (tmp_path / 'user.py').write_text(
        'import sys\n'
        'from mmengine.logging import print_log\n'
        'import mmdense.apis.hub, mmdense.cli\n'
        "mmdense.apis.hub.list_models = lambda *_: print_log('red', 'current', 40) or []\n"
        "mmdense.cli.main(['list'])\n"
    )
    env = dict(os.environ, PYTHONPATH=str(repo), TERM='xterm-256color')
    coloured = {}
    for name, value in (('NO_COLOR', '1'), ('UNRELATED', '1')):
        ours, theirs = pty.openpty()
        changed = {k: v for k, v in env.items() if k != 'NO_COLOR'}
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / 'user.py')],
            env=dict(changed, **{name: value}),
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        written = b''
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
        assert process.wait(timeout=120) == 0, written
        os.close(ours)
        assert b'red' in written
        coloured[name] = b'\x1b[' in written
    assert coloured == dict(NO_COLOR=False, UNRELATED=True)


def test_python_m_mmdense_ends_with_the_code(run):
    assert run(sys.executable, '-m', 'mmdense', '--nothing').returncode == 2


def completions(capsys, tmp_path, *words):
    """What bash would complete the last word to."""
    assert ended('completion', 'bash') == 0
    script = tmp_path / 'completion.bash'
    script.write_text(capsys.readouterr().out)
    typed = ' '.join(f"'{word}'" for word in ('mmdense', *words))
    script = (
        f'source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; '
        '_shtab_mmdense; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ran = subprocess.run(
        ['bash', '-c', script], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60
    )
    return set(ran.stdout.split())


def test_completion_in_bash(capsys, tmp_path, require):
    require('shtab')
    (tmp_path / 'weights.pth').touch()
    assert {'check', 'env', 'export', 'list'} <= completions(capsys, tmp_path, '')
    assert completions(capsys, tmp_path, 'exp') == {'export'}
    assert completions(capsys, tmp_path, 'export', '--t') == {'--to'}
    assert completions(capsys, tmp_path, 'export', '--to', 't') == {'torchvision', 'timm'}
    assert completions(capsys, tmp_path, 'check', 'wei') == {'weights.pth'}
    assert EXAMPLE.full_recipe in completions(
        capsys, tmp_path, 'download', EXAMPLE.full_recipe[:-5]
    )
    for start in (EXAMPLE.recipe, EXAMPLE.method):
        names = {name for e in model_index.entries() for name in model_index.entry_names(e)}
        wanted = {name for name in names if name.startswith(start)}
        assert completions(capsys, tmp_path, 'download', start) == wanted


@pytest.mark.parametrize('command', ['pretrain', 'plan'])
def test_completion_by_option(command, capsys, tmp_path, require):
    require('shtab')
    (tmp_path / f'{EXAMPLE.method}_mine.pth').touch()
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos.json').touch()

    def after(*words):
        return completions(capsys, tmp_path, command, *words)

    assert after('--backbone', 'res') == {f'resnet{n}' for n in (18, 34, 50, 101, 152)}
    # those that something was published for
    published = [
        name
        for entry in model_index.entries()
        for name in entry.get('Alias', [])
        if 'Weights' in entry or 'Authors Weights' in entry
    ]
    for method in model_index.methods():
        wanted = {name for name in published if name.startswith(f'{method}_r50')}
        assert after('--init', f'{method}_r50') == wanted
    assert f'{EXAMPLE.method}_mine.pth' in after('--init', EXAMPLE.method[:4])
    assert after('--prefix', 'pho') == after('--out', 'pho') == {'photos'}
    assert after('pho') == {'photos', 'photos.json'}
    assert after('--seed', 'pho') == set()


def test_folders_are_completed_to_folders(capsys, tmp_path, require):
    require('shtab')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run.pth').touch()
    for words in (
        ['report'],
        ['check', 'run.pth', '--images'],
        ['show', 'run.pth', 'run', '--out'],
        ['download', EXAMPLE.recipe, '--dest'],
    ):
        assert completions(capsys, tmp_path, *words, 'ru') == {'run'}, words
    # of tensors
    assert completions(capsys, tmp_path, 'check', 'run.pth', '--prefix', 'ru') == set()
    both = completions(capsys, tmp_path, 'export', 'run.pth', '--to', 'timm', '--out', 'ru')
    assert both == {'run', 'run.pth'}


@pytest.mark.parametrize('shell, sign', [('zsh', '#compdef mmdense'), ('tcsh', 'complete mmdense')])
def test_completion_of_other_shells(capsys, shell, sign, require):
    require('shtab')
    assert ended('completion', shell) == 0
    script = capsys.readouterr().out
    assert sign in script and 'export' in script and 'torchvision' in script


def test_completion_without_shtab(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'shtab', None)
    assert 'pip install shtab' in str(ended('completion', 'bash'))


def test_help_comes_at_once(run):
    """It imports neither PyTorch nor what stands on it; nor does completion, of every shell."""
    for call in ('c.build_parser()', 'c.main(["completion", "bash"])'):
        code = f'import sys, mmdense.cli as c; {call}; sys.exit("torch" in sys.modules)'
        assert run(sys.executable, '-c', code).returncode == 0, call


def test_ctrl_c(repo, tmp_path):
    """The signal itself, while a command waits."""
    (tmp_path / 'user.py').write_text(
        'import time, mmdense.apis.hub, mmdense.cli\n'
        "mmdense.apis.hub.list_models = lambda *_: print('waits', flush=True) or time.sleep(60)\n"
        "mmdense.cli.main(['list'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / 'user.py')],
        env=dict(os.environ, PYTHONPATH=str(repo)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'waits\n'
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == 'mmdense: interrupted\n'
