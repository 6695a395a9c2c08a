"""``aif model status --watch``: rebuilds as they go, with rate and time to go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from aif_stream.clock import monotonic_s
from aif_stream.settings import Settings

_EVERY_S: Final = 1.0
_REBUILDING: Final = ("published", "rebuilding")

Versions = Callable[[Settings], Awaitable[list[dict[str, Any]]]]


class Pace:
    """Rate and time to go of one rebuild, from the first look at it to the latest."""

    def __init__(self) -> None:
        self._first: tuple[float, int, int] | None = None

    def add(self, now_s: float, rebuild: dict[str, Any]) -> None:
        """Put ``items_per_s`` and ``eta_s`` into a version's ``rebuild``; they stay 0 and None until it has moved."""
        done, items = rebuild["done"], rebuild.get("items", 0)
        if self._first is None or done < self._first[1]:  # a rebuild that was begun anew counts anew
            self._first = (now_s, done, items)
        since_s, before, items_before = self._first
        if done > before:
            took_s = now_s - since_s
            rebuild["items_per_s"] = max(0, items - items_before) / took_s
            rebuild["eta_s"] = (rebuild["total"] - done) * took_s / (done - before)


async def watch_rebuilds(settings: Settings, versions: Versions, as_json: bool) -> None:
    """Show every rebuild until none is left. Raises what reading Kafka and Redis raises."""
    paces: dict[str, Pace] = {}
    text = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), text)
    with Progress(*columns, console=Console(stderr=as_json), disable=as_json) as bars:
        tasks: dict[str, TaskID] = {}
        while True:
            found = await versions(settings)
            now_s, open_ = monotonic_s(), 0
            for version in found:
                rebuild = version["rebuild"]
                building = version["state"] in _REBUILDING and rebuild["done"] < rebuild["total"]
                open_ += building
                if building or version["version"] in tasks:
                    paces.setdefault(version["version"], Pace()).add(now_s, rebuild)
                    _show(bars, tasks, version)
            if as_json:
                click.echo(orjson.dumps(found).decode())
            if not open_:
                break
            await asyncio.sleep(_EVERY_S)
    if not as_json:
        click.echo("no version is being rebuilt")


def _show(bars: Progress, tasks: dict[str, TaskID], version: dict[str, Any]) -> None:
    name, rebuild = version["version"], version["rebuild"]
    if name not in tasks:
        tasks[name] = bars.add_task(name, total=rebuild["total"], rate="")
    eta = rebuild["eta_s"]
    rate = f"{rebuild['items_per_s']:,.0f} items/s" + (f", {eta:,.0f} s to go" if eta is not None else "")
    bars.update(tasks[name], completed=rebuild["done"], rate=rate)
