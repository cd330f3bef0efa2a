# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define ``mmdense completion``."""

from argparse import (
    Action,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from typing import Iterable

# Arguments that name no file.
_NO_FILES = ('pattern', 'prefix')
_FOLDERS = ('DIR', 'FOLDER')
# of --backbone; all others are mmpretrain's, whose import takes seconds
_RESNETS = [f'resnet{depth}' for depth in (18, 34, 50, 101, 152)]


def add_completion(command: ArgumentParser) -> None:
    """Declare the arguments."""
    command.formatter_class = RawDescriptionHelpFormatter
    command.epilog = (
        'to use it:\n'
        '  bash  eval "$(mmdense completion bash)", in ~/.bashrc\n'
        '  zsh   mmdense completion zsh > DIR/_mmdense, where DIR is one of $fpath\n'
        '  tcsh  mmdense completion tcsh > ~/.mmdense.tcsh, and source it in ~/.tcshrc'
    )
    command.add_argument('shell', choices=['bash', 'zsh', 'tcsh'])


def run_completion(args: Namespace) -> None:
    """Print the script."""
    try:
        import shtab
    except ImportError:
        raise SystemExit('mmdense: error: completion needs shtab: pip install shtab') from None
    from .main import build_parser

    parser = build_parser()
    (commands,) = (action for action in parser._actions if action.dest == 'command')
    for name, command in commands.choices.items():
        for action in command._actions:
            _complete(name, action)
    print(shtab.complete(parser, args.shell))


def _complete(command: str, action: Action) -> None:
    """Set the words or files that an argument of a command is completed to."""
    import shtab

    from mmdense.apis import hub
    from mmdense.utils.model_index import methods
    from mmdense.utils.plugins import find_plugins

    if (command, action.dest) == ('download', 'name'):
        action.choices = [*hub.short_names().values(), *hub.list_models()]
    elif action.dest == 'backbone':
        action.choices = _RESNETS
    elif action.dest == 'method':
        action.choices = [*methods(), *find_plugins()]
    elif action.dest == 'init':
        action.complete = _words_or_files(filter(hub.find_weights, hub.short_names().values()))
    elif {action.metavar, action.dest.upper()} & {*_FOLDERS}:
        action.complete = shtab.DIRECTORY
    elif _is_file(action):
        action.complete = shtab.FILE


def _words_or_files(words: Iterable[str]) -> dict:
    """Return a completion by words or files for shtab; tcsh completes files only."""
    import shtab

    words = ' '.join(words)
    bash = f'_mmdense_words_or_files() {{\n  compgen -W "{words}" -- "$1"\n  compgen -f -- "$1"\n}}'
    zsh = (
        '_mmdense_words_or_files() {\n'
        f"  _alternative 'recipes:recipe:({words})' 'files:file:_files'\n"
        '}'
    )
    names = dict.fromkeys(('bash', 'zsh'), '_mmdense_words_or_files')
    return {**shtab.FILE, **names, 'preamble': dict(bash=bash, zsh=zsh)}


def _is_file(action: Action) -> bool:
    if action.nargs == 0 or action.choices or action.dest in _NO_FILES:
        return False
    try:
        return action.type is None or bool(action.type('word'))
    except (ValueError, ArgumentTypeError):  # a number
        return False
