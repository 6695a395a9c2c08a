"""A micro-batch of events as columns: what the store writes, and what became of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.ids import HASHED_BIT, Keys, direct_id, is_hashed
from aif_stream.domain.order import Order
from aif_stream.errors import BadInput
from aif_stream.index.item_codec import ORDER_LIMIT, ItemWrite, WriteResult, WriteStatus

_STATUS = tuple(WriteStatus)  # indexing a tuple takes a tenth of calling an enum


@dataclass(frozen=True, slots=True)
class Writes:
    """n events: ``times`` and ``offsets`` u64 (n) are their orders, ``payloads`` (n) the producers' bytes, None for a
    removal. ``names`` (n): ids of hashed keys as bytes, b"" for a key that spells its id; None when all do."""

    keys: Keys
    times: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    payloads: list[bytes | None]
    names: list[bytes] | None

    @classmethod
    def of(cls, batch: Sequence[ItemWrite]) -> Self:
        """The same events from single ones."""
        flat = itertools.chain.from_iterable([item.order for item in batch])
        orders = np.fromiter(flat, dtype=np.uint64, count=2 * len(batch)).reshape(-1, 2)
        keys = np.fromiter((item.key for item in batch), dtype=np.uint64, count=len(batch))
        names = [name_of(item.key, item.id_text) for item in batch]
        orders = np.ascontiguousarray(orders.T)
        return cls(keys, orders[0], orders[1], [item.payload for item in batch], names if any(names) else None)

    def __len__(self) -> int:
        return len(self.payloads)

    @property
    def removed(self) -> list[int]:
        """Places of the removals."""
        return [i for i, payload in enumerate(self.payloads) if payload is None]

    def one(self, i: int) -> ItemWrite:
        """Event ``i``."""
        key, order = int(self.keys[i]), Order(int(self.times[i]), int(self.offsets[i]))
        name = self.names[i].decode("utf-8", "surrogatepass") if self.names and is_hashed(key) else ""
        return ItemWrite(key, name or direct_id(key), order, self.payloads[i])

    def check_orders(self) -> None:
        """Raises ``BadInput`` when an order passes 2**53: the script compares them as doubles."""
        beyond = np.flatnonzero((self.times >= ORDER_LIMIT) | (self.offsets >= ORDER_LIMIT))
        if len(beyond):
            item = self.one(int(beyond[0]))
            order = f"{item.order.event_time_ms}/{item.order.offset}"
            raise BadInput(f"order {order} of item {item.id_text} passes 2**53", field="event_time_ms")


class Outcome(NamedTuple):
    """What became of n events: ``status`` u8 (n) as in ``WriteStatus``; ``times`` and ``offsets`` u64 (n): the order
    that the store holds afterwards (for a collision: the other item's)."""

    status: NDArray[np.uint8]
    times: NDArray[np.uint64]
    offsets: NDArray[np.uint64]

    def one(self, i: int) -> WriteResult:
        return WriteResult(_STATUS[int(self.status[i])], Order(int(self.times[i]), int(self.offsets[i])))


def name_of(key: int, id_text: str) -> bytes:
    """What is stored of an id beside its key."""
    return id_text.encode("utf-8", "surrogatepass") if key >= HASHED_BIT else b""
