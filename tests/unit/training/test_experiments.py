"""``aif experiment``: what is written can be read, by programs and in a browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from aif_stream.training.chart import Point, Series, chart, page, table
from aif_stream.training.crosses import fill_cost, hit_rate

DATA = "synthetic:users=40,items=300,impressions=3000,seed=1"


def experiment(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aif_stream", "experiment", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def svgs(html: str) -> list[ElementTree.Element]:
    drawn = ["<svg" + part.split("</svg>")[0] + "</svg>" for part in html.split("<svg")[1:]]
    return [ElementTree.fromstring(svg) for svg in drawn]  # noqa: S314 - our own


@pytest.mark.parametrize("base", [0, 2, 10])
def test_a_chart_is_well_formed_and_keeps_its_points_inside(base: int) -> None:
    random = np.random.default_rng(0)
    points = [Point(float(x), y, y - 0.1, y + 0.1, "<&>") for x, y in zip((1, 3, 50), random.random(3), strict=True)]
    (svg,) = svgs(chart("a < b", "c & d", [Series("one", points), Series("alone", points[:1], line=False)], log_x=base))
    circles = [c for c in svg.iter("circle") if c.find("title") is not None]
    assert len(circles) == 4
    assert all(64 <= float(c.attrib["cx"]) <= 560 and 16 <= float(c.attrib["cy"]) <= 332 for c in circles)
    assert len(list(svg.iter("polyline"))) == 1


def test_a_chart_of_a_single_point_is_drawn() -> None:
    assert svgs(chart("x", "y", [Series("one", [Point(5, 0.5, 0.5, 0.5)])], log_x=2))


def test_a_page_escapes_what_it_shows() -> None:
    text = page("<title>", "a & b", [table(["<x>"], [["<script>"]])])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_crosses_grow_with_the_categories_of_the_history_not_of_the_catalogue() -> None:
    few, many, more = (fill_cost(n, 200, seed=0) for n in (10, 1000, 100_000))
    assert few["bytes_with"] - few["bytes_without"] == pytest.approx(4 * 64 * few["categories_in_history"], rel=0.2)
    assert many["bytes_with"] > few["bytes_with"]
    assert more["categories_in_history"] <= 200


def test_a_larger_cache_hits_more_and_more_users_hit_less() -> None:
    rates = [hit_rate(users, entries, seed=0) for users, entries in ((1000, 100), (1000, 500), (10_000, 500))]
    assert rates[0] < rates[1] > rates[2]
    assert hit_rate(100, 100, seed=0) == 1.0


@pytest.mark.parametrize(
    ("arguments", "models"),
    [
        (("bridges", "--counts", "1,4", "--starts", "norm"), ["cold", "norm 1", "norm 4"]),
        (
            ("signatures", "--bits", "16", "--codes", "32"),
            ["cold", "exact", "linear 16", "tiers 16", "linear+tiers 16", "coded 32 16"],
        ),
    ],
)
def test_a_sweep_writes_results_and_a_page(tmp_path: Path, arguments: tuple[str, ...], models: list[str]) -> None:
    done = experiment(*arguments, "--data", DATA, "--epochs", "1", "--out", str(tmp_path / "r"), "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "r" / "results.json").read_text())
    assert [record["model"] for record in printed["records"]] == models
    first, *others = printed["records"]
    assert set(first["difference"]["gauc"].values()) == {0.0}
    assert all(record["difference"]["gauc"]["low"] <= record["difference"]["gauc"]["value"] for record in others)
    html = (tmp_path / "r" / "report.html").read_text()
    assert svgs(html)
    assert all(model in html for model in models)
    again = experiment(*arguments, "--data", DATA, "--out", str(tmp_path / "r"))
    assert again.returncode == 1
    assert "holds results already" in again.stderr


def test_crosses_are_measured_without_data(tmp_path: Path) -> None:
    sizes = ["--categories", "10,100", "--users", "1000,5000", "--cache-mb", "16", "--history", "100"]
    done = experiment("crosses", *sizes, "--out", str(tmp_path / "r"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["fill"]) == 2
    assert len(found["hits"]) == 4
    assert len(svgs((tmp_path / "r" / "report.html").read_text())) == 3


def test_numbers_that_are_none_are_wrong_usage(tmp_path: Path) -> None:
    done = experiment("bridges", "--counts", "few", "--out", str(tmp_path / "r"))
    assert done.returncode == 2
    assert "--counts" in done.stderr
