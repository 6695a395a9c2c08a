"""Charts as SVG and one HTML page around them: no library, no script, readable from a file."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_WIDTH: Final = 780
_HEIGHT: Final = 380
_LEFT: Final = 64
_RIGHT: Final = 220  # room for the legend
_TOP: Final = 16
_BOTTOM: Final = 48
# Okabe and Ito's colours, told apart by colour-blind readers as well.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


class Point(NamedTuple):
    """A value with its interval (equal to it where there is none) and a word beside it."""

    x: float
    y: float
    low: float
    high: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points under one name; joined by a line, or (``line`` false) standing alone."""

    name: str
    points: Sequence[Point]
    line: bool = True


class _Axis:
    """Values → pixels, with round ticks. Logarithmic to base 2 or 10 where asked."""

    def __init__(self, values: Sequence[float], first: float, last: float, base: int = 0) -> None:
        self._base = base
        low, high = self._of(min(values)), self._of(max(values))
        margin = 0.06 * (high - low) or 0.5
        self._low, self._high = low - margin, high + margin
        self._first, self._last = first, last
        step = 10 ** math.floor(math.log10((self._high - self._low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (self._high - self._low) / (step * factor) <= 6)
        step = max(1.0, round(step)) if base else step
        start = math.ceil(self._low / step)
        marks = [n * step for n in range(start, math.floor(self._high / step) + 1)]
        self.ticks = [(self._place(mark), _round(base**mark if base else mark)) for mark in marks]

    def _of(self, value: float) -> float:
        return math.log(value, self._base) if self._base else value

    def _place(self, inner: float) -> float:
        share = (inner - self._low) / (self._high - self._low)
        return round(self._first + share * (self._last - self._first), 1)

    def at(self, value: float) -> float:
        return self._place(self._of(value))


def _round(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def chart(x_name: str, y_name: str, series: Sequence[Series], log_x: int = 0) -> str:
    """An SVG with axes, intervals and legend. ``log_x``: base of a logarithmic x axis, 0 for a linear one."""
    points = [point for line in series for point in line.points]
    x = _Axis([p.x for p in points], _LEFT, _WIDTH - _RIGHT, log_x)
    y = _Axis([v for p in points for v in (p.low, p.high)], _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(f"{y_name} by {x_name}")}">']
    for place, text in x.ticks:
        parts.append(f'<line class="grid" x1="{place}" x2="{place}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{place}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{text}</text>')
    for place, text in y.ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place}" y2="{place}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{place + 4}" text-anchor="end">{text}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(x_name)}</text>')
    parts.append(
        f'<text x="14" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {_HEIGHT / 2})">'
        f"{html.escape(y_name)}</text>"
    )
    for number, line in enumerate(series):
        parts += _drawn(line, x, y, _COLOURS[number % len(_COLOURS)])
        place = _TOP + 12 + 20 * number
        parts.append(
            f'<circle cx="{_WIDTH - _RIGHT + 16}" cy="{place - 4}" r="4" fill="{_COLOURS[number % len(_COLOURS)]}"/>'
        )
        parts.append(f'<text x="{_WIDTH - _RIGHT + 26}" y="{place}">{html.escape(line.name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _drawn(line: Series, x: _Axis, y: _Axis, colour: str) -> list[str]:
    parts = []
    if line.line:
        path = " ".join(f"{x.at(p.x)},{y.at(p.y)}" for p in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for p in line.points:
        place = x.at(p.x)
        parts.append(f'<line x1="{place}" x2="{place}" y1="{y.at(p.low)}" y2="{y.at(p.high)}" stroke="{colour}"/>')
        title = html.escape(f"{line.name} {p.label}: {p.y:.4g} [{p.low:.4g}, {p.high:.4g}]")
        parts.append(f'<circle cx="{place}" cy="{y.at(p.y)}" r="3.5" fill="{colour}"><title>{title}</title></circle>')
        if p.label:
            parts.append(f'<text class="label" x="{place + 6}" y="{y.at(p.y) - 6}">{html.escape(p.label)}</text>')
    return parts


def table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def page(title: str, about: str, parts: Sequence[str]) -> str:
    """One HTML page, complete in itself; ``parts`` are HTML already."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
svg {{ width: 100%; height: auto; font-size: 12px }} .grid {{ stroke: #ddd }} .label {{ fill: #555; font-size: 11px }}
table {{ border-collapse: collapse; margin: 1rem 0 }} td, th {{ padding: .25rem .6rem; text-align: right }}
tr:nth-child(even) {{ background: #f5f5f5 }} td:first-child, th:first-child {{ text-align: left }}
p {{ white-space: pre-line }}
</style>
<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>
{"".join(parts)}
</html>
"""
