"""``aif experiment crosses | latency``: what parts of a request cost, measured."""

from __future__ import annotations

from pathlib import Path

import click

from aif_stream.cli.experiment_options import JSON, OUT, finish, numbers


@click.command()
@click.option("--categories", default="10,100,1000,10000", show_default=True)
@click.option("--users", default="1000,10000,100000,1000000", show_default=True)
@click.option("--cache-mb", default="64,512", show_default=True, help="Of the cache of user sides.")
@click.option("--history", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@OUT
@JSON
def crosses(categories: str, users: str, cache_mb: str, history: int, seed: int, out: Path, as_json: bool) -> None:
    """Memory, fill time and hit rate of pre-computed crosses by categories and users."""
    from aif_stream.training.crosses import run_crosses
    from aif_stream.training.crosses_report import crosses_report
    from aif_stream.training.report import about, prepare

    sizes = numbers(categories, "--categories"), numbers(users, "--users"), numbers(cache_mb, "--cache-mb")
    prepare(out)
    ran = about()
    found = run_crosses(*sizes, history, seed)
    finish(out, {**ran, "seeds": [seed], **found}, crosses_report(found), as_json)
