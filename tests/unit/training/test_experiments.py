"""``aif experiment``: what is written can be read, by programs and in a browser."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from aif_stream.cli.experiment import experiment as verbs
from aif_stream.domain.events import ItemUpserted
from aif_stream.errors import TrainingDataError
from aif_stream.training import staleness
from aif_stream.training.crosses import fill_cost, hit_rate
from aif_stream.training.dataset import Dataset, ItemVersions, Split
from aif_stream.training.metrics import Metric
from aif_stream.training.plots import Plot, Point, Series, draw
from aif_stream.training.report import Report, Table, page
from aif_stream.training.skew import window
from aif_stream.training.sources import open_data
from aif_stream.training.staleness import changed, run_staleness
from aif_stream.training.summary import own_data, spread
from aif_stream.training.sweep import Entry, ladder, signature_entries
from aif_stream.training.sweep_reports import ladder_report, signatures_report

DATA = "synthetic:users=40,items=300,impressions=3000"
PNG = b"\x89PNG\r\n\x1a\n"
# What every results.json says of how it came about.
TOLD = {"command", "commit", "machine", "threads", "load_average", "verdict", "figures", "seeds", "title", "question"}
VOID = {"meta", "img", "br", "link"}


def experiment(*arguments: str) -> Result:
    """In this process: importing torch again for each would take longer than the work."""
    return CliRunner().invoke(verbs, arguments)


class Balanced(HTMLParser):
    """Fails on a tag that closes another one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked_report(out: Path, printed: str) -> dict[str, Any]:
    """The results of a run whose JSON, page and figures are as promised."""
    found: dict[str, Any] = json.loads(printed)
    assert found == json.loads((out / "results.json").read_text())
    assert found.keys() >= TOLD
    assert all(found["verdict"])
    html = (out / "report.html").read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    embedded = [base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([^\"]+)", html)]
    assert embedded == [(out / name).read_bytes() for name in found["figures"]]
    assert embedded
    assert all(figure.startswith(PNG) and len(figure) < 60 * 1024 for figure in embedded)
    assert "http" not in html, "the page asks nobody else for anything"
    return found


@pytest.mark.parametrize("scale", ["linear", "log2", "log10"])
def test_a_figure_is_drawn_of_lines_and_of_single_points(scale: Any) -> None:
    points = [Point(x, y, y - 0.1, y + 0.1, "$<&>") for x, y in ((1, 0.2), (3, 0.5), (50, 0.1))]
    series = [Series("one", points), Series("alone", points[:1], line=False)]
    assert draw(Plot("p", "t", "x", "y", series, scale, level=(0.0, "zero"))).startswith(PNG)
    assert draw(Plot("p", "t", "", "y", series[1:], ticks=[(1, "a")], across=True)).startswith(PNG)


def test_a_page_escapes_what_it_shows() -> None:
    report = Report("<t>", "a & b", ["<v>"], [], [Table("<x>", ["<n>"], [["<script>"]])], ["<note>"])
    text = page(report, {"command": "<c>"}, {})
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_one_seed_has_the_users_interval_and_several_have_theirs() -> None:
    near, far = Metric(0.5, 0.4, 0.6), Metric(0.7, 0.6, 0.8)
    assert spread([near], own_data=False) == {"value": 0.5, "low": 0.4, "high": 0.6}
    own, same = spread([near, far], own_data=True), spread([near, far], own_data=False)
    assert own["value"] == same["value"] == pytest.approx(0.6)
    assert own["high"] - 0.6 == pytest.approx(12.706 * 0.1)  # Student's t of one degree of freedom × standard error
    assert same["high"] > own["high"]
    assert own_data([{"seed": 0, "data": "a"}, {"seed": 1, "data": "b"}, {"seed": 0, "data": "a"}])
    assert not own_data([{"seed": 0, "data": "a"}, {"seed": 1, "data": "a"}])


def test_crosses_grow_with_the_categories_of_the_history_not_of_the_catalogue() -> None:
    few, many, more = (fill_cost(n, 200, seed=0) for n in (10, 1000, 100_000))
    assert few["bytes_with"] - few["bytes_without"] == pytest.approx(4 * 64 * few["categories_in_history"], rel=0.2)
    assert many["bytes_with"] > few["bytes_with"]
    assert more["categories_in_history"] <= 200


def test_a_larger_cache_hits_more_and_more_users_hit_less() -> None:
    rates = [hit_rate(users, entries, seed=0) for users, entries in ((1000, 100), (1000, 500), (10_000, 500))]
    assert rates[0] < rates[1] > rates[2]
    assert hit_rate(100, 100, seed=0) == 1.0


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_data(DATA)


def test_versions_of_a_chain_know_nothing_of_later_ones_and_all_keep_the_test_part(data: Dataset) -> None:
    newest, oldest = window(data, 2, 3).requests, window(data, 0, 3).requests
    for split in Split:
        assert set(newest.of(split)) == set(data.requests.of(split))
    assert set(oldest.of(Split.TEST)) == set(data.requests.of(Split.TEST))
    last = data.requests.time_ms[np.concatenate([oldest.of(Split.TRAIN), oldest.of(Split.VALID)])].max()
    left_out = np.setdiff1d(np.flatnonzero(data.requests.split < Split.TEST), np.flatnonzero(oldest.split < Split.TEST))
    assert len(left_out)
    assert (data.requests.time_ms[left_out] >= last).all()


def test_what_a_delay_hides_grows_with_it(data: Dataset) -> None:
    count, week_ms = len(data.items), 7 * 86_400_000
    states = [item for item in data.items for _ in range(2)]
    middle = int(data.requests.time_ms[data.requests.of(Split.TEST)].min()) + 1
    times = np.tile([0, middle], count)
    changing = Dataset(
        **{name: getattr(data, name) for name in ("name", "items", "profiles", "behaviors", "requests", "notes")},
        versions=ItemVersions(states, times, np.arange(count + 1) * 2),
    )
    assert changed(changing, 0) == {"changed": 0.0, "missing": 0.0}
    assert 0 < changed(changing, 3_600_000)["changed"] < changed(changing, week_ms)["changed"]
    assert changed(data, week_ms)["missing"] > changed(data, 86_400_000)["missing"] > 0
    assert isinstance(states[0], ItemUpserted)


SWEEPS = [
    (("bridges", "--counts", "1,4", "--starts", "norm"), ["cold", "norm 1", "norm 4"]),
    (
        ("signatures", "--bits", "16", "--codes", "32"),
        ["cold", "exact", "attention 16", "linear 16", "tiers 16", "linear+tiers 16", "coded 32 16"],
    ),
]


@pytest.mark.parametrize(("arguments", "models"), SWEEPS)
def test_a_sweep_writes_results_figures_and_a_page(
    tmp_path: Path, arguments: tuple[str, ...], models: list[str]
) -> None:
    out = tmp_path / "r"
    done = experiment(*arguments, "--data", DATA, "--epochs", "1", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    found = checked_report(out, done.stdout)
    assert [record["model"] for record in found["records"]][: len(models)] == models
    first, *others = found["records"]
    assert first["data"] == f"{DATA},seed=0"
    assert set(first["difference"]["gauc"].values()) == {0.0}
    assert all(record["difference"]["gauc"]["low"] <= record["difference"]["gauc"]["value"] for record in others)
    again = experiment(*arguments, "--data", DATA, "--out", str(out))
    assert isinstance(again.exception, TrainingDataError)
    assert "holds results already" in str(again.exception)


def made_up(entries: list[Entry]) -> list[dict[str, Any]]:
    """Records of two seeds in which each model gains .001 more than the one before."""
    found = []
    for number, entry in enumerate(entries):
        value, gain = ({"value": x, "low": x, "high": x} for x in (0.6 + number / 1000, number / 1000))
        line = {"model": entry.name, "kind": entry.kind.value, "choices": entry.choices, "bridges": {}}
        line |= {"metrics": {"gauc": value, "auc": value, "hr@100": value}, "difference": {"gauc": gain}}
        line |= {"online_ms_per_10k": 1.0 + number, "online_mflop_per_10k": 1.0 + number}
        found += [line | {"seed": seed, "data": f"d{seed}"} for seed in (0, 1)]
    return found


def test_the_ladder_stands_in_the_order_of_its_rungs() -> None:
    report = ladder_report(made_up(ladder()))
    rungs = [word for _, word in report.plots[0].ticks]
    assert rungs[:5] == ["twotower, profile alone", "twotower", "cold, profile alone", "cold", "cold + bea"]
    assert [row[0] for row in report.tables[0].rows] == rungs
    assert any("AIF without one part" in text and "tiers" in text for text in report.verdict)


def test_the_frontier_holds_every_form_and_coded_tiers_by_their_words() -> None:
    report = signatures_report(made_up(signature_entries([16, 64], [256, 16384])))
    series = {series.name: [point.label for point in series.points] for series in report.plots[0].series}
    assert series["tiers"] == series["attention"] == ["16", "64"]
    assert series["coded, 16 bits, by M"] == series["coded, 64 bits, by M"] == ["256", "16k"]
    assert {"cold", "exact", "linear", "linear+tiers"} < set(series)


def test_skew_compares_mixtures_with_the_newest_closed_version(tmp_path: Path) -> None:
    options = ("--versions", "2", "--roads", "anew,fine-tuned", "--seeds", "0,1", "--epochs", "1", "--data", DATA)
    done = experiment("skew", *options, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    found = checked_report(tmp_path, done.stdout)
    lines = [(r["seed"], r["road"], r["mode"], r["distance"]) for r in found["records"]]
    modes = [("closed", 0), ("closed", 1), ("rows lag", 1), ("user side lags", 1)]
    assert lines == [(seed, road, *mode) for seed in (0, 1) for road in ("anew", "fine-tuned") for mode in modes]
    assert all(r["overlap"]["value"] == 1.0 for r in found["records"] if r["distance"] == 0)


def test_staleness_begins_without_loss_and_tells_what_is_missing(tmp_path: Path) -> None:
    options = ("--delays", "0,1 h,3 days", "--epochs", "1", "--data", f"{DATA},seed=1")
    done = experiment("staleness", *options, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    found = checked_report(tmp_path, done.stdout)
    histories = [r for r in found["records"] if r["late"] == "histories"]
    assert [r["delay"] for r in histories] == ["0", "1 h", "3 days"]
    assert histories[0]["difference"]["gauc"]["value"] == 0.0
    assert histories[0]["missing"] <= histories[1]["missing"] < histories[2]["missing"]


def test_crosses_are_measured_without_data(tmp_path: Path) -> None:
    sizes = ["--categories", "10,100", "--users", "1000,5000", "--cache-mb", "16", "--history", "100"]
    done = experiment("crosses", *sizes, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    found = checked_report(tmp_path, done.stdout)
    assert len(found["fill"]) == 2
    assert len(found["hits"]) == 4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("bridges", "--counts", "few"), "--counts"),
        (("bridges", "--starts", "none"), "--starts"),
        (("signatures", "--seeds", "-1"), "--seeds"),
        (("skew", "--roads", "sideways"), "--roads"),
        (("staleness", "--delays", "2 h"), "--delays"),
        (("crosses", "--users", ""), "--users"),
    ],
)
def test_options_that_are_none_are_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    done = experiment(*arguments, "--out", str(tmp_path / "r"))
    assert done.exit_code == 2
    assert named in done.output
    assert not (tmp_path / "r").exists()


def test_a_run_that_is_stopped_reports_the_seeds_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done_seeds: list[int] = []

    def stopped(data: Dataset, delays: Any, recipe: Any, seed: int, on_step: Any) -> list[dict[str, Any]]:
        if done_seeds:
            raise KeyboardInterrupt
        done_seeds.append(seed)
        return run_staleness(data, delays, recipe, seed, on_step)

    monkeypatch.setattr(staleness, "run_staleness", stopped)
    options = ("--delays", "0,1 h", "--epochs", "1", "--data", DATA, "--seeds", "3,4")
    done = experiment("staleness", *options, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    assert "stopped" in done.stderr
    assert json.loads(done.stdout)["seeds"] == [3]
