"""The reports of `aif experiment`, all of them by one command, and what of them is kept in the repository.

    OMP_NUM_THREADS=1 python experiments/reports.py run [NAME …] [--size full] [--out DIR] [--movielens DIR]
    python experiments/reports.py keep [NAME …] [--out DIR]

``run`` leaves results.json, figures and report.html of each in DIR/NAME; one that is there already is not run again.
``keep`` copies the figures into docs/figures and the numbers (GAUC, AUC, HR@100 of every record) into
experiments/results, and writes docs/experiments.md anew from all that is kept. Sizes: small takes about 30 minutes of
one core for all of them, full about two and a half hours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

FIGURES: Final = Path("docs/figures")
PAGE: Final = Path("docs/experiments.md")
RESULTS: Final = Path("experiments/results")
SIZES: Final = {
    "small": "users=300,items=2000,impressions=30000",
    "full": "users=1000,items=5000,impressions=100000",
}
# Reports of which the load decides more than the code.
MOVED: Final = dict.fromkeys(("latency", "crosses"), ": times are the machine's as well")
FIVE: Final = ("--seeds", "0,1,2,3,4")
KEPT: Final = ("gauc", "auc", "hr@100")
# What everybody's results.json has and a reader of the numbers needs.
TOLD: Final = (
    "title",
    "question",
    "verdict",
    "figures",
    "command",
    "commit",
    "machine",
    "load_average",
    "beside",
    "data",
    "seeds",
    "seconds",
)


def plans(size: str, movielens: str) -> dict[str, list[str]]:
    """Arguments of `aif experiment` by name."""
    data = f"synthetic:{SIZES[size]}"
    # As many items as tell M = 16,384 from the items' own signatures; 65,536 is more than there are.
    many = f"synthetic:{SIZES[size].replace('items=2000', 'items=20000').replace('items=5000', 'items=50000')}"
    bits = "16,64,256" if size == "small" else "16,32,64,128,256"
    codes = "256,1024,4096,16384,65536"
    found = {
        "ladder": ["ladder", "--data", data, *FIVE, "--epochs", "2"],
        "bridges": ["bridges", "--starts", "orthogonal,product", "--data", f"{data},bea=2", *FIVE, "--epochs", "2"],
        "signatures": ["signatures", "--bits", bits, "--codes", codes, "--data", many, "--seeds", "0,1,2"],
        "skew": ["skew", "--data", f"{data},drift=2", "--versions", "3", *FIVE, "--epochs", "2"],
        "staleness": ["staleness", "--data", f"{data},updates=8", *FIVE, "--epochs", "3"],
        "crosses": ["crosses"],
        "latency": ["latency"],
    }
    found["signatures"] += ["--epochs", "2"]
    if movielens:
        own = ["--data", f"movielens:{movielens}", "--seeds", "0,1,2", "--epochs", "2"]
        found["staleness_movielens"] = ["staleness", *own, "--delays", "0,1 min,1 h,1 day,3 days"]
    return found


@click.group()
def reports() -> None:
    """Run the reports, or keep their numbers and figures."""


@reports.command()
@click.argument("names", nargs=-1)
@click.option("--size", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/reports"), show_default=True)
@click.option("--movielens", default="", help="Directory of MovieLens 100K; without it its report is left out.")
def run(names: tuple[str, ...], size: str, out: Path, movielens: str) -> None:
    """Run what is not there yet."""
    chosen = plans(size, movielens)
    unknown = set(names) - set(chosen)
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: choose among {', '.join(chosen)}")
    for name in names or chosen:
        if (out / name / "results.json").exists():
            click.echo(f"{name}: there already")
            continue
        began = time.monotonic()
        command = [sys.executable, "-m", "aif_stream", "experiment", *chosen[name], "--out", str(out / name)]
        subprocess.run(command, check=True)
        click.echo(f"{name}: {time.monotonic() - began:.0f} s\n")


@reports.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/reports"), show_default=True)
def keep(names: tuple[str, ...], out: Path) -> None:
    """Figures → docs/figures, numbers → experiments/results."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name in names or sorted(path.parent.name for path in out.glob("*/results.json")):
        found = json.loads((out / name / "results.json").read_text(encoding="utf-8"))
        for old in FIGURES.glob(f"{name}__*"):
            old.unlink()
        for figure in found["figures"]:
            (FIGURES / f"{name}__{figure}").write_bytes((out / name / figure).read_bytes())
        lines = {key: found[key] for key in TOLD if key in found}
        lines["command"] = _without_places(lines["command"])
        lines |= {key: found[key] for key in ("cells", "costs", "fill", "hits") if key in found}
        lines["records"] = [_short(record) for record in found.get("records", [])]
        text = json.dumps(lines, indent=None, ensure_ascii=False)
        # One record a line: a difference between two runs can be read.
        text = (
            text.replace('{"model"', '\n{"model"')
            .replace('{"seed"', '\n{"seed"')
            .replace('{"retrieval_ms"', '\n{"retrieval_ms"')
        )
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        click.echo(f"{name}: {len(found['figures'])} figures")
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """docs/experiments.md: each kept report's question, verdict and figures, and how it was run."""
    parts = [
        "# Experiments\n",
        "What `aif experiment` found. This page is written by `python experiments/reports.py keep`; the numbers are in"
        " experiments/results. `aif experiment NAME --out DIR` writes the whole report, with tables.\n",
    ]
    for name in (name for name in plans("small", "DIR") if (RESULTS / f"{name}.json").exists()):
        found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        if "figures" not in found:
            continue
        parts += [f"## {found['title']}\n", f"{found['question']}\n", *(f"- {text}" for text in found["verdict"]), ""]
        parts += [f"![{found['title']}: {figure[:-4]}](figures/{name}__{figure})" for figure in found["figures"]]
        load = " … ".join(str(value) for value in found["load_average"])
        parts.append(
            f"\n`{found['command']}` · commit {found['commit']} · seeds {', '.join(map(str, found['seeds']))} ·"
            f" {found['machine']}, load {load}{MOVED.get(name, '')}\n"
        )
    return "\n".join(parts)


def _without_places(command: str) -> str:
    """Where files lie here is nobody else's business."""
    words = command.split()
    if "--out" in words:
        at = words.index("--out")
        words[at : at + 2] = ["--out", "DIR"]
    return " ".join("movielens:DIR" if word.startswith("movielens:") else word for word in words)


def _short(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the kept metrics, rounded, as [value, low, high]."""
    short = dict(record)
    for part in ("metrics", "difference"):
        short[part] = {name: _three(record[part][name]) for name in KEPT if name in record[part]}
    if "overlap" in record:
        short["overlap"] = _three(record["overlap"])
    return {name: value for name, value in short.items() if name not in {"kind", "choices", "data"}}


def _three(metric: dict[str, float]) -> list[float]:
    return [round(metric[name], 5) for name in ("value", "low", "high")]


if __name__ == "__main__":
    reports()
