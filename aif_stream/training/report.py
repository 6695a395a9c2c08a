"""A report as files: ``results.json``, a PNG for each figure, and ``report.html``, one page complete in itself."""

from __future__ import annotations

import base64
import html
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from aif_stream import __version__
from aif_stream.errors import TrainingDataError
from aif_stream.training.plots import Plot, draw


@dataclass(frozen=True, slots=True)
class Table:
    """Cells under names; the first column is the row's name."""

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What an experiment found. ``verdict``: paragraphs made of the numbers, the answer first."""

    title: str
    question: str
    verdict: Sequence[str]
    plots: Sequence[Plot]
    tables: Sequence[Table]
    notes: Sequence[str] = field(default_factory=tuple)


def prepare(out: Path) -> None:
    """Make the directory before the work begins. Raises ``TrainingDataError`` where it holds results already."""
    if (out / "results.json").exists():
        raise TrainingDataError(f"{out} holds results already", mend="choose another --out")
    out.mkdir(parents=True, exist_ok=True)


def about() -> dict[str, Any]:
    """How results came about: the command, the commit and what it ran on."""
    return {
        "command": " ".join(["aif", *sys.argv[1:]]),
        "commit": _commit(),
        "aif_stream": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def write(out: Path, results: Mapping[str, Any], report: Report) -> None:
    """All files; the figures' names and the verdict are in the JSON as well."""
    figures = {plot.name: draw(plot) for plot in report.plots}
    for name, png in figures.items():
        (out / f"{name}.png").write_bytes(png)
    found = {
        "title": report.title,
        "question": report.question,
        "verdict": list(report.verdict),
        "figures": [f"{name}.png" for name in figures],
        **results,
    }
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page(report, results, figures), encoding="utf-8")


def page(report: Report, results: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    """The page; ``figures`` are the plots' PNGs by name."""
    drawn = "".join(_figure(plot, figures[plot.name]) for plot in report.plots)
    told = [(name, results[name]) for name in _TOLD if name in results]
    facts = "".join(f"<dt>{name.replace('_', ' ')}</dt><dd>{html.escape(_words(value))}</dd>" for name, value in told)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(report.title)}</title>
<style>{_STYLE}</style></head>
<body><main>
<h1>{html.escape(report.title)}</h1>
<p class="question">{html.escape(report.question)}</p>
<section class="verdict">{"".join(f"<p>{html.escape(text)}</p>" for text in report.verdict)}</section>
<section class="figures">{drawn}</section>
{"".join(_table(table) for table in report.tables)}
<h2>How it was run</h2><dl>{facts}</dl>
{"".join(f'<p class="note">{html.escape(note)}</p>' for note in report.notes)}
</main></body></html>
"""


_TOLD: Final = (
    "command",
    "commit",
    "data",
    "seeds",
    "recipe",
    "machine",
    "threads",
    "load_average",
    "aif_stream",
    "python",
    "torch",
    "numpy",
    "seconds",
)

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6470; --paper: #fff; --card: #f4f6f8; --line: #d9dee4;
  --mark: #0072b2 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a2abb5; --paper: #15181b; --card: #1f2429;
  --line: #363d45; --mark: #56b4e9 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 3rem }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.question { color: var(--soft); margin: 0 0 1rem; max-width: 46rem }
.verdict { border-left: 4px solid var(--mark); background: var(--card); padding: .2rem 1rem; border-radius: 0 6px 6px 0;
  max-width: 52rem } .verdict p { margin: .6rem 0 } .verdict p:first-child { font-weight: 600 }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  margin-top: 1.5rem; align-items: start }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem;
  max-width: 44rem }
figure img { display: block; width: 100%; height: auto }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .84rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
tr:last-child td { border-bottom: 0 } thead th { background: var(--card); font-weight: 600 }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper) }
thead th:first-child { background: var(--card) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; font-size: .875rem; margin: 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.note { color: var(--soft); font-size: .875rem; margin: .4rem 0; max-width: 52rem }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .4rem } }
@media print { :root { --ink: #000; --soft: #444; --paper: #fff; --card: #f4f4f4; --line: #bbb }
  main { max-width: none; padding: 0 } body { font-size: 10.5pt } figure, tr { break-inside: avoid }
  h2 { break-after: avoid } .wide { overflow: visible; border: 0 } th, td { padding: .2rem .4rem; white-space: normal }
  .figures { grid-template-columns: 1fr 1fr } }
"""


def _figure(plot: Plot, png: bytes) -> str:
    text = f"{plot.title}: {plot.y} by {plot.x}; {', '.join(series.name for series in plot.series)}"
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></figure>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.names)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(_words(c))}</td>' for c in row)}</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{html.escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _words(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(part) for part in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else str(value)


def _commit() -> str:
    """The commit of the checkout that runs, with a word where files differ from it; of an installation: its version."""
    here = Path(__file__).parent
    try:
        name, changed = (
            subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno", "--", str(here)))
        )
    except (OSError, subprocess.SubprocessError):
        return f"installed {__version__}"
    return f"{name} and changes" if changed else name


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
