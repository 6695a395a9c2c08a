"""``aif experiment …``: questions that are answered by running something; JSON and one HTML page into ``--out``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from aif_stream.training.sweep import Entry

_DATA: Final = "synthetic:users=1000,items=10000,impressions=80000,seed=0"
_OUT = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="For results.json and report.html."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the results on stdout as well.")


def _sweep_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--data", default=_DATA, show_default=True, help="As of aif train."),
        click.option("--seeds", default="0", show_default=True, help="Of training, comma-separated."),
        click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True),
        _OUT,
        _JSON,
    ):
        verb = option(verb)
    return verb


@click.group()
def experiment() -> None:
    """Questions answered by running something: results.json and report.html into --out."""


@experiment.command()
@click.option("--counts", default="1,2,4,8,16,32,50", show_default=True)
@click.option("--starts", default="orthogonal,normal,norm", show_default=True, help="How bridges begin and are kept.")
@_sweep_options
def bridges(counts: str, starts: str, **options: Any) -> None:
    """How many bridges pay, and whether they collapse: BEA alone over COLD."""
    from aif_stream.training.report import bridges_page
    from aif_stream.training.sweep import bridge_entries

    known = ("orthogonal", "normal", "norm")
    names = starts.split(",")
    if not set(names) <= set(known):
        raise click.BadParameter(f"choose among {', '.join(known)}", param_hint="--starts")
    _sweep("bridges", bridge_entries(_numbers(counts, "--counts"), names), bridges_page, **options)


@experiment.command()
@click.option("--bits", default="16,32,64,128,256", show_default=True)
@click.option("--codes", default="256,1024", show_default=True, help="Codewords of coded tiers; empty: none.")
@_sweep_options
def signatures(bits: str, codes: str, **options: Any) -> None:
    """Bits by form of the signature terms: quality against cost, between COLD and the exact bound."""
    from aif_stream.training.report import frontier_page
    from aif_stream.training.sweep import signature_entries

    entries = signature_entries(_numbers(bits, "--bits"), _numbers(codes, "--codes") if codes else [])
    _sweep("signatures", entries, frontier_page, **options)


@experiment.command()
@_sweep_options
def ladder(**options: Any) -> None:
    """Two-tower → COLD → each part added, and each left out → the exact bound."""
    from aif_stream.training import sweep
    from aif_stream.training.report import frontier_page

    _sweep("ladder", sweep.ladder(), frontier_page, **options)


@experiment.command()
@click.option("--categories", default="10,100,1000,10000", show_default=True)
@click.option("--users", default="1000,10000,100000,1000000", show_default=True)
@click.option("--cache-mb", default="64,512", show_default=True, help="Of the cache of user sides.")
@click.option("--history", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@_OUT
@_JSON
def crosses(categories: str, users: str, cache_mb: str, history: int, seed: int, out: Path, as_json: bool) -> None:
    """Memory, fill time and hit rate of pre-computed crosses by categories and users."""
    from aif_stream.training.crosses import run_crosses
    from aif_stream.training.report import about, crosses_page, prepare

    prepare(out)
    found = run_crosses(
        _numbers(categories, "--categories"),
        _numbers(users, "--users"),
        _numbers(cache_mb, "--cache-mb"),
        history,
        seed,
    )
    _write("crosses", out, {**about(), **found}, crosses_page, found, as_json)


def _sweep(
    name: str,
    entries: list[Entry],
    render: Callable[[str, str, Any], str],
    data: str,
    seeds: str,
    epochs: int,
    out: Path,
    as_json: bool,
) -> None:
    from dataclasses import asdict, replace

    from rich.console import Console
    from rich.progress import Progress

    from aif_stream.cli.train import reading
    from aif_stream.training.loop import FULL
    from aif_stream.training.report import about, prepare
    from aif_stream.training.sweep import run_sweep

    prepare(out)
    recipe = replace(FULL, epochs=epochs)
    dataset = reading(data)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=None)

        def on_model(model: str, done: int, total: int) -> None:
            progress.update(task, description=model, completed=done, total=total)

        records = run_sweep(entries, dataset, recipe, _numbers(seeds, "--seeds"), on_model)
    results = {**about(), "data": dataset.name, "recipe": asdict(recipe), "records": records}
    _write(name, out, results, render, records, as_json)


def _write(
    name: str, out: Path, results: dict[str, Any], render: Callable[[str, str, Any], str], rows: Any, as_json: bool
) -> None:
    from aif_stream.training.report import write

    about = f"{results['command']}\n{results.get('data', '')}"
    write(out, results, render(f"aif experiment {name}", about, rows))
    if as_json:
        click.echo(json.dumps(results))
    else:
        click.echo(f"{out / 'report.html'}")


def _numbers(text: str, name: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of whole numbers", param_hint=name) from None
