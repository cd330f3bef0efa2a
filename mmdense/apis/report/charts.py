# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw curves as SVG in the theme colours of a report, with their values for its script."""

import json
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 36
_MOST = 300  # points of a curve, about one a pixel


class Series(NamedTuple):
    """Hold a named curve: ``x`` and ``y`` of one length."""

    name: str
    x: np.ndarray
    y: np.ndarray


class Chart(NamedTuple):
    """Hold curves that share their axes.

    Attributes:
        title (str): Title above the chart.
        series (List[Series]): One curve or more.
        x_name (str): Name of the x axis.
        x_end (float): The least end of the x axis.
        levels (Sequence[Tuple[float, str]]): Horizontal lines, each with a label.
        span (Tuple[float, float, str], optional): A shaded part of the x axis with a label.
        marks (Sequence[float]): Vertical lines.
        spots (Sequence[Tuple[float, str]]): Vertical lines, each with a label.
        note (str): An explanation below the chart.
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
    spots: Sequence[Tuple[float, str]] = ()
    note: str = ''
    percent: bool = False
    zero: bool = False

    @property
    def latest(self) -> List[Tuple[str, str]]:
        """Return name and last value of each curve."""
        return [(s.name, self.word(s.y[-1])) for s in self.series]

    def word(self, value: float) -> str:
        """Format a value."""
        if not np.isfinite(value):
            return str(value)
        return f'{value:.1%}' if self.percent else f'{value:.4g}'

    @property
    def summary(self) -> str:
        """Describe the chart for screen readers."""
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
        """Draw the chart; a script element holds the values for the script of the report."""
        thinned = [thin(s.x, s.y) for s in self.series]
        axes = self._axes(thinned)
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
            f'aria-label="{escape(self.summary)}">',
            *self._draw_span(axes),
            *self._draw_ticks(axes),
            *self._draw_marks(axes),
        ]
        for i, curve in enumerate(thinned):
            parts += _draw_curve(axes, curve, f'c{i % 8}', len(self.series[i].x) > _MOST)
        parts += self._draw_levels(axes)
        parts.append(f'<line class="cursor" y1="{_TOP}" y2="{axes.bottom}" hidden=""/></svg>')
        parts.append(self._script(axes, thinned))
        return Markup(''.join(parts))

    def _axes(self, thinned: List[Tuple[np.ndarray, ...]]) -> '_Axes':
        """Return axes that all values fit in."""
        x_high = max(self.x_end, *(float(t[0][-1]) for t in thinned))
        x_high = x_high if x_high > 0 else 1.0
        known = [v[np.isfinite(v)] for t in thinned for v in t[2:]]
        known = np.concatenate([*known, [value for value, _ in self.levels]])
        known = known if len(known) else np.zeros(1)
        y_low, y_high = float(known.min()), float(known.max())
        if self.zero or 0 <= y_low < 0.25 * y_high:
            y_low = min(y_low, 0.0)
        room = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
        return _Axes(0.0, x_high, y_low - (0.0 if y_low == 0 else room), y_high + room)

    def _draw_span(self, axes: '_Axes') -> Iterator[str]:
        if self.span is not None:
            start, end = axes.to_x(np.clip(self.span[:2], axes.x_low, axes.x_high))
            yield (
                f'<rect class="span" x="{start:.1f}" y="{_TOP}" width="{end - start:.1f}" '
                f'height="{axes.bottom - _TOP}"/><text class="label" text-anchor="end" '
                f'x="{max(end - 5, start + 75):.1f}" y="{axes.bottom - 7}">'
                f'{escape(self.span[2])}</text>'
            )

    def _draw_ticks(self, axes: '_Axes') -> Iterator[str]:
        ticks = _ticks(axes.y_low, axes.y_high, 5)
        decimals = 0 if len({f'{tick:.0%}' for tick in ticks}) == len(ticks) else 1
        for tick in ticks:
            y = float(axes.to_y(tick))
            text = f'{tick:.3g}' if not self.percent else f'{tick:.{decimals}%}'
            yield (
                f'<line class="grid" x1="{_LEFT}" x2="{axes.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" text-anchor="end" x="{_LEFT - 7}" y="{y + 4:.1f}">'
                f'{text}</text>'
            )
        for tick in _ticks(axes.x_low, axes.x_high, 6, whole=axes.x_high - axes.x_low > 4):
            x = float(axes.to_x(tick))
            yield (
                f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{axes.bottom + 17}">'
                f'{tick:,.6g}</text>'
            )
        middle = (_LEFT + axes.right) / 2
        yield (
            f'<text class="tick" text-anchor="middle" x="{middle}" y="{HEIGHT - 4}">'
            f'{escape(self.x_name)}</text>'
        )

    def _draw_marks(self, axes: '_Axes') -> Iterator[str]:
        for mark in self.marks:
            x = float(axes.to_x(mark))
            yield (f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{axes.bottom}"/>')
        for spot, text in self.spots:
            x = float(axes.to_x(spot))
            side, gap = ('start', 5) if x < (_LEFT + axes.right) / 2 else ('end', -5)
            y = axes.bottom - 24  # the labels of levels are above it
            yield (
                f'<line class="level" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{axes.bottom}"/>'
                f'<text class="label" text-anchor="{side}" x="{x + gap:.1f}" y="{y}">'
                f'{escape(text)}</text>'
            )

    def _draw_levels(self, axes: '_Axes') -> Iterator[str]:
        for value, text in self.levels:
            y = float(axes.to_y(value))
            yield (
                f'<line class="level" x1="{_LEFT}" x2="{axes.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="label" text-anchor="end" x="{axes.right - 4}" '
                f'y="{y - 5 if y > _TOP + 16 else y + 15:.1f}">{escape(text)}</text>'
            )

    def _script(self, axes: '_Axes', thinned: List[Tuple[np.ndarray, ...]]) -> str:
        values = dict(
            x=[axes.x_low, axes.x_high],
            px=[_LEFT, axes.right],
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
        return f'<script type="application/json">{text}</script>'


class _Axes(NamedTuple):
    """Map values to places in the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM

    def to_x(self, x: Any) -> np.ndarray:
        """Return the places of x values."""
        share = (np.asarray(x) - self.x_low) / (self.x_high - self.x_low)
        return _LEFT + share * (self.right - _LEFT)

    def to_y(self, y: Any) -> np.ndarray:
        """Return the places of y values."""
        share = (np.asarray(y) - self.y_low) / (self.y_high - self.y_low)
        return self.bottom - share * (self.bottom - _TOP)


def _draw_curve(
    axes: _Axes, curve: Tuple[np.ndarray, ...], style: str, banded: bool
) -> Iterator[str]:
    """Yield the band of the values around a thinned curve, its line, and dots of a short one."""
    x, y, low, high = curve
    good = np.isfinite(low)
    if banded and good.any():
        edge = np.concatenate([axes.to_y(high[good]), axes.to_y(low[good])[::-1]])
        along = np.concatenate([axes.to_x(x[good]), axes.to_x(x[good])[::-1]])
        yield f'<path class="band {style}" d="{_path(along, edge)}Z"/>'
    yield f'<path class="line {style}" d="{_path(axes.to_x(x), axes.to_y(y))}"/>'
    if np.isfinite(y).sum() <= 12:
        for px, py in zip(axes.to_x(x), axes.to_y(y)):
            if np.isfinite(py):
                yield f'<circle class="dot {style}" cx="{px:.1f}" cy="{py:.1f}" r="3"/>'


def thin(x: np.ndarray, y: np.ndarray, most: int = _MOST) -> Tuple[np.ndarray, ...]:
    """Reduce a curve to a number of points.

    Args:
        x (np.ndarray): Places, ascending.
        y (np.ndarray): Values, some of which may not be finite.
        most (int): The largest number of points.

    Returns:
        tuple[np.ndarray, ...]: x, and the mean, lowest and highest y around it; NaN where there
        is no finite one.
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
    """Return the path of a line, with gaps where y is NaN."""
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
