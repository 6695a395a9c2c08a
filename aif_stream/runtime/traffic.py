"""Live traffic of ``aif up --demo``: item updates, behaviors, rank requests and now and then a why, gently."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import aiohttp

from aif_stream.bus.publisher import EventPublisher
from aif_stream.errors import AifError
from aif_stream.runtime.catalogue import Catalogue
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

UPDATES_PER_S: Final = 20
REQUESTS_PER_S: Final = 5
# So that there is something to see of explanations; one takes half a second of what answers leave.
_EXPLAINED_EVERY: Final = 25
# Of the catalogue's first items, so that the lines to change need not be looked up in a million.
_CHANGING_ITEMS: Final = 2_000


async def live_traffic(settings: Settings, catalogue: Catalogue) -> None:
    """Run until cancelled; what fails is logged and tried again with the next event."""
    if not catalogue.items or not catalogue.users:
        return
    async with (
        EventPublisher(settings, source="aif-demo") as publisher,
        aiohttp.ClientSession() as session,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(_events(publisher, catalogue), name="demo-events")
        tasks.create_task(_requests(settings, session, catalogue), name="demo-requests")


async def _events(publisher: EventPublisher, catalogue: Catalogue) -> None:
    chance = random.Random(0)
    few = Catalogue(min(catalogue.items, _CHANGING_ITEMS), 0).lines("items")
    items = [line async for line in _gently(few)]
    while True:
        try:
            item = chance.choice(items)
            item["attributes"]["price"] = round(item["attributes"]["price"] * chance.uniform(0.9, 1.1), 2)
            await publisher.item(**item)
            user, other = chance.randint(1, catalogue.users), chance.randint(1, catalogue.items)
            await publisher.behavior(user, other, chance.choices(["exposure", "click", "buy"], [6, 3, 1])[0])
        except AifError as error:
            log.warning(kv("demo.event_failed", error=error))
        await asyncio.sleep(1 / UPDATES_PER_S)


async def _gently(lines: Iterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """The lines, letting other tasks have their turn."""
    for number, line in enumerate(lines):
        if number % 500 == 0:
            await asyncio.sleep(0)
        yield line


async def _requests(settings: Settings, session: aiohttp.ClientSession, catalogue: Catalogue) -> None:
    chance = random.Random(1)
    for number in itertools.count():
        user, explain = str(chance.randint(1, catalogue.users)), int(number % _EXPLAINED_EVERY == 0)
        body = {"user_id": user, "k": 50, "explain": explain}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # the server counts and logs what it refuses
            async with session.post(f"{settings.serve_url}/v1/rank", json=body) as reply:
                await reply.read()
        await asyncio.sleep(1 / REQUESTS_PER_S)
