# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Curves as SVG in the colours of the page around them, with their values for the page's script."""

import json
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 36
_MOST = 300  # points of a curve; one a pixel or so


class Series(NamedTuple):
    """A named curve: ``x`` and ``y`` of one length."""

    name: str
    x: np.ndarray
    y: np.ndarray


class Chart(NamedTuple):
    """Curves over one another.

    Attributes:
        title (str): Above it.
        series (List[Series]): One or more.
        x_name (str): What x counts.
        x_end (float): Where the x axis ends at least.
        levels (Sequence[Tuple[float, str]]): Horizontal lines with their words.
        span (Tuple[float, float, str], optional): A shaded part of the x axis.
        marks (Sequence[float]): Vertical lines.
        note (str): How to read it.
        percent (bool): Whether values are shares, written in per cent.
        zero (bool): Whether the y axis begins at 0.
    """

    title: str
    series: List[Series]
    x_name: str = 'epoch'
    x_end: float = 0.0
    levels: Sequence[Tuple[float, str]] = ()
    span: Optional[Tuple[float, float, str]] = None
    marks: Sequence[float] = ()
    note: str = ''
    percent: bool = False
    zero: bool = False

    @property
    def latest(self) -> List[Tuple[str, str]]:
        """Name and last value of each curve."""
        return [(s.name, self.word(s.y[-1])) for s in self.series]

    def word(self, value: float) -> str:
        """A value, as it is written."""
        if not np.isfinite(value):
            return str(value)
        return f'{value:.1%}' if self.percent else f'{value:.4g}'

    @property
    def summary(self) -> str:
        """For those who do not see it."""
        parts = []
        for s in self.series:
            known = s.y[np.isfinite(s.y)]
            if len(known):
                low, high = self.word(known.min()), self.word(known.max())
                parts.append(
                    f'{s.name}: from {self.word(known[0])} to {self.word(known[-1])}, '
                    f'lowest {low}, highest {high}'
                )
        levels = [f'line at {self.word(value)}: {text}' for value, text in self.levels]
        return f'{self.title} by {self.x_name}. ' + '; '.join(parts + levels)

    def svg(self) -> Markup:
        """The picture and, in a script element, the values."""
        thinned = [thin(s.x, s.y) for s in self.series]
        x_low = 0.0
        x_high = max(self.x_end, *(float(t[0][-1]) for t in thinned))
        x_high = x_high if x_high > x_low else x_low + 1
        known = [v[np.isfinite(v)] for t in thinned for v in t[2:]]
        known = np.concatenate([*known, [value for value, _ in self.levels]])
        known = known if len(known) else np.zeros(1)
        y_low, y_high = float(known.min()), float(known.max())
        if self.zero or 0 <= y_low < 0.25 * y_high:
            y_low = min(y_low, 0.0)
        room = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
        y_high += room
        y_low -= 0.0 if y_low == 0 else room

        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

        def to_x(x):
            return _LEFT + (np.asarray(x) - x_low) / (x_high - x_low) * (right - _LEFT)

        def to_y(y):
            return bottom - (np.asarray(y) - y_low) / (y_high - y_low) * (bottom - _TOP)

        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
            f'aria-label="{escape(self.summary)}">'
        ]
        if self.span is not None:
            start, end = to_x(np.clip(self.span[:2], x_low, x_high))
            parts.append(
                f'<rect class="span" x="{start:.1f}" y="{_TOP}" width="{end - start:.1f}" '
                f'height="{bottom - _TOP}"/><text class="label" text-anchor="end" '
                f'x="{max(end - 5, start + 75):.1f}" y="{bottom - 7}">{escape(self.span[2])}</text>'
            )
        ticks = _ticks(y_low, y_high, 5)
        decimals = 0 if len({f'{tick:.0%}' for tick in ticks}) == len(ticks) else 1
        for tick in ticks:
            y = float(to_y(tick))
            text = f'{tick:.3g}' if not self.percent else f'{tick:.{decimals}%}'
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" text-anchor="end" x="{_LEFT - 7}" y="{y + 4:.1f}">'
                f'{text}</text>'
            )
        for tick in _ticks(x_low, x_high, 6, whole=x_high - x_low > 4):
            x = float(to_x(tick))
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 17}">'
                f'{tick:,.6g}</text>'
            )
        middle = (_LEFT + right) / 2
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{middle}" y="{HEIGHT - 4}">'
            f'{escape(self.x_name)}</text>'
        )
        for mark in self.marks:
            x = float(to_x(mark))
            parts.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
            )
        for i, (x, y, low, high) in enumerate(thinned):
            good = np.isfinite(low)
            if len(self.series[i].x) > _MOST and good.any():
                edge = np.concatenate([to_y(high[good]), to_y(low[good])[::-1]])
                along = np.concatenate([to_x(x[good]), to_x(x[good])[::-1]])
                parts.append(f'<path class="band c{i % 8}" d="{_path(along, edge)}Z"/>')
            parts.append(f'<path class="line c{i % 8}" d="{_path(to_x(x), to_y(y))}"/>')
            if np.isfinite(y).sum() <= 12:
                parts += [
                    f'<circle class="dot c{i % 8}" cx="{px:.1f}" cy="{py:.1f}" r="3"/>'
                    for px, py in zip(to_x(x), to_y(y))
                    if np.isfinite(py)
                ]
        for value, text in self.levels:
            y = float(to_y(value))
            parts.append(
                f'<line class="level" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="label" text-anchor="end" x="{right - 4}" '
                f'y="{y - 5 if y > _TOP + 16 else y + 15:.1f}">{escape(text)}</text>'
            )
        parts.append(f'<line class="cursor" y1="{_TOP}" y2="{bottom}" hidden=""/></svg>')
        values = dict(
            x=[x_low, x_high],
            px=[_LEFT, right],
            width=WIDTH,
            x_name=self.x_name,
            percent=self.percent,
            series=[
                dict(name=s.name, x=_numbers(x), y=_numbers(y))
                for s, (x, y, *_) in zip(self.series, thinned)
            ],
        )
        # "<" cannot end the script element when it is written like this
        text = json.dumps(values, separators=(',', ':')).replace('<', '\\u003c')
        parts.append(f'<script type="application/json">{text}</script>')
        return Markup(''.join(parts))


def thin(x: np.ndarray, y: np.ndarray, most: int = _MOST) -> Tuple[np.ndarray, ...]:
    """At most so many points.

    Args:
        x (np.ndarray): Ascending.
        y (np.ndarray): May hold values that are not finite.
        most (int): Points.

    Returns:
        tuple[np.ndarray, ...]: x, and of what lies around it the mean, lowest
        and highest y; NaN where there is no finite one.
    """
    y = np.where(np.isfinite(y), y, np.nan)
    if len(x) <= most:
        return x, y, y, y
    edges = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    count = np.add.reduceat((~np.isnan(y)).astype(float), edges)
    with np.errstate(invalid='ignore', divide='ignore'):
        mean = np.add.reduceat(np.nan_to_num(y), edges) / count
    sizes = np.diff(np.append(edges, len(x)))
    low, high = np.fmin.reduceat(y, edges), np.fmax.reduceat(y, edges)
    return np.add.reduceat(x, edges) / sizes, mean, low, high


def _ticks(low: float, high: float, number: int, whole: bool = False) -> List[float]:
    locator = MaxNLocator(number, steps=[1, 2, 2.5, 5, 10], integer=whole)
    return [t + 0.0 for t in locator.tick_values(low, high) if low - 1e-12 <= t <= high + 1e-12]


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG's path, with gaps where y is NaN."""
    parts, pen = [], 'M'
    for px, py in zip(x.tolist(), y.tolist()):
        if py != py:
            pen = 'M'
            continue
        parts.append(f'{pen}{px:.1f} {py:.1f}')
        pen = 'L'
    return ''.join(parts)


def _numbers(values: np.ndarray) -> List[Optional[float]]:
    return [float(f'{v:.6g}') if np.isfinite(v) else None for v in values.tolist()]
