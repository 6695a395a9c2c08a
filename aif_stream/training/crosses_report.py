"""The report of ``aif experiment crosses``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aif_stream.training.plots import Plot, Point, Series
from aif_stream.training.report import Report, Table


def crosses_report(found: Mapping[str, Any]) -> Report:
    """Memory, fill time, hit rate."""
    fills, hits = found["fill"], found["hits"]
    plots = [
        _fill(fills, "bytes", "Memory of a user side", "KiB", 1024),
        _fill(fills, "ms", "Time to fill a user side", "CPU ms, one thread", 1),
        *[_hits(hits, megabytes) for megabytes in dict.fromkeys(hit["cache_mb"] for hit in hits)],
    ]
    fill_rows = [
        [
            f"{fill['categories']:,}",
            fill["categories_in_history"],
            fill["bytes_without"] / 1024,
            fill["bytes_with"] / 1024,
            fill["ms_without"],
            f"{fill['ms_with']} ({fill['ms_with_p90']})",
        ]
        for fill in fills
    ]
    hit_rows = [
        [f"{hit['categories']:,}", f"{hit['users']:,}", hit["cache_mb"], hit["entries"], f"{hit['hit_rate']:.1%}"]
        for hit in hits
    ]
    names = ["categories", "in the history", "KiB without", "KiB with crosses", "ms without", "ms with (p90)"]
    return Report(
        title="Crosses: what pre-computing them for every category costs",
        question="Memory, fill time and cache hits of SIM crosses by categories and users (the paper's open question).",
        verdict=_verdict(fills, hits),
        plots=plots,
        tables=[
            Table("A user side", names, fill_rows, f"History of {fills[0]['history']:,}, categories by Zipf's law."),
            Table("Hits", ["categories", "users", "cache MiB", "user sides it holds", "hit rate"], hit_rows),
        ],
        notes=["Requests of users by Zipf's law; a least-recently-used cache; hits are counted after 20,000 requests."],
    )


def _verdict(fills: Sequence[Mapping[str, Any]], hits: Sequence[Mapping[str, Any]]) -> list[str]:
    few, many = fills[0], fills[-1]
    own, least = ((fill["bytes_with"] - fill["bytes_without"]) / 1024 for fill in (many, few))
    first = (
        f"With {many['categories']:,} categories the crosses of a user take {own:,.0f} KiB of"
        f" {many['bytes_with'] / 1024:,.0f} and {many['ms_with'] - many['ms_without']:.2f} ms of"
        f" {many['ms_with']:.2f}; with {few['categories']:,}, {least:,.0f} KiB and"
        f" {few['ms_with'] - few['ms_without']:.2f} ms. They grow with the categories of the history"
        f" ({many['categories_in_history']}), not of the catalogue."
    )
    low, high = (kind(hits, key=lambda hit: hit["hit_rate"]) for kind in (min, max))
    second = "; ".join(
        f"{hit['users']:,} users, {hit['categories']:,} categories, {hit['cache_mb']} MiB: {hit['hit_rate']:.0%}"
        for hit in (high, low)
    )
    return [first, f"Cache hits, most and fewest: {second}."]


def _fill(fills: Sequence[Mapping[str, Any]], key: str, title: str, unit: str, scale: int) -> Plot:
    series = []
    for form in ("with", "without"):
        points = []
        for fill in fills:
            value = fill[f"{key}_{form}"] / scale
            high = fill.get(f"{key}_{form}_p90", fill[f"{key}_{form}"]) / scale
            low = fill.get(f"{key}_{form}_p10", fill[f"{key}_{form}"]) / scale
            points.append(Point(fill["categories"], value, low, high))
        series.append(Series(f"{form} crosses", points))
    return Plot(key, title, "categories of the catalogue", unit, series, scale="log10")


def _hits(hits: Sequence[Mapping[str, Any]], megabytes: int) -> Plot:
    series: dict[str, list[Point]] = {}
    for hit in hits:
        if hit["cache_mb"] == megabytes:
            point = Point(hit["users"], *[hit["hit_rate"]] * 3)
            series.setdefault(f"{hit['categories']:,} categories", []).append(point)
    drawn = [Series(name, points) for name, points in series.items()]
    title = f"Requests that find their user side in {megabytes} MiB"
    return Plot(f"hits_{megabytes}", title, "users", "hit rate", drawn, scale="log10")
