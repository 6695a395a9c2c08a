from __future__ import annotations

import math

import msgspec
import orjson
from prometheus_client import REGISTRY

from aif_stream.domain.freshness import Status
from aif_stream.freshness.exporter import Exporter
from aif_stream.freshness.report import (
    LagReport,
    MirrorState,
    PartitionLag,
    ProbeFigures,
    SourceState,
    StageLag,
    decode,
    encode,
)

PART = PartitionLag(
    group="aif.nearline",
    topic="aif.item-updates",
    partition=3,
    position=5,
    end=7,
    lag_records=2,
    lag_s=1.25,
    status=Status.STALL,
    reason="no progress for 6 s",
    rate_per_s=0.0,
    catch_up_s=None,
)
MIRROR = MirrorState(server="one", url="http://x", rows=3, applied_age_s=0.5, version="v", status=Status.OK, reason="")
REPORT = LagReport(
    partitions=[PART],
    watermark_age_s=1.25,
    probe=ProbeFigures(last_s=0.03, p50_s=0.02, p99_s=0.09, seen=4, problem=""),
    mirrors=[MIRROR],
    sources=[SourceState(source="shop", ahead_s=5.0, delay_s=0.0, skewed=True)],
    freshness=[StageLag(stage="redis", process="w", p50_s=0.02, p99_s=0.03, seen=9)],
    as_of_ms=1,
)


def changed(**fields: object) -> LagReport:
    return msgspec.structs.replace(REPORT, **fields)


def test_json_has_the_shape_of_the_contract() -> None:
    data = orjson.loads(encode(REPORT))
    (part,) = data["partitions"]
    assert {"group", "topic", "partition", "position", "end", "lag_records", "lag_s", "status"} <= part.keys()
    assert part["status"] == "STALL"
    assert {"last_s", "p50_s", "p99_s"} <= data["probe"].keys()
    assert {"server", "rows", "applied_age_s"} <= data["mirrors"][0].keys()
    assert data["watermark_age_s"] == 1.25
    assert decode(encode(REPORT)) == REPORT


def test_the_worst_age_is_that_of_lag_watermark_mirror_or_probe() -> None:
    assert REPORT.worst_s() == 1.25
    assert changed(probe=ProbeFigures(last_s=0.1, open_s=9.0)).worst_s() == 9.0
    assert changed(mirrors=[msgspec.structs.replace(MIRROR, applied_age_s=4.0)]).worst_s() == 4.0


def test_an_age_that_should_be_known_and_is_not_makes_the_worst_unknown() -> None:
    assert changed(watermark_age_s=None).worst_s() is None
    assert changed(mirrors=[msgspec.structs.replace(MIRROR, applied_age_s=None)]).worst_s() is None
    without = msgspec.structs.replace(MIRROR, applied_age_s=None, rows=None)
    assert changed(mirrors=[without]).worst_s() == 1.25


def test_lag_is_exported_under_both_names_and_series_end_with_their_server() -> None:
    exporter = Exporter()
    exporter.show(REPORT)
    where = {"group": "aif.nearline", "topic": "aif.item-updates", "partition": "3"}
    assert REGISTRY.get_sample_value("aif_consumer_lag_records", where) == 2
    assert REGISTRY.get_sample_value("kafka_consumergroup_group_lag", where) == 2
    assert REGISTRY.get_sample_value("kafka_consumergroup_group_lag_seconds", where) == 1.25
    assert REGISTRY.get_sample_value("aif_consumer_status", where) == 2
    assert REGISTRY.get_sample_value("aif_watermark_age_seconds", {"partition": "aif.item-updates-3"}) == 1.25
    assert REGISTRY.get_sample_value("aif_producer_clock_ahead_seconds", {"source": "shop"}) == 5
    stage = {"stage": "redis", "process": "w", "quantile": "0.99"}
    exporter.show(changed(freshness=[StageLag(stage="redis", process="w", p50_s=0.01, p99_s=29.6, seen=7)]))
    assert REGISTRY.get_sample_value("aif_freshness_recent_seconds", stage) == 29.6
    probe = {"stage": "probe", "process": "monitor", "quantile": "0.99"}
    assert REGISTRY.get_sample_value("aif_freshness_recent_seconds", probe) == REPORT.probe.p99_s
    exporter.show(changed(watermark_age_s=None, mirrors=[], sources=[], freshness=[], probe=ProbeFigures()))
    assert REGISTRY.get_sample_value("aif_freshness_recent_seconds", stage) is None
    assert math.isnan(REGISTRY.get_sample_value("aif_watermark_age_seconds", {"partition": "all"}) or 0)
    assert REGISTRY.get_sample_value("aif_mirror_applied_age_seconds", {"server": "one"}) is None
    assert REGISTRY.get_sample_value("aif_producer_clock_ahead_seconds", {"source": "shop"}) is None
