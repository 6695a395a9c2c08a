"""A real Prometheus scrapes a running stack with deploy/prometheus; every rule's and panel's query is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.test_stack import running
from tests.prometheus import DEPLOY, Prometheus, rules, scraping, tool_or_skip
from tests.stack import eventually

PANELS = [
    (f"{path.stem}: {panel['title']}", target["expr"])
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    for panel in json.loads(path.read_text())["panels"]
    for target in panel["targets"]
]
# Of a system in which nothing went wrong: these count what did.
NOTHING_IS_GOOD = (
    *("aif_dead_letters_total", "aif_events_skipped_total", "aif_records_lost_total", "aif_requests_dropped_total"),
    *("aif_producer_clock_ahead_seconds", "aif_rank_degraded_total", "aif:rank_degraded"),
)
# Roles that `aif up` does not start yet, and what Prometheus makes itself.
NOT_OURS = ("up", "aif_explanation_gap_seconds_bucket")
METRIC = re.compile(r"\b(?:(?:aif|kafka)_\w+|up\b)")
SUFFIX = re.compile(r"_(?:bucket|count|sum|total)$")


async def test_each_rule_and_panel_of_a_running_stack_has_an_answer(tmp_path: Path) -> None:
    tool_or_skip("prometheus")
    async with running(tmp_path / "home", items=300, users=30, more=("--demo",)) as up:
        places = up.settings()
        directory = tmp_path / "prometheus"
        directory.mkdir()
        retrieval = [places["retrieval_urls"].removeprefix("http://")]
        async with scraping(directory, f"127.0.0.1:{places['monitor_port']}", retrieval) as prometheus:
            await eventually(lambda: scraped(prometheus), what="every role was scraped", within_s=60)
            empty: list[str] = []
            try:
                await eventually(lambda: answered(prometheus, empty), what="every panel has data", within_s=60)
            finally:
                assert empty == []
            for rule in rules():
                await prometheus.query(rule["expr"])
            assert await unknown_metrics(prometheus) == set()
            health = (await prometheus.get("rules"))["groups"]
            assert [rule for group in health for rule in group["rules"] if rule.get("lastError")] == []
            assert (await prometheus.query("count by (group) (kafka_consumergroup_group_lag)")) != []


async def scraped(prometheus: Prometheus) -> bool:
    found = await prometheus.query("up == 1")
    roles = sorted(sample["metric"]["role"] for sample in found)
    return roles == ["monitor", "monitor", "nearline", "retrieval", "serve"]


async def answered(prometheus: Prometheus, empty: list[str]) -> bool:
    """Whether every panel shows something, but those that count what went wrong; ``empty`` names the others."""
    empty.clear()
    for title, expression in PANELS:
        if not await prometheus.query(expression) and not any(name in expression for name in NOTHING_IS_GOOD):
            empty.append(title)
    return not empty


async def unknown_metrics(prometheus: Prometheus) -> set[str]:
    """Names that a rule or a panel uses and no process declares: a typo would never alert."""
    declared = set(await prometheus.get("metadata"))
    used = {name for _, text in PANELS for name in METRIC.findall(text)}
    used |= {name for rule in rules() for name in METRIC.findall(rule["expr"])}
    return {name for name in used - set(NOT_OURS) if name not in declared and SUFFIX.sub("", name) not in declared}


@pytest.mark.parametrize("name", ["aif_dead_letters_total", "kafka_consumergroup_group_lag_seconds"])
def test_the_search_for_names_finds_them(name: str) -> None:
    assert any(name in METRIC.findall(text) for _, text in PANELS)
