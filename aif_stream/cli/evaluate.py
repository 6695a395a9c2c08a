"""``aif evaluate DIR DATA``: artefacts → test part → table or JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from rich.table import Table

    from aif_stream.training.evaluate import Evaluation

_SHOWN: Final = {
    "gauc": "GAUC",
    "auc": "AUC",
    "hr@100": "HR@100",
    "ndcg@100": "NDCG@100",
    "logloss": "log loss",
    "calibration": "calibration",
}


@click.command()
@click.argument("artefact", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--against", type=click.Path(path_type=Path), multiple=True, help="Another artefact; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array on stdout.")
def evaluate(artefact: Path, data: str, against: tuple[Path, ...], as_json: bool) -> None:
    """Judge the version in ARTEFACT on the test part (the newest tenth) of DATA, beside simple baselines.

    Values carry 95 % bootstrap intervals over users; with --against also the paired difference of each further model
    to the first. The cost is CPU time of one thread at 10,000 candidates and a history of 1,000. Served against
    trained: the split form on float32 rows, on the served 16-bit rows, and with bfloat16 products, against the joint
    form in float32.
    """
    from rich.console import Console

    from aif_stream.cli.train import reading
    from aif_stream.model.artefact import load
    from aif_stream.training.evaluate import CANDIDATES, evaluate_baselines, evaluate_versions
    from aif_stream.training.parity import parity

    versions = [load(path, offline=True) for path in (artefact, *against)]
    dataset = reading(data)
    found = [*evaluate_versions(versions, dataset), *evaluate_baselines(dataset)]
    same = {version.name: parity(version, dataset) for version in versions}
    if as_json:
        click.echo(json.dumps([_line(line, CANDIDATES) | {"parity": same.get(line.model, {})} for line in found]))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file has no width to fit
    console.print(_table(dataset.name, found))
    if len(versions) > 1:
        console.print(_differences(versions[0].name, found[1 : len(versions)]))
    for name, found_same in same.items():
        for form, line in found_same.items():
            console.print(
                f"{name}, {form} against trained: score error ≤ {line['score_error_max']:.1e} (scores deviate by"
                f" {line['score_deviation']:.2f}), top-100 overlap {line['top100_overlap_mean']:.3f}",
                highlight=False,
            )
    for metrics, candidates in CANDIDATES.items():
        console.print(f"{metrics}: {candidates}", style="dim", highlight=False)


def _line(line: Evaluation, candidates: dict[str, str]) -> dict[str, object]:
    metrics, difference = (
        {name: metric._asdict() for name, metric in values.items()} for values in (line.metrics, line.difference)
    )
    return {**line._asdict(), "metrics": metrics, "difference": difference, "candidates": candidates}


def _table(title: str, found: list[Evaluation]) -> Table:
    from rich.table import Table

    table = Table("model", *_SHOWN.values(), "ms / 10k", "MFLOP / 10k", title=title)
    for line in found:
        cells = []
        for name in _SHOWN:
            metric = line.metrics.get(name)
            cells.append(f"{metric.value:.4f}\n[{metric.low:.3f}, {metric.high:.3f}]" if metric else "")
        table.add_row(line.model, *cells, f"{line.online_ms_per_10k:.2f}", f"{line.online_mflop_per_10k:.1f}")
    return table


def _differences(first: str, found: list[Evaluation]) -> Table:
    from rich.table import Table

    table = Table("model", *_SHOWN.values(), title=f"less {first}, paired; * where zero lies outside the interval")
    for line in found:
        cells = []
        for name in _SHOWN:
            gap = line.difference[name]
            star = "" if gap.low <= 0 <= gap.high else " *"
            cells.append(f"{gap.value:+.4f}{star}\n[{gap.low:+.4f}, {gap.high:+.4f}]")
        table.add_row(line.model, *cells)
    return table
