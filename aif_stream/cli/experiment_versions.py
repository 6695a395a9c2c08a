"""``aif experiment skew | staleness``: what it costs when what is ranked with does not belong together, or is late."""

from __future__ import annotations

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
    train_and_report,
)

if TYPE_CHECKING:
    from aif_stream.training.loop import Recipe

_DATA: Final = "synthetic:users=1000,items=10000,impressions=80000"
_ROADS: Final = "anew,same start,fine-tuned"
_DELAYS: Final = "0,1 s,10 s,1 min,10 min,1 h,6 h,1 day,3 days"


@click.command()
@data_option(_DATA)
@click.option("--versions", type=click.IntRange(min=2), default=4, show_default=True, help="Of a chain.")
@click.option("--roads", default=_ROADS, show_default=True, help="How each version comes from the one before.")
@SEEDS
@EPOCHS
@OUT
@JSON
def skew(data: str, versions: int, roads: str, **options: Any) -> None:
    """Quality when item rows and user side come from versions that are one, two, … apart."""
    from aif_stream.training.skew import ROADS, run_skew
    from aif_stream.training.skew_report import skew_report

    chosen = _among(roads, ROADS, "--roads")

    source = data_of(data)

    def work(recipe: Recipe, seed: int, on_step: OnStep) -> list[dict[str, Any]]:
        return run_skew(source(seed), chosen, versions, recipe, seed, on_step)

    train_and_report(work, skew_report, **options)


@click.command()
@data_option(_DATA)
@click.option("--delays", default=_DELAYS, show_default=True)
@SEEDS
@EPOCHS
@OUT
@JSON
def staleness(data: str, delays: str, **options: Any) -> None:
    """Quality against the delay of item updates and of histories."""
    from aif_stream.training.staleness import DELAYS_S, run_staleness
    from aif_stream.training.staleness_report import staleness_report

    chosen = _among(delays, tuple(DELAYS_S), "--delays")

    source = data_of(data)

    def work(recipe: Recipe, seed: int, on_step: OnStep) -> list[dict[str, Any]]:
        return run_staleness(source(seed), chosen, recipe, seed, on_step)

    train_and_report(work, staleness_report, **options)


def _among(text: str, known: tuple[str, ...], name: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    if not set(chosen) <= set(known):
        raise click.BadParameter(f"choose among {', '.join(known)}", param_hint=name)
    return chosen
