"""A catalogue under live updates of which every state of every asked item is known: what an answer may have seen."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aif_stream.bus.producer import Ack
from aif_stream.bus.publisher import EventPublisher
from aif_stream.clock import now_ms
from aif_stream.domain.events import BehaviorKind
from drills.load import Load

HISTORY_ITEMS = 2_000  # never change, so that a user's side depends on the version alone
CLICKS = 60


class State(NamedTuple):
    """Features of an item, and when they were handed to Kafka."""

    sent_ms: int
    event: dict[str, Any]


@dataclass(slots=True)
class Catalogue(Load):
    """``items`` items that change, 2,000 that do not, users with a history of the latter, and what they ask.

    A user's candidates: half of them change, half do not; those that change are never removed.
    """

    users: int = 32
    candidates: int = 48
    states: dict[str, list[State]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def plan(self) -> None:
        """Draw who asks for what."""
        chance = random.Random(self.seed)
        for user in range(self.users):
            asked = {str(chance.randrange(self.items)) for _ in range(self.candidates // 2)}
            asked |= {f"still-{chance.randrange(HISTORY_ITEMS)}" for _ in range(self.candidates // 2)}
            self.requests.append(
                {"user_id": f"asker-{user}", "k": len(asked), "candidates": sorted(asked), "deadline_ms": 2000}
            )
        self.states = {item: [] for request in self.requests for item in request["candidates"]}

    async def fill(self) -> None:
        """One event for every item, and the histories; acknowledged on return."""
        chance = random.Random(self.seed + 1)
        names = [str(n) for n in range(self.items)] + [f"still-{n}" for n in range(HISTORY_ITEMS)]
        acks: deque[Ack] = deque()
        async with EventPublisher(self.settings, source="drill") as publisher:
            for at, item in enumerate(names):
                event, time_ms = self._features(item, chance), now_ms()
                self._remember(item, time_ms, event)
                acks.append(await self._publish(publisher, item, event, time_ms))
                if at % 1000 == 0:
                    await asyncio.sleep(0)
            start_ms = now_ms() - CLICKS * 60_000
            for request in self.requests:
                for n in range(CLICKS):
                    clicked = f"still-{chance.randrange(HISTORY_ITEMS)}"
                    acks.append(
                        await publisher.behavior(
                            request["user_id"], clicked, BehaviorKind.CLICK, event_time_ms=start_ms + n * 60_000
                        )
                    )
            for ack in acks:
                await ack

    async def _one(self, publisher: EventPublisher, chance: random.Random, acks: deque[Ack]) -> None:
        """As ``Load``, but the items that are asked for change in order, ten times as often, and stay."""
        if chance.random() >= 0.1:
            return await Load._one(self, publisher, chance, acks)
        item = chance.choice([name for name in chance.choice(self.requests)["candidates"] if name[0] != "s"])
        event, time_ms = self._features(item, chance), max(now_ms(), self.truth[item][0] + 1)
        self._remember(item, time_ms, event)
        acks.append(await self._publish(publisher, item, event, time_ms))

    def _remember(self, item: str, time_ms: int, event: dict[str, Any]) -> None:
        self.truth[item] = (time_ms, event)
        if item in self.states:
            self.states[item].append(State(now_ms(), event))

    def _choose(self, chance: random.Random) -> str:
        while (item := Load._choose(self, chance)) in self.states:
            pass
        return item
