"""What the dashboard's charts are made of."""

from __future__ import annotations

from aif_stream.bus.groups import ALL_GROUPS, EXPLAIN_GROUPS, LIVE_GROUPS
from aif_stream.domain.freshness import Status
from aif_stream.freshness.overview import History
from aif_stream.freshness.report import LagReport, PartitionLag, ProbeFigures


def test_records_that_wait_are_those_that_hold_back_the_watermark() -> None:
    parts = [
        PartitionLag(
            group=group,
            topic=topic,
            partition=0,
            position=0,
            end=7,
            lag_records=7,
            lag_s=1.0,
            status=Status.OK,
            reason="",
            rate_per_s=0.0,
            catch_up_s=None,
        )
        for group, topic in {**ALL_GROUPS, **EXPLAIN_GROUPS}.items()
    ]
    history = History()
    history.add(
        LagReport(
            partitions=parts,
            watermark_age_s=1.0,
            probe=ProbeFigures(),
            mirrors=[],
            sources=[],
            freshness=[],
            as_of_ms=5,
        )
    )
    assert [point.lag_records for point in history.since(0)] == [7 * len(LIVE_GROUPS)]
