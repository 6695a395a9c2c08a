"""Small plots as inline SVG: no script, no font, no file beside the page; colours come from the page's style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray

WIDTH: Final = 720
HEIGHT: Final = 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 32, 36, 54
# Points of a line; more would only lie on each other in a plot of this width.
_MOST_POINTS: Final = 600

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """A line: x and y (n), its name, and the class that colours it (a, b, c)."""

    name: str
    x: Floats
    y: Floats
    colour: str = "a"
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """``to_unit`` places a value between 0 and 1; ticks are (value, text)."""

    title: str
    ticks: Sequence[tuple[float, str]]
    to_unit: Callable[[Floats], Floats]


def linear(title: str, low: float, high: float, unit: str = "") -> Axis:
    """From low to high with about five round ticks."""
    high = high if high > low else low + 1.0
    step = 10.0 ** np.floor(np.log10((high - low) / 4.0))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if (high - low) / (step * m) <= 5)
    ticks = np.arange(np.ceil(low / step), np.floor(high / step + 1e-9) + 1) * step
    return Axis(title, [(t, f"{t:g}{unit}") for t in ticks.tolist()], lambda v: (v - low) / (high - low))


def logarithmic(title: str, low: float, high: float, unit: str = "") -> Axis:
    """Powers of ten that hold both ends."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    last = max(last, first + 1)
    ticks = [(10.0**e, f"{10.0**e:g}{unit}") for e in range(first, last + 1)]
    return Axis(title, ticks, lambda v: (np.log10(np.maximum(v, 10.0**first)) - first) / (last - first))


def percentile(nines: int) -> Axis:
    """0 %, 90 %, 99 %, … : the distance to 100 % on a logarithmic scale, as HdrHistogram draws it."""
    ticks = [(0.0, "0 %"), (0.5, "50 %")]
    ticks += [(1.0 - 10.0**-i, f"{100.0 - 10.0 ** (2 - i):g} %") for i in range(1, nines + 1)]
    return Axis("percentile", ticks, lambda v: -np.log10(np.maximum(1.0 - v, 10.0**-nines)) / nines)


def chart(series: Sequence[Series], x: Axis, y: Axis, label: str) -> str:
    """One plot with its legend; ``label`` says in words what it shows."""
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    parts += [_x_tick(_across(x.to_unit(np.array([value])))[0], text) for value, text in x.ticks]
    parts += [_y_tick(_up(y.to_unit(np.array([value])))[0], text) for value, text in y.ticks]
    parts += [_marks(one, x, y) for one in series]
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x.title)}</text>')
    parts.append(f'<text class="axis" x="4" y="{_TOP - 16}">{escape(y.title)}</text></svg>')
    if len(series) > 1:
        names = "".join(f'<span class="key {one.colour}">{escape(one.name)}</span>' for one in series)
        parts.append(f"<p class=legend>{names}</p>")
    return "".join(parts)


def _across(unit: Floats) -> Floats:
    return _LEFT + np.clip(unit, 0, 1) * (WIDTH - _LEFT - _RIGHT)


def _up(unit: Floats) -> Floats:
    return HEIGHT - _BOTTOM - np.clip(unit, 0, 1) * (HEIGHT - _TOP - _BOTTOM)


def _x_tick(at: float, text: str) -> str:
    line = f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
    return f'{line}<text x="{at:.1f}" y="{HEIGHT - _BOTTOM + 24}" text-anchor="middle">{escape(text)}</text>'


def _y_tick(at: float, text: str) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
    return f'{line}<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>'


def _marks(series: Series, x: Axis, y: Axis) -> str:
    known = np.isfinite(series.x) & np.isfinite(series.y)
    if not known.any():
        return ""
    across, up = _across(x.to_unit(series.x[known])), _up(y.to_unit(series.y[known]))
    some = np.unique(np.linspace(0, across.size - 1, min(across.size, _MOST_POINTS)).astype(int))
    points = [f"{a:.1f},{b:.1f}" for a, b in zip(across[some].tolist(), up[some].tolist(), strict=True)]
    if series.dots:
        dots = "".join(f'<circle cx="{p.partition(",")[0]}" cy="{p.partition(",")[2]}" r="2"/>' for p in points)
        return f'<g class="dot {series.colour}">{dots}</g>'
    return f'<polyline class="line {series.colour}" points="{" ".join(points)}"/>'
