"""``aif evaluate DIR DATA``: artefacts → test part → table or JSON."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("artefact", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--against", type=click.Path(path_type=Path), multiple=True, help="Another artefact; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array on stdout.")
def evaluate(artefact: Path, data: str, against: tuple[Path, ...], as_json: bool) -> None:
    """Judge the version in ARTEFACT on the test part (the newest tenth) of DATA, beside simple baselines.

    Values carry 95 % bootstrap intervals over users. The cost is measured at 10,000 candidates and a history
    of 1,000.
    """
    from rich.console import Console
    from rich.table import Table

    from aif_stream.model.artefact import load
    from aif_stream.training.evaluate import evaluate_baselines, evaluate_version
    from aif_stream.training.sources import open_data

    versions = [load(path) for path in (artefact, *against)]
    dataset = open_data(data)
    found = [*(evaluate_version(version, dataset) for version in versions), *evaluate_baselines(dataset)]
    if as_json:
        lines = [
            {**line._asdict(), "metrics": {name: metric._asdict() for name, metric in line.metrics.items()}}
            for line in found
        ]
        click.echo(json.dumps(lines))
        return
    table = Table("model", "GAUC", "AUC", "HR@100", "ms / 10k", "MFLOP / 10k", title=dataset.name)
    for line in found:
        cells = [f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]" for metric in line.metrics.values()]
        table.add_row(line.model, *cells, f"{line.online_ms_per_10k:.2f}", f"{line.online_mflop_per_10k:.1f}")
    Console().print(table)
