# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""``mmdense completion``."""

from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter

# Arguments that name no file.
_NO_FILES = ('pattern', 'prefix')


def add_completion(command: ArgumentParser) -> None:
    """Its arguments."""
    command.formatter_class = RawDescriptionHelpFormatter
    command.epilog = (
        'to use it:\n'
        '  bash  eval "$(mmdense completion bash)", in ~/.bashrc\n'
        '  zsh   mmdense completion zsh > DIR/_mmdense, where DIR is one of $fpath\n'
        '  tcsh  mmdense completion tcsh > ~/.mmdense.tcsh, and source it in ~/.tcshrc'
    )
    command.add_argument('shell', choices=['bash', 'zsh', 'tcsh'])


def run_completion(args: Namespace) -> None:
    """Prints the script."""
    try:
        import shtab
    except ImportError:
        raise SystemExit('mmdense: error: completion needs shtab: pip install shtab') from None
    from mmdense import hub

    from .main import build_parser

    parser = build_parser()
    (commands,) = (action for action in parser._actions if action.dest == 'command')
    for name, command in commands.choices.items():
        for action in command._actions:
            if name == 'download' and action.dest == 'name':
                action.choices = hub.list_models()
            elif _is_file(action):
                action.complete = shtab.FILE
    print(shtab.complete(parser, args.shell))


def _is_file(action: Action) -> bool:
    takes_text = action.nargs != 0 and action.type is None and not action.choices
    return takes_text and action.dest not in _NO_FILES
