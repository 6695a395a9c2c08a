from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aif_stream.online.all_metrics import merged


def text(requests: int) -> str:
    """One process's metrics."""
    registry = CollectorRegistry()
    Counter("asked_total", 'with "quotes" and {braces}', ["status"], registry=registry).labels("2 {00}").inc(requests)
    Histogram("took_seconds", "a histogram", registry=registry).observe(0.2)
    Gauge("rows", "without a label", registry=registry).set(requests * 10)
    return generate_latest(registry).decode()


def test_every_process_has_its_series_under_one_head_and_the_sum_is_what_they_counted() -> None:
    found = list(text_string_to_metric_families(merged({"1": text(3), "2": text(4)})))
    assert len({family.name for family in found}) == len(found), "a family's head comes once"
    samples = [sample for family in found for sample in family.samples]
    asked = {s.labels["process"]: s.value for s in samples if s.name == "asked_total"}
    assert asked == {"1": 3.0, "2": 4.0}
    assert {s.labels["process"]: s.value for s in samples if s.name == "rows"} == {"1": 30.0, "2": 40.0}
    assert sum(s.value for s in samples if s.name == "took_seconds_count") == 2.0
    assert all("process" in sample.labels for sample in samples)
    assert {s.labels["status"] for s in samples if s.name == "asked_total"} == {"2 {00}"}


def test_a_process_that_does_not_answer_is_named_and_the_others_stay() -> None:
    families = {family.name: family for family in text_string_to_metric_families(merged({"1": text(1), "2": None}))}
    assert {s.labels["process"]: s.value for s in families["aif_serve_process_up"].samples} == {"1": 1.0, "2": 0.0}
    assert {s.labels["process"] for s in families["rows"].samples} == {"1"}
