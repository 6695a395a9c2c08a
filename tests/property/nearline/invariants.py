"""Design §2.1, §2.2, §2.5 as questions to Redis and to a server's mirrors, asked after every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aif_stream.domain.events import decode_item
from aif_stream.domain.ids import key_of
from aif_stream.domain.order import Order
from aif_stream.domain.row import TOMBSTONE, from_stored
from aif_stream.index.item_codec import StoredItem, unpack_item
from aif_stream.index.keys import items_key, rows_key, versions_key
from aif_stream.index.wire import pack
from aif_stream.model.version import ModelVersion
from tests.precision import EPS16
from tests.property.nearline.protocol import BUCKETS, World

# Two units in the last place: a batch of another size may round elsewhere. Versions differ by 0.3.
TOLERANCE = 2 * EPS16


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass
class Seen:
    """The index at one moment."""

    items: dict[int, StoredItem] = field(default_factory=dict)
    rows: dict[str, dict[int, bytes]] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)


async def look(world: World) -> Seen:
    """All of it in one transaction's worth: nobody else acts meanwhile."""
    seen = Seen(rows={name: {} for name in world.models}, listed=dict.fromkeys(world.models, 0))
    for bucket in range(BUCKETS.count):
        places = [items_key(bucket), *(rows_key(bucket, name) for name in world.models)]
        commands = [pack("HGETALL", place) for place in places] + [pack("SMEMBERS", versions_key(bucket))]
        stored, *rows, listed = await world.redis.execute(commands, [*places, versions_key(bucket)])
        for field_, value in zip(stored[0::2], stored[1::2], strict=True):
            key = int.from_bytes(field_, "little")
            seen.items[key] = unpack_item(key, value)
        for name, flat in zip(world.models, rows, strict=True):
            seen.rows[name].update(
                (int.from_bytes(k, "little"), v) for k, v in zip(flat[0::2], flat[1::2], strict=True)
            )
        for name in listed:
            seen.listed[name.decode()] += 1
    return seen


class Judge:
    """Remembers what it saw, to know what may never happen."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._orders: dict[int, Order] = {}
        self.freed: set[str] = set()

    async def check(self) -> Seen:
        seen = await look(self._world)
        events = {(key_of(name), order): payload for (name, order), payload in self._world.events.items()}
        self._items_only_go_forward(seen, events)
        self._rows_are_of_their_version(seen, events)
        for version in await self._world.may_answer():
            self._every_item_has_its_latest_row(seen, version)
        for version in self.freed:
            if seen.rows[version] or seen.listed[version]:
                raise Broken(f"retired version {version} came back: {len(seen.rows[version])} rows")
        self._mirrors_hold_one_version(events)
        return seen

    def _items_only_go_forward(self, seen: Seen, events: Mapping[tuple[int, Order], bytes | None]) -> None:
        for key, item in seen.items.items():
            before = self._orders.get(key)
            if before is not None and item.order < before:
                raise Broken(f"2.2: item {key} went back from {before} to {item.order}")
            if (events[key, item.order] or b"") != item.payload:
                raise Broken(f"2.2: item {key} has the order of one event and the features of another")
            self._orders[key] = item.order
        if lost := self._orders.keys() - seen.items.keys():
            raise Broken(f"items {lost} are gone")

    def _rows_are_of_their_version(self, seen: Seen, events: Mapping[tuple[int, Order], bytes | None]) -> None:
        for version, rows in seen.rows.items():
            model = self._world.models[version]
            for key, data in rows.items():
                row = from_stored(model.layout, data)
                order = Order(int(row["event_time_ms"]), int(row["offset"]))
                if not same_row(model, row, events[key, order], order):
                    raise Broken(f"2.1: the row of item {key} under {version} is not that version's item side")

    def _every_item_has_its_latest_row(self, seen: Seen, version: str) -> None:
        for key, item in seen.items.items():
            data = seen.rows[version].get(key)
            if data is None:
                if item.removed:  # a tombstone from before the version needs no row
                    continue
                raise Broken(f"2.5: {version} may answer and lacks the row of item {key}")
            order = Order.unpack(data)
            if order != item.order:
                raise Broken(f"2.5: {version} may answer and has item {key} as of {order}, features are {item.order}")

    def _mirrors_hold_one_version(self, events: Mapping[tuple[int, Order], bytes | None]) -> None:
        for version, (mirror, _) in self._world.server.mirrors.items():
            model = self._world.models[version]
            keys = np.array(sorted(self._orders), dtype=np.uint64)
            with mirror.reading() as view:
                rows, found = view.join(keys)
            for key, row, there in zip(keys.tolist(), rows, found, strict=True):
                order = Order(int(row["event_time_ms"]), int(row["offset"]))
                if there and not same_row(model, row, events[key, order], order):
                    raise Broken(f"2.1: the mirror of {version} has another version's row of item {key}")

    async def check_at_rest(self) -> None:
        """Everything is done: the newest event of every item counts, in Redis and in the mirror that answers."""
        seen = await self.check()
        newest: dict[int, Order] = {}
        for name, order in self._world.events:
            newest[key_of(name)] = max(order, newest.get(key_of(name), order))
        if {key: item.order for key, item in seen.items.items()} != newest:
            raise Broken("2.2: an item is not as its newest event")
        book = self._world.book()
        if book.active is None:
            return
        mirror, _ = self._world.server.mirrors[book.active]
        keys = np.array(sorted(newest), dtype=np.uint64)
        with mirror.reading() as view:
            rows, found = view.join(keys)
        for key, row, there in zip(keys.tolist(), rows, found, strict=True):
            if there is np.bool_(seen.items[key].removed):
                raise Broken(f"2.5: the mirror of {book.active} and the index disagree about item {key}")
            if there and (int(row["event_time_ms"]), int(row["offset"])) != newest[key]:
                raise Broken(f"2.5: the mirror of {book.active} has an older row of item {key}")


_EXPECTED: dict[tuple[str, Order, bytes], np.void] = {}


def same_row(model: ModelVersion, row: np.void, payload: bytes | None, order: Order) -> bool:
    """Whether a row is the version's item side of an event (None: its tombstone)."""
    if payload is None:
        return bool(int(row["flags"]) & TOMBSTONE)
    if (model.name, order, payload) not in _EXPECTED:
        packed = np.array([order], dtype=np.uint64)
        rows, _ = model.item_rows([decode_item(payload)], packed[:, 0], packed[:, 1], 0)
        _EXPECTED[model.name, order, payload] = rows[0]
    expected = _EXPECTED[model.name, order, payload]
    return (
        row["flags"] == expected["flags"]
        and row["category"] == expected["category"]
        and row["sig"].tobytes() == expected["sig"].tobytes()
        and all(
            np.allclose(row[name].astype("f4"), expected[name].astype("f4"), rtol=TOLERANCE, atol=TOLERANCE)
            for name in ("h", "t", "w")
        )
    )
