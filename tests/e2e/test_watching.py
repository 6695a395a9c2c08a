"""``aif up --demo`` watched from outside: a real Prometheus with deploy/prometheus is asked every rule's and panel's
query, a real Chromium opens the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.browser import open_page
from tests.e2e.up import Up, running
from tests.prometheus import DEPLOY, Prometheus, rules, scraping, tool_or_skip
from tests.stack import eventually

if TYPE_CHECKING:
    from playwright.async_api import Browser

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
NOT_OURS = ("up",)  # what Prometheus makes itself
METRIC = re.compile(r"\b(?:(?:aif|kafka)_\w+|up\b)")
SUFFIX = re.compile(r"_(?:bucket|count|sum|total)$")


WIDE, NARROW = {"width": 1200, "height": 800}, {"width": 400, "height": 800}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    async with running(tmp_path_factory.mktemp("home"), items=300, users=30, more=("--demo",)) as stack:
        yield stack


async def test_each_rule_and_panel_of_a_running_stack_has_an_answer(up: Up, tmp_path: Path) -> None:
    tool_or_skip("prometheus")
    places = up.settings()
    retrieval = [places["retrieval_urls"].removeprefix("http://")]
    async with scraping(tmp_path, f"127.0.0.1:{places['monitor_port']}", retrieval) as prometheus:
        await eventually(lambda: scraped(prometheus), what="every role was scraped", within_s=90)
        empty = list(PANELS)
        try:
            await eventually(lambda: answered(prometheus, empty), what="every panel has had data", within_s=90)
        finally:
            assert [title for title, _ in empty] == []
        for rule in rules():
            await prometheus.query(rule["expr"])
        assert await unknown_metrics(prometheus) == set()
        health = (await prometheus.get("rules"))["groups"]
        assert [rule for group in health for rule in group["rules"] if rule.get("lastError")] == []
        assert (await prometheus.query("count by (group) (kafka_consumergroup_group_lag)")) != []


async def test_the_dashboard_is_live_over_sse_and_ranks_a_user_by_keyboard(up: Up, browser: Browser) -> None:
    async with open_page(browser, viewport=WIDE) as (page, problems):
        await page.goto(up.url)
        await page.wait_for_selector("#groups tr")
        ready = "document.querySelector('#state').innerText === 'ready'"
        await eventually(lambda: page.evaluate(ready), what="the page calls the server ready")
        at = int(await page.evaluate("document.body.dataset.at"))
        before = await page.evaluate("points.length")
        moved = f"document.body.dataset.at > {at + 2000} && points.length > {before}"
        await eventually(lambda: page.evaluate(moved), what="the stream brings what is new")
        asked = await page.evaluate(
            "performance.getEntriesByType('resource').map((each) => new URL(each.name).pathname)"
        )
        assert set(asked) <= {"/v1/overview/events"}, "nothing is polled: what moves came over the stream"
        status = await page.evaluate("fetch('/v1/status').then((reply) => reply.json())")
        assert await page.inner_text("#version") == status["model_version"]

        async def rows_shown() -> bool:  # a row may come at any time: the probe's, or one of the demo's
            rows = (await page.evaluate("fetch('/v1/status').then((reply) => reply.json())"))["mirror"]["rows"]
            return f"{rows:,}" in await page.inner_text("#servers")

        await eventually(rows_shown, what="the page has the mirror's rows")
        assert {"aif.nearline", "aif.users"} <= set((await page.inner_text("#groups")).split())
        await page.wait_for_selector("#fresh em")  # updates of the demo arrive
        await page.keyboard.press("Tab")  # the first stop leads to the box
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("ControlOrMeta+a")
        await page.keyboard.type("2")
        await page.keyboard.press("Tab")
        await page.keyboard.press("ControlOrMeta+a")
        await page.keyboard.type("5")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#answer:not([hidden])")

        async def same_items() -> bool:  # of two answers one after the other; items and histories move meanwhile
            await page.press("input[name=user]", "Enter")
            expected = await up.rank(user_id=2, k=5)
            ranked = await page.locator("#items td:nth-child(2)").all_inner_texts()
            return len(ranked) == 5 and set(ranked) == {item["item_id"] for item in expected["items"]}

        await eventually(same_items, what="the page shows what the server answers")
        await page.fill("input[name=user]", "-1")
        await page.fill("input[name=k]", "100000")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#rank-error:not([hidden])")
        assert "k: at most" in await page.inner_text("#rank-error")
        refused = [problem for problem in problems if "status of 422" not in problem]
        assert refused == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_dashboard_reads_well_on_a_telephone_and_in_both_colour_schemes(
    up: Up, browser: Browser, scheme: str
) -> None:
    async with open_page(browser, viewport=NARROW, color_scheme=scheme) as (page, problems):
        await page.goto(up.url)
        await page.wait_for_selector("#groups tr")
        await page.press("input[name=user]", "Enter")
        await page.wait_for_selector("#answer:not([hidden])")
        assert await page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        assert await page.evaluate(BEYOND) == []
        assert await page.evaluate(TOO_FAINT) == []
        assert problems == []


# Tables that one has to scroll when every consumer stands still: what matters is named last, at the edge.
BEYOND = """() => {
  const still = {status: "STALL", reason: "the consumer's process is there but does not answer"};
  const part = {lag_records: 12345, lag_s: 1234, rate_per_s: 1, ...still};
  watched({partitions: ["aif.nearline", "aif.explain.normal"].map((group) => ({...part, group})),
    mirrors: [{server: "a-server-with-a-long-name-4711", rows: 1234567, applied_age_s: 12, ...still}]});
  const late = {waiting: 123456, oldest_s: 734.5, arrival_per_s: 123.4, service_per_s: 123.4, p50_s: .734, p99_s: 1734};
  gap({workers: 1, workers_needed: 12, worker_per_s: 11.5,
    priorities: ["high", "normal", "low"].map((priority) => ({priority, ...late}))});
  return [...document.querySelectorAll(".scroll")].filter((node) => node.scrollWidth > node.clientWidth)
    .map((node) => `${node.innerText}: ${node.scrollWidth} in ${node.clientWidth}`);
}"""

# Texts whose contrast with what is behind them is below 4.5 (WCAG AA).
TOO_FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (color) => rgb(color).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = (node) => !node ? "white" : rgb(getComputedStyle(node).backgroundColor)[3] > 250
    ? getComputedStyle(node).backgroundColor : behind(node.parentElement);
  return [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility() &&
      [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())).flatMap((node) => {
    const style = getComputedStyle(node), color = node instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [color, behind(node)].map(light);
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    return contrast < 4.5 ? [`${node.textContent.trim()}: ${contrast.toFixed(2)}`] : [];
  });
}"""


async def scraped(prometheus: Prometheus) -> bool:
    """Whether every role has answered a scrape (a busy machine misses some: then ``up`` is 0 for a while)."""
    found = await prometheus.query("max_over_time(up[10m]) == 1")
    roles = {sample["metric"]["role"] for sample in found}
    return roles >= {"explain", "monitor", "nearline", "retrieval", "serve"}


async def answered(prometheus: Prometheus, empty: list[tuple[str, str]]) -> bool:
    """Whether every panel has shown something by now, but those that count what went wrong; ``empty``: the others."""
    for panel in list(empty):
        if any(name in panel[1] for name in NOTHING_IS_GOOD) or await prometheus.query(panel[1]):
            empty.remove(panel)
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
