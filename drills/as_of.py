"""``python -m drills.as_of``: the index as it was at T, rebuilt after 100,000 later updates, compared with a dump of T.

Real Kafka, Redis, one ``aif nearline``. A first load of items, removals, late events, profiles and behaviors; a dump
of all of Redis at T; then ``--updates`` more of the same; then the rebuild and the server of ``aif replay --as-of T``.
Every item (order, features, tombstone), row, profile and history must be what it was. Exit 3 when one is not.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import click
import orjson

from aif_stream.bus.groups import LIVE_GROUPS
from aif_stream.bus.producer import Ack
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.watch import GroupWatch
from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.ids import key_of
from aif_stream.domain.row import Rows
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.runtime.as_of import as_of_server
from aif_stream.settings import Settings
from aif_stream.telemetry import configure_logging
from drills.stack import drill_stack, untrained

OPEN_ACKS = 2_000
USERS = 200


class Dump(NamedTuple):
    """What Redis holds. ``items``: key -> (order, payload, removed); ``rows``: key -> row; ``users``: key -> (order and
    payload of the profile, history)."""

    items: Mapping[int, tuple[object, ...]]
    rows: Mapping[int, Rows]
    users: Mapping[int, tuple[object, ...]]


async def dump(settings: Settings, model: ModelVersion) -> Dump:
    items: dict[int, tuple[object, ...]] = {}
    rows: dict[int, Rows] = {}
    async with open_redis(settings) as redis:
        store = N2OStore(redis, Buckets(settings.index_buckets))
        for bucket in range(settings.index_buckets):
            async for some in store.scan_items(bucket):
                items.update((item.key, (item.id_text, item.order, item.payload, item.removed)) for item in some)
            async for keys, stored in store.scan_rows(bucket, model.name, model.layout):
                rows.update(zip(keys.tolist(), stored.copy(), strict=True))
        users = await HistoryStore(redis, settings.history_long).read_many([key_of(str(u)) for u in range(USERS)])
    return Dump(
        items, rows, {user: (told.attributes, told.order, told.history.tobytes()) for user, told in enumerate(users)}
    )


def different(then: Dump, now: Dump) -> dict[str, int]:
    """How many of each kind differ in any byte (of a row, but for ``computed_ms``)."""
    found = {
        name: len(a.keys() ^ b.keys()) + sum(a[key] != b[key] for key in a.keys() & b.keys())
        for name, a, b in (("items", then.items, now.items), ("users", then.users, now.users))
    }
    found["rows"] = len(then.rows.keys() ^ now.rows.keys())
    for key in then.rows.keys() & now.rows.keys():
        a, b = then.rows[key].copy(), now.rows[key].copy()
        a["computed_ms"] = b["computed_ms"] = 0
        found["rows"] += a.tobytes() != b.tobytes()
    return found


async def load(settings: Settings, model: ModelVersion, chance: random.Random, updates: int, items: int) -> None:
    """Item updates (3 % removals, 5 % late), and for every tenth a behavior, for every hundredth a profile."""
    width = model.config.content_width
    acks: deque[Ack] = deque()
    clicks: list[dict[str, Any]] = []
    profiles: list[dict[str, Any]] = []
    async with EventPublisher(settings, source="drill") as publisher:
        for number in range(updates):
            item = str(chance.randrange(items)) if chance.random() < 0.9 else f"sku-{chance.randrange(items)}"
            time_ms = now_ms() - (chance.randrange(60_000) if chance.random() < 0.05 else 0)
            if chance.random() < 0.03:
                acks.append(await publisher.remove(item, event_time_ms=time_ms))
            else:
                vector = [round(chance.gauss(0, 1), 3) for _ in range(width)] if width else None
                attributes: dict[str, str | int | float | list[str]] = {
                    "price": chance.randrange(100),
                    "brand": f"b{chance.randrange(9)}",
                }
                acks.append(
                    await publisher.item(
                        item,
                        category=f"c{chance.randrange(20)}",
                        attributes=attributes,
                        content_vector=vector,
                        event_time_ms=time_ms,
                    )
                )
            user = str(chance.randrange(USERS))
            if number % 10 == 0:
                clicks.append({"user_id": user, "item_id": item, "kind": "click", "event_time_ms": time_ms})
            if number % 100 == 0:
                profiles.append({"user_id": user, "attributes": {"age": number % 90}, "event_time_ms": time_ms})
            while len(acks) > OPEN_ACKS:
                await acks.popleft()
        for ack in acks:
            await ack
        await publisher.publish_lines("behaviors", map(orjson.dumps, clicks))
        await publisher.publish_lines("users", map(orjson.dumps, profiles))


async def caught_up(settings: Settings) -> None:
    """All three lanes, twice in a row."""
    for group, topic in LIVE_GROUPS.items():
        calm = 0
        async with GroupWatch(settings, group, [topic]) as watch, asyncio.timeout(300):
            while calm < 2:
                standing = (await watch.standing()).values()
                calm = calm + 1 if all(not s.lag_records for s in standing) else 0
                await asyncio.sleep(0.3)


async def prove(settings: Settings, model: ModelVersion, *, before: int, updates: int, items: int) -> dict[str, Any]:
    """See the module. ``settings`` of a running system whose active version is ``model``."""
    chance = random.Random(5)
    await load(settings, model, chance, before, items)
    await caught_up(settings)
    at_ms = now_ms()
    then = await dump(settings, model)
    await asyncio.sleep(0.01)  # the broker's stamps are whole milliseconds of the same clock
    await load(settings, model, chance, updates, items)
    await caught_up(settings)
    changed = different(then, await dump(settings, model))
    began_s = monotonic_s()
    async with as_of_server(settings, at_ms, lambda _: None) as as_of:
        found = different(then, await dump(as_of.settings, model))
        async with aiohttp.ClientSession() as http:
            body = {"user_id": "1", "candidates": [str(item) for item in range(items)], "k": 10, "deadline_ms": 2000}
            async with http.post(f"{as_of.url}/v1/rank", json=body) as reply:
                answer = await reply.json()
    return {
        "later_updates": updates,
        "compared": {"items": len(then.items), "rows": len(then.rows), "users": len(then.users)},
        "changed_since": changed,
        "different": found,
        "records_read": as_of.records,
        "rebuild_s": as_of.rebuild_s,
        "with_server_s": round(monotonic_s() - began_s, 1),
        "version": answer["model_version"],
        "ranked": len(answer["items"]),
    }


def wrong(result: Mapping[str, Any]) -> bool:
    """Whether anything differs, or nothing had changed (then nothing would be proven)."""
    told = result["different"]
    return bool(told["items"] or told["rows"] or told["users"]) or not result["changed_since"]["rows"]


@click.command()
@click.option("--before", default=20_000, show_default=True, help="updates until T")
@click.option("--updates", default=100_000, show_default=True, help="updates after T")
@click.option("--items", default=5_000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/as_of.json"))
def drill(before: int, updates: int, items: int, out: Path) -> None:
    """Prove that --as-of is what was. About three minutes."""
    configure_logging("ERROR")
    with tempfile.TemporaryDirectory(prefix="aif-as-of-drill-") as scratch:
        result = asyncio.run(_run(Path(scratch), before, updates, items))
    out.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    click.echo(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    sys.exit(3 if wrong(result) else 0)


async def _run(directory: Path, before: int, updates: int, items: int) -> dict[str, Any]:
    artefact = await asyncio.to_thread(untrained, directory / "model")
    async with drill_stack(directory, model=artefact, workers=1) as stack:
        return await prove(stack.settings, stack.model, before=before, updates=updates, items=items)


if __name__ == "__main__":
    drill()
