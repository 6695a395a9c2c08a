"""The groups of ``aif dlq ls`` as a table, for a wide and a narrow terminal."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aif_stream.bus.letters import ranges
from aif_stream.cli.values import plain

_GAP: Final = 2
_WIDE: Final = 110  # columns that hold the longest topic, reason and field beside some numbers


def groups_table(groups: list[dict[str, Any]], width: int) -> RenderableType:
    """Groups of letters for ``width`` columns. On a narrow screen a topic stands above its groups and the ages are one
    column; the numbers of the letters give way, never the words."""
    if width >= _WIDE:
        return _groups(groups, width, topic=True)
    parts: list[RenderableType] = []
    for topic in dict.fromkeys(group["topic"] for group in groups):
        parts += [
            Text(plain(topic), style="bold"),
            _groups([g for g in groups if g["topic"] == topic], width, topic=False),
            Text(),
        ]
    return Group(*parts)


def _groups(groups: list[dict[str, Any]], width: int, *, topic: bool) -> Table:
    names = (
        "letters",
        *(("topic",) if topic else ()),
        "reason",
        "field",
        *(("oldest", "newest") if topic else ("age",)),
    )
    rows = [_cells(group, topic=topic) for group in groups]
    table, room = Table(box=None, pad_edge=False), width
    for at, name in enumerate((*names, "tries")):
        least = max(len(name), *(len(row[at]) for row in rows))
        is_number = name not in ("topic", "reason", "field")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
        room -= least + _GAP
    table.add_column("numbers", no_wrap=True)
    for *cells, numbers in rows:
        # Cut here: a column that may not wrap takes its room from the others.
        # Text: what a letter says is no markup.
        table.add_row(*map(Text, cells), numbers if len(numbers) <= room else numbers[: max(room - 1, 0)] + "…")
    return table


def _cells(group: dict[str, Any], *, topic: bool) -> tuple[str, ...]:
    oldest, newest = _age(group["oldest_age_s"]), _age(group["newest_age_s"])
    words = [plain(group[name]) for name in ("topic", "reason", "field")[0 if topic else 1 :]]
    ages = (oldest, newest) if topic else (oldest if oldest == newest else f"{newest} – {oldest}",)
    return (str(group["count"]), *words, *ages, str(group["attempts"]), ranges(group["letters"]))


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
