"""What the verbs of ``aif experiment`` share: options, lists of numbers, data for each seed, the end of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aif_stream.training.dataset import Dataset
    from aif_stream.training.loop import Recipe
    from aif_stream.training.report import Report

OnStep = Callable[[str, int, int], None]
"""Called with (step, steps done, steps)."""

OUT: Final = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="For results.json, report.html and the figures as PNG.",
)
JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print the results on stdout as well.")
SEEDS: Final = click.option(
    "--seeds",
    default="0",
    show_default=True,
    help="Of training, comma-separated; of the data as well where --data is synthetic and names no seed.",
)
EPOCHS: Final = click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True)


def data_option(default: str) -> Callable[..., Any]:
    """``--data`` as of ``aif train``."""
    return click.option("--data", default=default, show_default=True, help="As of aif train.")


def numbers(text: str, name: str) -> list[int]:
    """``1,2,4`` -> whole numbers from 0 on; anything else is wrong usage of option ``name``."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise click.BadParameter(f"{text!r} is no list of whole numbers", param_hint=name)
    return found


def data_of(spec: str) -> Callable[[int], Dataset]:
    """Seed -> data set: read once, or generated anew for each seed of a synthetic set that names none."""
    from aif_stream.cli.train import reading

    if spec.startswith("synthetic") and "seed=" not in spec:
        join = "," if spec.partition(":")[2] else ":" if ":" not in spec else ""
        return lambda seed: reading(f"{spec}{join}seed={seed}")
    kept: list[Dataset] = []

    def once(seed: int) -> Dataset:
        if not kept:
            kept.append(reading(spec))
        return kept[0]

    return once


@contextmanager
def progress(name: str) -> Iterator[OnStep]:
    """A bar on a terminal; yields what is called with (step, steps done, steps)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=None)
        yield lambda step, done, total: bar.update(task, description=step, completed=done, total=total)


def train_and_report(
    work: Callable[[Recipe, int, OnStep], list[dict[str, Any]]],
    render: Callable[[list[dict[str, Any]]], Report],
    seeds: str,
    epochs: int,
    out: Path,
    as_json: bool,
) -> None:
    """Records of ``work`` for each seed, as a report. The directory is claimed before anything is trained; Ctrl-C ends
    with a report of the seeds that are done."""
    from dataclasses import asdict, replace

    from aif_stream.clock import monotonic_s
    from aif_stream.training.loop import FULL
    from aif_stream.training.report import about, prepare

    chosen = numbers(seeds, "--seeds")
    prepare(out)
    recipe, began, ran = replace(FULL, epochs=epochs), monotonic_s(), about()
    records: list[dict[str, Any]] = []
    with progress("training") as on_step:
        try:
            for number, seed in enumerate(chosen):
                records += work(recipe, seed, _of_many(on_step, number, len(chosen)))
        except KeyboardInterrupt:
            if not records:
                raise
            click.echo("stopped: the report is of the seeds that were done", err=True)
    results = {
        **ran,
        "data": ", ".join(dict.fromkeys(record["data"] for record in records)),
        "seeds": list(dict.fromkeys(record["seed"] for record in records)),
        "recipe": asdict(recipe),
        "seconds": round(monotonic_s() - began),
        "records": records,
    }
    finish(out, results, render(records), as_json)


def _of_many(on_step: OnStep, number: int, count: int) -> OnStep:
    """Steps of one seed as steps of all."""
    return lambda step, done, total: on_step(step, number * total + done, count * total)


def finish(out: Path, results: dict[str, Any], report: Report, as_json: bool) -> None:
    """Write everything; print the verdict and where the page is, or the JSON."""
    from aif_stream.training.report import write

    write(out, results, report)
    if as_json:
        click.echo((out / "results.json").read_text(encoding="utf-8"), nl=False)
        return
    for paragraph in report.verdict:
        click.echo(paragraph)
    click.echo(f"report → {out / 'report.html'}")
