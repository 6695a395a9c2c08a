"""The part of ``aif lag`` about explanations: how far they are behind their answers."""

from __future__ import annotations

from typing import Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from aif_stream.domain.gap import CLOSE_WITHIN_S
from aif_stream.freshness.report import ExplanationGap

_COLUMNS: Final = ("waiting", "oldest", "asked/s", "done/s", "p50", "p99")


def gap_of(gap: ExplanationGap) -> list[RenderableType]:
    """A row for each priority, and how many workers would close it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("explanations", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for each in gap.priorities:
        table.add_row(
            each.priority,
            f"{each.waiting:,}",
            seconds(each.oldest_s),
            _rate(each.arrival_per_s),
            _rate(each.service_per_s),
            *("–" if value is None else seconds(value) for value in (each.p50_s, each.p99_s)),
        )
    return [table, Text(f"workers    {_workers(gap)}", style="yellow" if _short(gap) else "")]


def _short(gap: ExplanationGap) -> bool:
    return gap.workers < 1 or (gap.workers_needed or 0) > gap.workers


def _workers(gap: ExplanationGap) -> str:
    there = "1 is there" if gap.workers == 1 else f"{gap.workers} are there"
    if gap.workers_needed is None:
        return f"{there}; how many are needed shows when one has worked for some seconds"
    if gap.workers_needed == 0:
        return f"{there}, nothing waits"
    pace = "" if gap.worker_per_s is None else f" ({gap.worker_per_s:,.1f}/s each)"
    return f"{there}; {gap.workers_needed} would have all of it done within {CLOSE_WITHIN_S:.0f} s{pace}"


def _rate(value: float | None) -> str:
    return "?" if value is None else f"{value:,.1f}"


def seconds(value: float | None) -> str:
    if value is None:
        return "?"
    return "0" if value == 0 else f"{value * 1000:.0f} ms" if value < 1 else f"{value:,.1f} s"
