"""The synthetic catalogue of ``aif up``: published through the real topics, no faster than its readers read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from aif_stream.bus.groups import BEHAVIORS_GROUP, ITEMS_GROUP, USERS_GROUP
from aif_stream.bus.lines import LineKind
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES, USER_UPDATES
from aif_stream.bus.watch import GroupWatch
from aif_stream.clock import now_ms
from aif_stream.errors import AifError
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
_END_FILE: Final = "behaviors-end-ms"
_CHUNK_LINES: Final = 1_000
_ASK_EVERY_S: Final = 0.05
_STALLED_S: Final = 120.0
_GROUPS: Final[dict[LineKind, tuple[str, str]]] = {
    "items": (ITEMS_GROUP, ITEM_UPDATES),
    "users": (USERS_GROUP, USER_UPDATES),
    "behaviors": (BEHAVIORS_GROUP, BEHAVIORS),
}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Item ids 1 … items, user ids 1 … users; the same for every start.

    ``end_ms``: time of the last behavior (None: now). Published again with the same one, behaviors are the same entries
    of the histories; with another they would be new ones.
    """

    items: int
    users: int
    end_ms: int | None = None

    @property
    def generator(self) -> Synthetic:
        return Synthetic(self.users, self.items, SEED)

    def lines(self, kind: LineKind) -> Iterator[dict[str, Any]]:
        """The lines of one kind, as ``aif publish`` takes them."""
        if kind == "items":
            return self.generator.items()
        if kind == "users":
            return self.generator.profiles()
        if not self.items:
            return iter(())
        each = max(_FEWEST_PER_USER, min(_BEHAVIORS_PER_USER, _BEHAVIORS // max(self.users, 1)))
        return self.generator.behaviors(each, end_ms=now_ms() if self.end_ms is None else self.end_ms)


def kept_end_ms(directory: Path) -> int:
    """The end of the behaviors that this folder's Redis was first seeded with, written down for its next starts."""
    file = directory / _END_FILE
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        end_ms = now_ms()
        file.write_text(f"{end_ms}\n")
        return end_ms


async def seed(settings: Settings, session: aiohttp.ClientSession, catalogue: Catalogue, report: Report) -> None:
    """Publish everything and return when nearline and retrieval have read it.

    Raises ``AifError`` when a line is refused or a reader stands still.
    """
    async with EventPublisher(settings, source="aif-up") as publisher:
        for kind in _GROUPS:
            async with _Readers(settings, session, kind) as readers:
                count = 0

                async def paced(readers: _Readers = readers, kind: LineKind = kind) -> AsyncIterator[list[bytes]]:
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


class _Readers:
    """How far the slowest reader of one topic is."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession, kind: LineKind) -> None:
        group, self._topic = _GROUPS[kind]
        self._watch = GroupWatch(settings, group, [self._topic])
        self._session = session
        self._metrics = f"{settings.retrieval_urls}/metrics"

    async def __aenter__(self) -> _Readers:
        await self._watch.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._watch.__aexit__(*error)

    async def wait_within(self, records: int) -> None:
        """Return when every reader has read the first ``records`` of the topic."""
        if records <= 0:
            return
        best, since_s = -1, asyncio.get_running_loop().time()
        while (read := min(await self._nearline(), await self._retrieval())) < records:
            now_s = asyncio.get_running_loop().time()
            if read > best:
                best, since_s = read, now_s
            elif now_s - since_s > _STALLED_S:
                raise AifError(
                    f"{self._topic}: {read:,} of {records:,} records read, none for {_STALLED_S:.0f} s",
                    mend="read the logs of nearline and retrieval",
                )
            await asyncio.sleep(_ASK_EVERY_S)

    async def _nearline(self) -> int:
        return sum(standing.committed or 0 for standing in (await self._watch.standing()).values())

    async def _retrieval(self) -> int:
        """Retrieval reads without a group; its counter says how far it is (users do not concern it)."""
        if self._topic == USER_UPDATES:
            return 1 << 62
        wanted = f'aif_events_consumed_total{{lane="retrieval {self._topic}"}} '
        try:
            async with self._session.get(self._metrics) as reply:
                lines = (await reply.text()).splitlines()
        except (aiohttp.ClientError, TimeoutError):
            return 0
        return next((int(float(line.removeprefix(wanted))) for line in lines if line.startswith(wanted)), 0)


def _chunks(lines: Iterable[dict[str, Any]]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    for line in lines:
        chunk.append(orjson.dumps(line))
        if len(chunk) == _CHUNK_LINES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def answered_in_full(
    settings: Settings, session: aiohttp.ClientSession, catalogue: Catalogue, report: Report
) -> None:
    """Return when a rank request is answered without a ``degraded`` reason. Raises ``AifError`` after two minutes."""
    if not catalogue.items or not catalogue.users:
        return
    end_s = asyncio.get_running_loop().time() + _STALLED_S
    answer: Any = None
    while asyncio.get_running_loop().time() < end_s:
        try:
            async with session.post(f"{settings.serve_url}/v1/rank", json={"user_id": "1", "k": 10}) as reply:
                answer = await reply.json(content_type=None)
                if reply.status == 200 and answer["items"] and not answer["degraded"]:
                    return
        except (aiohttp.ClientError, TimeoutError) as error:
            answer = repr(error)
        report("first request not answered in full yet")
        await asyncio.sleep(0.5)
    raise AifError(f"the first request is not answered in full: {str(answer)[:300]}", mend="read the logs of serve")
