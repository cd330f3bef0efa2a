# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Run ``mmdense check``."""

from argparse import ArgumentParser, Namespace


def add_check(command: ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument('checkpoint', help='path or URL: of a run, exported, or published')
    command.add_argument(
        '--for',
        dest='config',
        metavar='CONFIG',
        help='config of a detector or segmenter: a path, or mmdet::NAME, mmseg::NAME',
    )
    command.add_argument(
        '--images', metavar='FOLDER', help='also check the features of images from here'
    )
    command.add_argument('--prefix', help='take the tensors below this prefix')


def check_check(args: Namespace) -> None:
    """Check the paths."""
    from mmdense.utils.paths import check_checkpoint, check_config, check_images

    check_checkpoint(args.checkpoint)
    if args.config:
        check_config(args.config)
    if args.images:
        check_images(args.images)


def run_check(args: Namespace) -> None:
    """Print the report, and raise an error in the end where the file is of no use."""
    from mmdense.apis import hub, inspection
    from mmdense.utils.errors import CheckpointError

    found = inspection.read(args.checkpoint, args.prefix)
    print(args.checkpoint)
    license = hub.find_restriction(args.checkpoint, found.license)
    _print_facts({**inspection.describe(found), **({'license': license} if license else {})})
    print('health')
    notes = inspection.tensor_health(found)
    _print_notes(notes, args.quiet)
    errors = [note.text for note in notes if note.level == 'error']
    if args.images and not errors:
        rows, notes = inspection.feature_health(args.checkpoint, args.images, args.prefix)
        print(f'features of {args.images}')
        for row in rows:
            print(f'  {row}')
        _print_notes(notes, args.quiet)
    fits = []
    if args.config and not errors:
        fits = inspection.check_fit(
            args.checkpoint, inspection.read_config(args.config), args.prefix
        )
    for fit in fits:
        print(f'{fit.path} of {args.config}')
        _print_fit(fit, inspection.groups(fit.match), args)
        errors += [fit.match.problem] if fit.match.problem else []
        errors += [note.text for note in fit.notes if note.level == 'error']
    if errors:
        raise CheckpointError(errors[0])


def _print_facts(facts: dict) -> None:
    for name, value in facts.items():
        print(f'  {name:10}  {value}')


def _print_notes(notes: list, quiet: bool) -> None:
    for note in notes:
        if note.level != 'ok' or not quiet:
            print(f'  {note.level:10}  {note.text}')


def _print_fit(fit, groups: str, args: Namespace) -> None:
    match = fit.match
    print(f'  {"filled":10}  {fit.filled} of {fit.total} tensors, by SelfSupPretrained')
    facts = {'of them' if not match.problem else 'would fit': groups}
    for name in ('missing', 'misshapen', 'extra', 'new', 'left'):
        names = getattr(match, name)
        if names:
            shown = names if args.verbose or len(names) < 4 else [*names[:3], '…']
            facts[_NAMES[name]] = f'{len(names)}: {", ".join(shown)}'
    _print_facts(facts)
    _print_notes(fit.notes, args.quiet)
    if fit.lines:
        print(f'  add to the config:\n    {fit.lines}')


_NAMES = dict(missing='missing', misshapen='other size', extra='too many')
_NAMES.update(new='new layers', left='not used')
