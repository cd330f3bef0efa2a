# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define the ten figures that docs/benchmarks.md begins with: what a user gains."""

from typing import NamedTuple, Sequence

import methods
import models
from common import figure


class Gain(NamedTuple):
    """Define a line of the table by the row that it is taken from.

    Attributes:
        words (str): What is gained, for somebody who has not read the page.
        results (tuple[str]): Names of results that may have the row; the first that has it counts.
        what (str): The row's.
        peer (str): The row's.
    """

    words: str
    results: Sequence[str]
    what: str
    peer: str


def listed():
    """Return the gains in the order of the table: input, algorithms, optimizer, runs."""
    own = {name: getattr(methods.load(name), 'GAINS', ()) for name in methods.names()}
    of_algorithms = [
        Gain(f'{models.title(name)}: {words}', results, models.title(name) + what, peer)
        for name, gains in own.items()
        for words, *results, what, peer in gains
    ]
    runs = [gain for gain in of_algorithms if 'end_to_end' in str(gain.results)]
    return [*INPUT, *(gain for gain in of_algorithms if gain not in runs), LARS, *runs]


INPUT = [
    Gain('Two views of an image, as MoCo v2, on a core', ('input',), 'MoCo v2 views', 'mmpretrain'),
    Gain(
        'The same, with colours and blur left to the GPU',
        ('input',),
        "MoCo v2 views, worker's part",
        'mmpretrain',
    ),
    Gain('Two views of an image, as MoCo v2, on a core', ('input',), 'MoCo v2 views', 'lightly'),
]
LARS = Gain('A step of LARS, R50', ('gpu', 'step-lars'), 'LARS', 'mmpretrain LARS')


def gains(results):
    """Yield the gains that the results have, each with its result and its row.

    Args:
        results (dict[str, dict]): By name, as the scripts write them.
    """
    for gain in listed():
        rows = [
            (results[name], row)
            for name in gain.results
            for row in results.get(name, {}).get('rows', ())
            if (row['what'], row.get('peer')) == (gain.what, gain.peer)
        ]
        if rows:
            yield (gain, *rows[0])


def factor(row):
    """Return how many times as fast ours is, or how many times less memory it takes."""
    ratio = row['ratio'][0]
    return ratio if row['unit'] == 'images/s' else 1 / ratio


def line(gain, row, when):
    """Return a line of the table.

    Args:
        gain (Gain): What is gained.
        row (dict): Row of a result.
        when (str): Date and machine.
    """
    unit = row['unit']
    decimals = {'s': 2, 'ms': 1, 'MiB': 0, 'images/s': 1}[unit]
    ours, theirs = (f'{figure(row[k][:1] * 3, decimals)} {unit}' for k in ('ours', 'theirs'))
    words = f'{factor(row):.2g} times as fast'
    if unit == 'MiB':
        words = f'1/{factor(row):.2g} of the memory'
    peer = "the paper's formula" if gain.peer == 'written out' else gain.peer.split()[0]
    cells = [gain.words, ours, peer, theirs, words, when]
    return f'| {" | ".join(cells)} |'
