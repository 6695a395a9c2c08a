"""Figures of reports: what is drawn (``Plot``) and how, as PNG by matplotlib's Agg renderer; no display, no state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from aif_stream.errors import TrainingDataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers as well; yellow is left out: it is lost on white.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKS: Final = "osD^vP*X"
# Inches and dots: on a page of 400 px the smallest letters are 8 px high, in a document of 700 px the lines are sharp.
_WIDTH: Final = 5.8
_HEIGHT: Final = 3.9
_DPI: Final = 150
_PALETTE: Final = 64  # colours of the file: lines and letters need no more, and it is a third as large


class Point(NamedTuple):
    """A value with its interval (equal to it where there is none) and a word beside it."""

    x: float
    y: float
    low: float
    high: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points under one name; joined by a line, or (``line`` false) standing alone. ``colour``: a number; default: the
    place among the series."""

    name: str
    points: Sequence[Point]
    line: bool = True
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure. ``name`` is its file's; ``title`` says what to see. ``ticks``: (place, word), where numbers would
    not do. ``level``: a line of one value (and its word) to compare with. ``across``: values go to the right and the
    ticks' words stand at the left, one under the other."""

    name: str
    title: str
    x: str
    y: str
    series: Sequence[Series]
    scale: Literal["linear", "log2", "log10"] = "linear"
    ticks: Sequence[tuple[float, str]] = ()
    level: tuple[float, str] | None = None
    across: bool = False


def draw(plot: Plot) -> bytes:
    """The figure as PNG. Raises ``TrainingDataError`` where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image
    except ImportError:
        raise TrainingDataError("figures need matplotlib", mend="in a checkout: pip install '.[train]'") from None
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        rows = -(-len(plot.series) // 2) if len(plot.series) > 1 else 0
        figure = Figure(
            figsize=(_WIDTH, _HEIGHT + 0.2 * rows + 0.12 * len(plot.ticks) * plot.across),
            dpi=_DPI,
            layout="constrained",
            facecolor="white",
        )
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if plot.across:
            _across(axes, plot)
        else:
            _axes(axes, plot)
            for number, series in enumerate(_apart(plot)):
                _series(axes, series, number)
        if rows:
            figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
        drawn = io.BytesIO()
        canvas.print_png(drawn, metadata={"Software": None})  # type: ignore[no-untyped-call]
    packed = io.BytesIO()
    Image.open(drawn).convert("RGB").quantize(_PALETTE).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _apart(plot: Plot) -> Sequence[Series]:
    """Series that share their places, each moved aside a little: intervals would lie on each other."""
    places = [point.x for series in plot.series for point in series.points]
    if len(set(places)) == len(places) or plot.scale == "log10":
        return plot.series
    width = (max(places) - min(places)) * 0.008
    moved = []
    for number, series in enumerate(plot.series):
        step = number - (len(plot.series) - 1) / 2
        place = [p.x * 1.025**step if plot.scale == "log2" else p.x + step * width for p in series.points]
        points = [point._replace(x=x) for point, x in zip(series.points, place, strict=True)]
        moved.append(replace(series, points=points))
    return moved


def _axes(axes: Axes, plot: Plot) -> None:
    axes.set_title(plot.title, fontsize=11, fontweight="bold", loc="left", wrap=True)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    places = sorted({point.x for series in plot.series for point in series.points})
    if plot.scale != "linear":
        axes.set_xscale("log", base=2 if plot.scale == "log2" else 10)
    if plot.ticks:
        axes.set_xticks([at for at, _ in plot.ticks], [word for _, word in plot.ticks])
        axes.minorticks_off()
    elif plot.scale == "log2" and len(places) <= 10:
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    elif plot.scale != "linear":
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    if plot.level is not None:
        height, word = plot.level
        axes.axhline(height, color="#666666", linewidth=1, linestyle=":")
        axes.annotate(
            word, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color="#555555"
        )


def _across(axes: Axes, plot: Plot) -> None:
    axes.set_title(plot.title, fontsize=11, fontweight="bold", loc="left", wrap=True)
    axes.set_xlabel(plot.y)
    axes.set_yticks([at for at, _ in plot.ticks], [word for _, word in plot.ticks], fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    if plot.scale != "linear":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    if plot.level is not None:
        axes.axvline(plot.level[0], color="#666666", linewidth=1, linestyle=":")
    for number, series in enumerate(plot.series):
        points = series.points
        axes.errorbar(
            [p.y for p in points],
            [p.x for p in points],
            xerr=[[max(0.0, p.y - p.low) for p in points], [max(0.0, p.high - p.y) for p in points]],
            label=series.name,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKS[number % len(_MARKS)],
            linestyle="none",
            capsize=2.5,
            elinewidth=1.2,
        )


def _series(axes: Axes, series: Series, number: int) -> None:
    colour = number if series.colour is None else series.colour
    points = sorted(series.points, key=lambda point: point.x) if series.line else series.points
    x, y = [point.x for point in points], [point.y for point in points]
    below = [max(0.0, point.y - point.low) for point in points]
    above = [max(0.0, point.high - point.y) for point in points]
    between = "" if not series.line else "--" if series.dashed else "-"
    axes.errorbar(
        x,
        y,
        yerr=[below, above] if any(below) or any(above) else None,
        label=series.name,
        color=_COLOURS[colour % len(_COLOURS)],
        marker=_MARKS[colour % len(_MARKS)],
        markersize=5,
        markerfacecolor="white" if series.dashed else None,
        linestyle=between or "none",
        linewidth=1.6,
        capsize=2.5,
        elinewidth=1,
    )
    for point in points:
        if point.label:
            axes.annotate(
                point.label, (point.x, point.y), xytext=(5, 4), textcoords="offset points", fontsize=8, color="#444444"
            )
