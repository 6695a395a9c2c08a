"""``aif experiment bridges | signatures | ladder``: many models, trained and judged alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from aif_stream.cli.experiment_options import (
    EPOCHS,
    JSON,
    OUT,
    SEEDS,
    OnStep,
    data_of,
    data_option,
    numbers,
    train_and_report,
)

if TYPE_CHECKING:
    from aif_stream.training.loop import Recipe
    from aif_stream.training.report import Report
    from aif_stream.training.sweep import Entry

_DATA: Final = "synthetic:users=1000,items=10000,impressions=80000"
_STARTS: Final = "orthogonal,product,warm"


def _sweep_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    for option in (data_option(_DATA), SEEDS, EPOCHS, OUT, JSON):
        verb = option(verb)
    return verb


@click.command()
@click.option("--counts", default="1,2,4,8,16,32,50", show_default=True)
@click.option("--starts", default=_STARTS, show_default=True, help="How bridges begin and are used: also normal, norm.")
@_sweep_options
def bridges(counts: str, starts: str, **options: Any) -> None:
    """How many bridges pay, and whether they collapse: BEA alone over COLD."""
    from aif_stream.training.sweep import STARTS, bridge_entries
    from aif_stream.training.sweep_reports import bridges_report

    names = starts.split(",")
    if not set(names) <= set(STARTS):
        raise click.BadParameter(f"choose among {', '.join(STARTS)}", param_hint="--starts")
    _sweep(bridge_entries(numbers(counts, "--counts"), names), bridges_report, **options)


@click.command()
@click.option("--bits", default="16,32,64,128,256", show_default=True)
@click.option("--codes", default="256,1024,4096", show_default=True, help="Codewords of coded tiers; empty: none.")
@_sweep_options
def signatures(bits: str, codes: str, **options: Any) -> None:
    """Bits by form of the signature terms: quality against cost, between COLD and the exact bound."""
    from aif_stream.training.sweep import signature_entries
    from aif_stream.training.sweep_reports import signatures_report

    entries = signature_entries(numbers(bits, "--bits"), numbers(codes, "--codes") if codes else [])
    _sweep(entries, signatures_report, **options)


@click.command()
@_sweep_options
def ladder(**options: Any) -> None:
    """Two-tower → COLD → each part added, and each left out → the exact bound."""
    from aif_stream.training import sweep
    from aif_stream.training.sweep_reports import ladder_report

    _sweep(sweep.ladder(), ladder_report, **options)


def _sweep(entries: list[Entry], render: Callable[[Any], Report], data: str, **options: Any) -> None:
    from aif_stream.training.sweep import run_sweep

    source = data_of(data)

    def work(recipe: Recipe, seed: int, on_step: OnStep) -> list[dict[str, Any]]:
        return run_sweep(entries, source(seed), recipe, seed, on_step)

    train_and_report(work, render, **options)
