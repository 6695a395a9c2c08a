"""The page of a replay: one HTML file, nothing loaded from anywhere, light and dark, down to 400 pixels."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np

from aif_stream.clock import now_ms, to_rfc3339
from aif_stream.errors import BadInput
from aif_stream.replay.drift import Drift
from aif_stream.replay.player import Recording
from aif_stream.replay.plots import Floats, Series, chart, linear, logarithmic, percentile
from aif_stream.replay.run import Outcome

_BUCKETS: Final = 240  # of time, in the plots over time
_SHOWN: Final = 30
_LEAST_MS: Final = 0.01

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1d2430;--soft:#5b6675;--paper:#fff;--card:#f5f7fa;--rule:#dbe1e8;
--a:#0b6bcb;--b:#c2410c;--c:#6d28d9;--ok:#0f766e;--bad:#b91c1c}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa7b8;--paper:#11151c;--card:#1a202a;--rule:#2d3746;
--a:#6cb2ff;--b:#ff9b63;--c:#b79bff;--ok:#4fd1c0;--bad:#ff8585}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.25rem 1rem 3rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p{margin:.25rem 0}.soft{color:var(--soft)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.5rem;margin:1rem 0 0}
dl div{background:var(--card);border-radius:.5rem;padding:.6rem .75rem}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-size:1.2rem;font-variant-numeric:tabular-nums}
dd small{display:block;font-size:.8rem;color:var(--soft)}
dd.ok{color:var(--ok)}dd.bad{color:var(--bad)}
svg{width:100%;height:auto;background:var(--card);border-radius:.5rem}
svg text{fill:var(--soft);font-size:12px}svg .axis{font-size:13px}
.grid{stroke:var(--rule)}.line{fill:none;stroke-width:2}
.line.a{stroke:var(--a)}.line.b{stroke:var(--b)}.line.c{stroke:var(--c);stroke-dasharray:5 4}
.dot.a{fill:var(--a)}.dot.b{fill:var(--b)}
.legend{font-size:.9rem}.key{margin-right:1.25rem;overflow-wrap:anywhere}
.key::before{content:"";display:inline-block;width:1.2rem;height:.2rem;margin-right:.4rem;vertical-align:middle}
.key.a::before{background:var(--a)}.key.b::before{background:var(--b)}.key.c::before{background:var(--c)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--rule)}
th{color:var(--soft);font-weight:500;font-size:.85rem}
th:first-child,td:first-child{text-align:left;overflow-wrap:anywhere;min-width:7rem;max-width:18rem}
td.bar{min-width:6rem}td.bar i{display:block;height:.6rem;border-radius:.3rem;background:var(--b)}
@media (max-width:500px){svg text{font-size:20px}svg .axis{font-size:20px}body{padding:1rem .75rem}
th,td{padding:.3rem .35rem}}
"""


def write_report(path: Path, outcome: Outcome, source: str) -> None:
    """Write the page. Raises ``BadInput`` when the file cannot be written."""
    try:
        path.write_text(page(outcome, source), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def check_writable(path: Path) -> None:
    """Before a long replay is for nothing. Raises ``BadInput`` when no page could be written there."""
    if path.is_dir():
        raise BadInput(f"{path}: Is a directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInput(f"{path}: cannot be written", mend="--report in a folder that is there and yours")


def page(outcome: Outcome, source: str) -> str:
    """The whole document."""
    shape = outcome.shape()
    body = [
        "<header><h1>Replay</h1>",
        f"<p>{escape(source)} → {escape(shape['to'])}</p>",
        f"<p class=soft>written {to_rfc3339(now_ms())}</p></header>",
        _figures(shape),
        "<h2>Latency by percentile</h2>",
        "<p class=soft>From the moment a request was due until its answer was there.</p>",
        _percentiles(outcome),
        "<h2>Latency over time</h2>",
        _over_time(outcome),
        _latency_table(shape),
        _errors(outcome),
        _drift(outcome.drift, outcome, shape) if outcome.drift is not None else "",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Replay of {escape(source)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _figures(shape: dict[str, Any]) -> str:
    cells = [
        ("sent", f"{shape['sent']:,}", f"in {shape['scheduled_s']:.1f} s", ""),
        ("errors", f"{shape['errors']:,}", "", "bad" if shape["errors"] else "ok"),
        ("p50 / p99, ms", f"{shape['latency_ms']['p50']:.1f} / {shape['latency_ms']['p99']:.1f}", "", ""),
        ("slowest", f"{shape['latency_ms']['max']:.1f} ms", "", ""),
        ("send error p99", f"{shape['send_error_ms']['p99']:.2f} ms", "how late the player was", ""),
    ]
    drift = shape.get("drift")
    if drift is not None:
        intervals = drift["intervals"]
        cells += [
            ("drift", f"{drift['value']:.4g}", f"{drift['compared']:,} compared", "bad" if drift["value"] else "ok"),
            ("overlap@k", f"{drift['overlap_at_k']:.4f}", _range(intervals["overlap_at_k"]), ""),
            ("rank correlation", f"{drift['rank_correlation']:.4f}", _range(intervals["rank_correlation"]), ""),
            ("largest score change", f"{drift['score_max_abs']:.4g}", "", ""),
        ]
    rows = (
        f"<div><dt>{name}</dt><dd class='{kind}'>{value}{f'<small>{note}</small>' if note else ''}</dd></div>"
        for name, value, note, kind in cells
    )
    return f"<dl>{''.join(rows)}</dl>"


def _range(found: dict[str, float]) -> str:
    return f"{found['low']:.4f} to {found['high']:.4f}"


def _percentiles(outcome: Outcome) -> str:
    n = max(int(outcome.to.answered.sum()), 10)
    nines = min(5, max(2, int(np.ceil(np.log10(n)))))
    share = 1.0 - np.logspace(0, -nines, 400)
    series = [_curve(outcome.to, share, "a", outcome.to.url)]
    if outcome.against is not None:
        series.append(_curve(outcome.against, share, "b", outcome.against_name))
    late = np.maximum(np.abs(outcome.to.send_error_s) * 1000.0, _LEAST_MS)
    series.append(Series("send error", share, np.quantile(late, share), "c"))
    low, high = min(float(s.y.min()) for s in series), max(float(s.y.max()) for s in series)
    return chart(series, percentile(nines), logarithmic("ms", low, high), "latency by percentile")


def _curve(recording: Recording, share: Floats, colour: str, name: str) -> Series:
    ms = np.maximum(recording.latency_s[recording.answered] * 1000.0, _LEAST_MS)
    return Series(name, share, np.quantile(ms, share), colour)


def _over_time(outcome: Outcome) -> str:
    due = outcome.due_s
    series = []
    for recording, colour, name in ((outcome.to, "a", outcome.to.url), (outcome.against, "b", outcome.against_name)):
        if recording is None:
            continue
        ms = np.where(recording.answered, recording.latency_s * 1000.0, np.nan)
        at, worst = _buckets(due, ms)
        series.append(Series(f"slowest, {name}", at, np.maximum(worst, _LEAST_MS), colour))
    values = np.concatenate([s.y[np.isfinite(s.y)] for s in series])
    y = logarithmic("slowest of each moment, ms", float(values.min()), float(values.max()))
    return chart(series, linear("seconds after the beginning", 0.0, float(due[-1]), " s"), y, "latency over time")


def _buckets(due_s: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Largest value in each of ``_BUCKETS`` equal spans of time: (times, values), spans without any left out."""
    span = max(float(due_s[-1]), 1e-9) / _BUCKETS
    place = np.minimum((due_s / span).astype(int), _BUCKETS - 1)
    worst = np.full(_BUCKETS, -np.inf)
    known = np.isfinite(values)
    np.maximum.at(worst, place[known], values[known])
    there = np.isfinite(worst)
    return ((np.arange(_BUCKETS) + 0.5) * span)[there], worst[there]


def _latency_table(shape: dict[str, Any]) -> str:
    names = ("p50", "p90", "p99", "p999", "max")
    rows = [(shape["to"], shape["latency_ms"])]
    against = shape.get("against")
    if against is not None:
        rows.append((against["name"], against["latency_ms"]))
    lines = "".join(
        f"<tr><td>{escape(url)}</td>{''.join(f'<td>{found[name]:.2f}</td>' for name in names)}</tr>"
        for url, found in rows
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f"<div class=wide><table><tr><th>latency, ms</th>{head}</tr>{lines}</table></div>"
    if against is None:
        return table
    notes = (
        f"<p>{name}: {found['value']:+.2f} ms, 95 % interval {found['low']:+.2f} to {found['high']:+.2f}</p>"
        for name, found in against["difference_ms"].items()
    )
    return f"{table}<h2>Difference of the two, in pairs</h2>{''.join(notes)}"


def _errors(outcome: Outcome) -> str:
    found = outcome.failures()
    if not found:
        return ""
    lines = "".join(f"<tr><td>{escape(why)}</td><td>{n:,}</td></tr>" for why, n in found)
    return f"<h2>Errors</h2><div class=wide><table><tr><th>reason</th><th>requests</th></tr>{lines}</table></div>"


def _drift(drift: Drift, outcome: Outcome, shape: dict[str, Any]) -> str:
    found = shape["drift"]
    left_out = found["not_compared"]
    text = (
        f"<h2>Drift against {escape(found['compared_with'])}</h2><p class=soft>{found['compared']:,} compared, "
        f"{left_out['degraded']:,} left out as degraded, {left_out['unanswered']:,} unanswered. In "
        f"{drift.whole_user:,} requests most scores changed at once: the user's side did, or the version. Drift is "
        "the largest of 1 - overlap@k, 1 - rank correlation (means over requests) and the largest score change.</p>"
    )
    at, score = _buckets(outcome.due_s, drift.score_max_abs)
    _, missing = _buckets(outcome.due_s, 1.0 - drift.overlap)
    if not score.size:
        return text
    axis = linear("seconds after the beginning", 0.0, float(outcome.due_s[-1]), " s")
    if drift.value:
        text += chart(
            [Series("largest score change", at, score, "b", dots=True)],
            axis,
            linear("largest change of a score", 0.0, float(score.max())),
            "score change by request",
        )
        text += chart(
            [Series("items exchanged", at, missing, "a", dots=True)],
            axis,
            linear("share of the top k exchanged", 0.0, max(float(missing.max()), 0.01)),
            "items exchanged by request",
        )
    return text + _changes(found)


def _changes(found: dict[str, Any]) -> str:
    if not found["changes"]:
        return "<p>No score changed.</p>"
    most = max(change["max_abs"] for change in found["changes"][:_SHOWN]) or 1.0
    lines = "".join(
        f"<tr><td>{escape(c['item_id'])}</td><td>{c['requests']:,}</td><td>{c['apart']:,}</td><td>{c['lost']:,}</td><td>{c['gained']:,}</td>"
        f"<td>{c['max_abs']:.4g}</td><td class=bar><i style='width:{100 * c['max_abs'] / most:.1f}%'></i></td></tr>"
        for c in found["changes"][:_SHOWN]
    )
    heads = "".join(
        f"<th>{name}</th>" for name in ("item", "requests", "apart", "lost", "gained", "largest change", "")
    )
    more = (
        f"<p class=soft>{found['changed_items_total']:,} items changed in all. Apart: requests in which most other "
        "scores stayed, so that the item itself must have changed; these come first.</p>"
    )
    return f"<h2>Items that changed most</h2>{more}<div class=wide><table><tr>{heads}</tr>{lines}</table></div>"
