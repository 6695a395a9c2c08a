"""Rows that are missing or too old, computed from the stored features within the request (bounded, in budget)."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.clock import now_ms
from aif_stream.domain.events import ItemUpserted, decode_item
from aif_stream.errors import BadEvent, IndexRefused, IndexUnavailable
from aif_stream.index.item_codec import StoredItem
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.online.breaker import Breaker
from aif_stream.online.deadline import Deadline
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.scoring import Part, too_old
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# 256 rows take about 3 ms to read and compute; what takes longer than this is not worth the wait.
_BUDGET_S: Final = 0.03


class Recompute:
    """The miss path and the age policy. At most ``recompute_max`` rows per call; 0 turns it off."""

    def __init__(self, settings: Settings, store: N2OStore, threads: ComputeThreads, redis: Breaker) -> None:
        self._store = store
        self._threads = threads
        self._redis = redis
        self._most = settings.recompute_max
        self._policy = settings.age_policy
        self._limit_s = settings.age_limit_s

    @property
    def reads_ages(self) -> bool:
        """Whether an age policy looks at every row."""
        return self._limit_s > 0

    @property
    def fills(self) -> bool:
        """Whether a key that the mirror does not know is looked for in Redis."""
        return self._most > 0

    def wants(self, part: Part) -> bool:
        """Whether ``complete`` would look at anything of this part."""
        if self._limit_s > 0:
            return True
        missing = ~part.found
        return self._most > 0 and bool(missing.any() and (part.rows["event_time_ms"][missing] == 0).any())

    async def complete(self, model: ModelVersion, part: Part, deadline: Deadline, reserve_s: float) -> list[str]:
        """Fill what can be filled of ``part`` and apply the age policy to the rest. Returns reasons of degradation.

        A missing row is one that the join did not find at all; an invalid or removed item stays what it is.
        """
        reasons = []
        wanted = np.flatnonzero(~part.found & (part.rows["event_time_ms"] == 0))
        old = too_old(part, now_ms(), self._limit_s)
        if self._policy == "recompute":
            wanted = np.concatenate([wanted, np.flatnonzero(old)])
        wanted = wanted[: self._most]
        if wanted.size and self._redis.allows():
            try:
                async with asyncio.timeout(deadline.left_s(reserve_s, _BUDGET_S)):
                    await self._fill(model, part, wanted, deadline)
                self._redis.succeeded()
            except (IndexUnavailable, IndexRefused, TimeoutError) as error:
                if isinstance(error, IndexUnavailable):
                    self._redis.failed()
                log.warning(kv("recompute.failed", rows=wanted.size, error=str(error) or "timeout"))
                reasons.append("recompute")
        if self._limit_s > 0:
            old = too_old(part, now_ms(), self._limit_s)
            part.stale = int(old.sum())
            if self._policy == "drop":
                part.dropped |= old
            if part.stale and self._policy != "serve":
                reasons.append("stale")
        return reasons

    async def _fill(self, model: ModelVersion, part: Part, wanted: NDArray[np.intp], deadline: Deadline) -> None:
        stored = await self._store.read_items(part.keys[wanted].tolist())
        living = [(at, item) for at, item in zip(wanted.tolist(), stored, strict=True) if item and not item.removed]
        if living:
            await self._threads.run(lambda: _write_rows(model, part, living), deadline.due_s)


def _write_rows(model: ModelVersion, part: Part, living: list[tuple[int, StoredItem]]) -> None:
    """Compute rows of the items and put them in their places of the part."""
    places: list[int] = []
    items: list[ItemUpserted] = []
    orders = []
    for at, item in living:
        try:
            items.append(decode_item(item.payload))
        except BadEvent as error:
            log.error(kv("recompute.unreadable", item=item.id_text, error=error))
            continue
        places.append(at)
        orders.append(item.order)
    if not items:
        return
    times, offsets = np.array(orders, np.uint64).T
    rows = model.item_rows(items, times, offsets, now_ms()).rows
    if not part.rows.flags.writeable:
        part.rows = part.rows.copy()
    part.rows[places] = rows
    part.found[places] = True
    part.recomputed += len(places)
