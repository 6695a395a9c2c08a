"""What verbs print must read well on the terminals that people have: no word cut, nothing beyond the edge."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from aif_stream.bus.groups import ALL_GROUPS
from aif_stream.cli.dlq_table import groups_table
from aif_stream.cli.lag import table_of
from aif_stream.domain.freshness import Status
from aif_stream.freshness.report import LagReport, PartitionLag, ProbeFigures

every_width = pytest.mark.parametrize("width", [80, 120])
STALL = "the consumer's process is there but does not answer"


def printed(table: RenderableType, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


@every_width
def test_lag_shows_every_figure_whole(width: int) -> None:
    parts = [
        PartitionLag(
            group=group,
            topic=topic,
            partition=number,
            position=123_456_789,
            end=123_469_134,
            lag_records=12_345,
            lag_s=1234.5,
            status=Status.STALL,
            reason=STALL,
            rate_per_s=12_345.0,
            catch_up_s=3600.0,
        )
        for group, topic in ALL_GROUPS.items()
        for number in range(2)
    ]
    report = LagReport(
        partitions=parts, watermark_age_s=1.0, probe=ProbeFigures(), mirrors=[], sources=[], freshness=[], as_of_ms=0
    )
    text = printed(table_of(report, idle=True, width=width), width)
    assert "…" not in text
    for figure in ("123,456,789", "12,345", "1,234.5 s", "3,600.0 s", *ALL_GROUPS):
        assert text.count(figure) >= 2, figure
    assert " ".join(text.split()).count(STALL) == len(ALL_GROUPS), "once for a group"
    assert ("aif.item-updates" in text) == ("123,469,134" in text) == (width == 120)


@every_width
def test_groups_of_dead_letters_keep_their_words_and_only_the_numbers_give_way(width: int) -> None:
    groups = [
        {
            "count": 1000,
            "topic": topic,
            "reason": reason,
            "field": field,
            "oldest_age_s": 200_000.0,
            "newest_age_s": 3.0,
            "attempts": 3,
            "letters": list(range(0, 4000, 4)),
        }
        for topic in ("aif.item-updates", "aif.behaviors")
        for reason, field in (("unknown-type", "attributes.price"), ("not-finite", "content_vector"))
    ]
    text = printed(groups_table(groups, width), width)
    for words in ("unknown-type", "attributes.price", "content_vector", "2 d", "1000"):
        assert text.count(words) >= 2, words
    for topic in ("aif.item-updates", "aif.behaviors"):
        assert topic in text
    assert text.count("…") == len(groups), "each group's numbers are cut, and nothing else"
