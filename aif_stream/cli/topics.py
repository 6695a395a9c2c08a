"""``aif topics``: the contracts in ``topics/`` against the broker."""

from __future__ import annotations

from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from aif_stream.bus import admin
from aif_stream.bus.topics import TopicSpec, contracts_dir, load_topics
from aif_stream.cli.entry import run_async, with_settings
from aif_stream.settings import Settings

_JSON = click.option("--json", "as_json", is_flag=True, help="JSON on stdout")
_SHORTEN = click.option("--shorten", is_flag=True, help="allow changes that make the broker delete sooner")


@click.group()
def topics() -> None:
    """Topic contracts: compare with the broker, create, alter."""


@topics.command()
@_JSON
@_SHORTEN
@click.option("--check", is_flag=True, help="exit 3 when the broker differs from the contracts")
@with_settings
def plan(settings: Settings, as_json: bool, shorten: bool, check: bool) -> int:
    """Say what `apply` would create, alter and refuse. Changes nothing; exit 0."""
    found = run_async(admin.plan(settings, _specs(settings), shorten=shorten))
    _print_plan(found, as_json, done=False)
    return 3 if check and not found.empty else 0


@topics.command()
@_JSON
@_SHORTEN
@with_settings
def apply(settings: Settings, as_json: bool, shorten: bool) -> int:
    """Create and alter topics. Repeatable.

    Refuses what would lose data or order: fewer partitions, more partitions of a topic with keys, another number of
    copies, compact to delete or back, and (without --shorten) shorter retention. Exit 1 when something was refused.
    """
    found = run_async(admin.apply(settings, _specs(settings), shorten=shorten))
    _print_plan(found, as_json, done=True)
    return 1 if found.refused else 0


@topics.command()
@_JSON
@with_settings
def describe(settings: Settings, as_json: bool) -> int:
    """Show the topics of the contracts as the broker has them."""
    found = run_async(admin.describe_topics(settings, _specs(settings)))
    if as_json:
        shape = [
            {
                "topic": topic.topic,
                "partitions": topic.partitions,
                "replication": topic.replication,
                "cleanup": topic.cleanup,
                "config": topic.config,
            }
            for topic in found
        ]
        click.echo(orjson.dumps(shape).decode())
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("topic", "partitions", "replication", "cleanup"):
        table.add_column(heading)
    for topic in found:
        table.add_row(topic.topic, str(topic.partitions), str(topic.replication), topic.cleanup)
    Console().print(table)
    return 0


def _specs(settings: Settings) -> dict[str, TopicSpec]:
    return load_topics(contracts_dir(settings))


def _print_plan(found: admin.Plan, as_json: bool, *, done: bool) -> None:
    if as_json:
        click.echo(orjson.dumps(_shape(found)).decode())
        return
    for creation in found.create:
        click.echo(
            f"{'created' if done else 'create'} {creation.topic}: {creation.partitions} partitions, "
            f"{creation.replication} copies, {creation.config['cleanup.policy']}"
        )
    for alteration in found.alter:
        changes = [f"{name} {now} → {new}" for name, (now, new) in alteration.config.items()]
        if alteration.partitions:
            changes.append(f"partitions {alteration.partitions[0]} → {alteration.partitions[1]}")
        click.echo(f"{'altered' if done else 'alter'} {alteration.topic}: {', '.join(changes)}")
    for refusal in found.refused:
        click.echo(f"refused {refusal.topic}: {refusal.problem} → {refusal.mend}")
    if found.empty:
        click.echo("the broker has what the contracts say")
    for note in found.notes:
        click.echo(f"note: {note}", err=True)


def _shape(found: admin.Plan) -> dict[str, Any]:
    return {
        "create": [
            {
                "topic": c.topic,
                "partitions": c.partitions,
                "replication": c.replication,
                "cleanup": c.config["cleanup.policy"],
                "config": dict(c.config),
            }
            for c in found.create
        ],
        "alter": [
            {
                "topic": a.topic,
                "config": {name: {"from": now, "to": new} for name, (now, new) in a.config.items()},
                "partitions": {"from": a.partitions[0], "to": a.partitions[1]} if a.partitions else None,
            }
            for a in found.alter
        ],
        "refused": [{"topic": r.topic, "problem": r.problem, "mend": r.mend} for r in found.refused],
        "notes": found.notes,
    }
