"""The synthetic catalogue of ``aif up``: published through the real topics, no faster than its readers read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson

from aif_stream.bus.groups import BEHAVIORS_GROUP, ITEMS_GROUP, USERS_GROUP
from aif_stream.bus.lines import LineKind
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES, USER_UPDATES
from aif_stream.clock import now_ms
from aif_stream.errors import AifError
from aif_stream.runtime.readers import Readers
from aif_stream.settings import Settings
from aif_stream.training.synthetic import Synthetic

Report = Callable[[str], None]

SEED: Final = 1
# A hundred behaviors a user as long as there are few users: a million of them in all take a minute to publish.
_BEHAVIORS_PER_USER: Final = 100
_FEWEST_PER_USER: Final = 10
_BEHAVIORS: Final = 1_000_000
# The embedded broker forgets what is beyond 5 MiB of a partition. With 8 partitions, 600 bytes an item and lz4
# this window is a fifth of that.
WINDOW_RECORDS: Final = 20_000
_CHUNK_LINES: Final = 1_000
_GROUPS: Final[dict[LineKind, tuple[str, str]]] = {
    "items": (ITEMS_GROUP, ITEM_UPDATES),
    "users": (USERS_GROUP, USER_UPDATES),
    "behaviors": (BEHAVIORS_GROUP, BEHAVIORS),
}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Item ids 1 … items, user ids 1 … users; the same for every start."""

    items: int
    users: int

    @property
    def generator(self) -> Synthetic:
        return Synthetic(self.users, self.items, SEED)

    def lines(self, kind: LineKind) -> Iterator[dict[str, Any]]:
        """The lines of one kind, as ``aif publish`` takes them."""
        if kind == "items":
            return self.generator.items()
        if kind == "users":
            return self.generator.profiles()
        each = max(_FEWEST_PER_USER, min(_BEHAVIORS_PER_USER, _BEHAVIORS // max(self.users, 1)))
        return self.generator.behaviors(each, end_ms=now_ms())


async def seed(settings: Settings, session: aiohttp.ClientSession, catalogue: Catalogue, report: Report) -> None:
    """Publish everything and wait until nearline and retrieval have read it. Without items it does nothing.

    Raises ``AifError`` when a line is refused or a reader stands still.
    """
    if not catalogue.items:
        return
    async with EventPublisher(settings, source="aif-up") as publisher:
        for kind in _GROUPS:
            group, topic = _GROUPS[kind]
            async with Readers(settings, session, topic, group) as readers:
                count = 0

                async def paced(readers: Readers = readers, kind: LineKind = kind) -> AsyncIterator[list[bytes]]:
                    nonlocal count
                    for chunk in _chunks(catalogue.lines(kind)):
                        count += len(chunk)
                        await readers.wait_within(count - WINDOW_RECORDS)
                        if count % 50_000 < _CHUNK_LINES:
                            report(f"publishing {kind}: {count:,}")
                        yield chunk

                summary = await publisher.publish_lines(kind, paced())
                if summary.problem or summary.rejected:
                    raise AifError(f"seeding {kind}: {summary.problem or summary.rejects[0].problem}")
                await readers.wait_within(count)
                report(f"published {count:,} {kind}")


def _chunks(lines: Iterable[dict[str, Any]]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    for line in lines:
        chunk.append(orjson.dumps(line))
        if len(chunk) == _CHUNK_LINES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
