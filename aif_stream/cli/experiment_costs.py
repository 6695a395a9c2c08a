"""``aif experiment crosses | latency``: what parts of a request cost, measured."""

from __future__ import annotations

from pathlib import Path

import click

from aif_stream.cli.experiment_options import JSON, OUT, finish, numbers, progress


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


@click.command()
@click.option("--retrieval-ms", default="0,5,10,20,50", show_default=True)
@click.option("--history", default="100,1000,10000", show_default=True)
@click.option("--candidates", default="2000,10000", show_default=True)
@click.option("--requests", type=click.IntRange(min=4), default=200, show_default=True, help="Of each cell and mode.")
@click.option("--items", type=click.IntRange(min=1), default=30_000, show_default=True)
@click.option("--models", default="cold,classic,coded", show_default=True, help="Whose CPU is compared with AIF's.")
@OUT
@JSON
def latency(
    retrieval_ms: str,
    history: str,
    candidates: str,
    requests: int,
    items: int,
    models: str,
    out: Path,
    as_json: bool,
) -> None:
    """The user side beside retrieval or after it, on real servers; CPU per answer against COLD, split as AIF is and
    served the classic way (every tower at request time)."""
    from aif_stream.bench.statement import beside
    from aif_stream.cli.entry import run_async
    from aif_stream.clock import monotonic_s
    from aif_stream.runtime.latency import Plan, run_latency
    from aif_stream.runtime.latency_report import latency_report
    from aif_stream.runtime.latency_stack import MODELS
    from aif_stream.training.report import about, prepare

    chosen = [part for part in models.split(",") if part]
    if not set(chosen) <= set(MODELS):
        raise click.BadParameter(f"choose among {', '.join(MODELS)}", param_hint="--models")
    plan = Plan(
        numbers(retrieval_ms, "--retrieval-ms"),
        numbers(history, "--history"),
        numbers(candidates, "--candidates"),
        requests,
        items,
        chosen,
    )
    if min(plan.candidates) < 1 or max(plan.candidates) > items:
        raise click.BadParameter(f"between 1 and --items ({items})", param_hint="--candidates")
    prepare(out)
    ran, around, began = about(), beside(), monotonic_s()
    with progress("latency") as on_step:
        found = run_async(run_latency(plan, on_step))
    results = {**ran, "seeds": [1], "seconds": round(monotonic_s() - began), "beside": around, **found}
    finish(out, results, latency_report(found), as_json)
