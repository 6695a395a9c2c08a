"""A live load whose truth is known: what the newest event of every item is, late and repeated events included."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from aif_stream.bus.producer import Ack
from aif_stream.bus.publisher import EventPublisher
from aif_stream.clock import now_ms
from aif_stream.settings import Settings

REMOVED_SHARE = 0.03
LATE_SHARE = 0.05
REPEAT_SHARE = 0.02
TICK_S = 0.02


@dataclass(slots=True)
class Load:
    """Updates of ``items`` items at ``rate`` events/s until it is stopped; an item's event times all differ."""

    settings: Settings
    items: int
    rate: int
    content_width: int
    seed: int = 7
    truth: dict[str, tuple[int, dict[str, Any] | None]] = field(default_factory=dict)
    sent: int = 0
    late: int = 0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Publish until ``stop``; on return every event that counts in ``truth`` is acknowledged."""
        self._stop.clear()
        chance = random.Random(self.seed + self.sent)
        async with EventPublisher(self.settings, source="drill") as publisher:
            acks: deque[Ack] = deque()
            due = asyncio.get_running_loop().time()
            while not self._stop.is_set():
                for _ in range(max(1, int(self.rate * TICK_S))):
                    await self._one(publisher, chance, acks)
                while acks and acks[0].done():
                    await acks.popleft()
                due += TICK_S
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            for ack in acks:
                await ack

    def stop(self) -> None:
        self._stop.set()

    async def _one(self, publisher: EventPublisher, chance: random.Random, acks: deque[Ack]) -> None:
        item = self._choose(chance)
        known_ms, _ = self.truth.get(item, (0, None))
        time_ms = max(now_ms(), known_ms + 1)
        is_late = bool(known_ms) and chance.random() < LATE_SHARE
        if is_late:
            # Not one that was sent before: an equal time would be decided by the offset.
            time_ms = known_ms - chance.randrange(1, 60_000) * 2 - 1
            self.late += 1
        event = None if chance.random() < REMOVED_SHARE else self._features(item, chance)
        for _ in range(2 if chance.random() < REPEAT_SHARE else 1):
            acks.append(await self._publish(publisher, item, event, time_ms))
        if time_ms > known_ms:
            self.truth[item] = (time_ms, event)

    def _choose(self, chance: random.Random) -> str:
        """The item that changes next."""
        return str(chance.randrange(self.items)) if chance.random() < 0.9 else f"sku-{chance.randrange(self.items)}"

    async def _publish(self, publisher: EventPublisher, item: str, event: dict[str, Any] | None, time_ms: int) -> Ack:
        self.sent += 1
        if event is None:
            return await publisher.remove(item, event_time_ms=time_ms)
        return await publisher.item(**event, event_time_ms=time_ms)

    def _features(self, item: str, chance: random.Random) -> dict[str, Any]:
        vector = [round(chance.gauss(0, 1), 4) for _ in range(self.content_width)] if chance.random() < 0.9 else None
        return {
            "item_id": item,
            "category": f"c{chance.randrange(20)}",
            "attributes": {"brand": f"b{chance.randrange(50)}", "price": round(chance.expovariate(0.02), 2)},
            "content_vector": vector,
        }
