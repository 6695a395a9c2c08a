"""``aif train DATA --out DIR``: data → trainer → artefact."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from aif_stream.training.dataset import Dataset
    from aif_stream.training.loop import Recipe


def reading(spec: str) -> Dataset:
    """Open a data set with a progress bar on a terminal; what was left out of it is told on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from aif_stream.training.sources import open_data

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def on_read(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(f"reading {name}", total=total)
            progress.update(tasks[name], completed=done)

        data = open_data(spec, on_read)
    for note in data.notes:
        console.print(f"{data.name}: {note}", highlight=False)
    return data


@click.command()
@click.argument("data")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Directory of the artefact; must not exist."
)
@click.option(
    "--model",
    type=click.Choice(["aif", "cold", "twotower", "din", "exact", "hamming"]),
    default="aif",
    show_default=True,
)
@click.option(
    "--preset", type=click.Choice(["full", "quick"]), default="full", show_default=True, help="quick: seconds."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--name", help="Version name. Default: the name of the directory.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--restart", is_flag=True, help="Begin anew, though a checkpoint of an earlier run is there.")
@click.option("--checkpoint-every", default=60.0, show_default=True, metavar="SECONDS", help="Besides each epoch.")
@click.option(
    "--set",
    "choices",
    multiple=True,
    metavar="NAME=VALUE",
    help="A field of the model's config or of the recipe (docs/model.md); VALUE is JSON. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def train(
    data: str,
    out: Path,
    model: str,
    preset: str,
    seed: int,
    name: str | None,
    device: str,
    restart: bool,
    checkpoint_every: float,
    choices: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a model version on DATA and write its artefact.

    DATA: movielens:DIR (RecBole's ml-100k, GroupLens' 1M or 20M; ratings from 4 on are clicks),
    taobao:UserBehavior.csv, events:DIR (any tables, with a mapping.toml), or
    synthetic:users=U,items=I,impressions=N,seed=S. The models din, exact and hamming are bounds to compare with: they
    are judged by aif evaluate, never served.

    A run that was killed goes on from its checkpoint (OUT.checkpoint) when it is called again.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from aif_stream.errors import ArtefactError
    from aif_stream.model.artefact import save
    from aif_stream.model.config import Kind
    from aif_stream.training.loop import FULL, QUICK, Epoch, Recipe, Trainer

    console = Console(stderr=True)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtefactError(f"{out} exists already", mend="versions are never overwritten: choose another --out")
    recipe, config = _chosen({"full": FULL, "quick": QUICK}[preset], choices)
    recipe = _converted({**asdict(recipe), "seed": seed, "device": device}, Recipe)
    trainer = Trainer(reading(data), name or out.resolve().name, recipe, kind=Kind(model), **config)
    checkpoint = out.with_name(out.name + ".checkpoint")
    if restart:
        checkpoint.unlink(missing_ok=True)
    standing = trainer.keep(checkpoint, checkpoint_every)
    if standing is not None:
        console.print(
            f"going on from {checkpoint}: epoch {standing.epoch}, {standing.batch} batches of it done", soft_wrap=True
        )
    columns = (TextColumn("epoch {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("1", total=None)

        def on_batch(epoch: int, batch: int, batches: int, loss: float) -> None:
            progress.update(task, description=f"{epoch} · loss {loss:.4f}", completed=batch, total=batches)

        def on_epoch(epoch: Epoch) -> None:
            progress.console.print(
                f"epoch {epoch.number}: loss {epoch.loss:.4f}, validation GAUC {epoch.valid_gauc:.4f},"
                f" {epoch.seconds:.1f} s"
            )

        version = trainer.run(on_batch, on_epoch)
    manifest = save(out, version)
    checkpoint.unlink(missing_ok=True)
    if as_json:
        click.echo(json.dumps({"version": manifest.version, "artefact": str(out), "metrics": manifest.metrics}))
        return
    test = version.metrics["test_gauc"]
    click.echo(f"{manifest.version}: test GAUC {test['value']:.4f} [{test['low']:.4f}, {test['high']:.4f}] → {out}")


def _chosen(recipe: Recipe, choices: tuple[str, ...]) -> tuple[Recipe, dict[str, Any]]:
    """``--set`` options as a recipe and as overrides of the config, both checked."""
    import msgspec

    from aif_stream.model.config import ModelConfig

    of_recipe, of_config = asdict(recipe), {}
    types = {field.name: field.type for field in msgspec.structs.fields(ModelConfig)}
    for choice in choices:
        name, _, text = choice.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if name in {field.name for field in fields(recipe)} - {"seed", "device"}:
            of_recipe[name] = value
        elif name in types and name != "kind":
            of_config[name] = _converted(value, types[name], name)
        else:
            raise click.BadParameter(f"{name!r} is no field of the config or the recipe", param_hint="--set")
    return _converted(of_recipe, type(recipe)), of_config


def _converted(value: Any, kind: Any, name: str = "") -> Any:
    import msgspec

    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise click.BadParameter(f"{name}: {error}" if name else str(error), param_hint="--set") from None
