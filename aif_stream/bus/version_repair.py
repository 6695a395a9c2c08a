"""Writes good version records again that a bad one displaced: the compacted topic keeps the last record of a version.

Several processes hold the same good record and may write it at once. That is harmless: a copy carries the offset that
the record had first, so that it neither beats a newer record nor counts twice (docs/decisions/0002).
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from aif_stream.bus.events import FIRST_OFFSET
from aif_stream.bus.producer import Headers, Producer
from aif_stream.bus.topics import MODEL_UPDATES
from aif_stream.clock import elapsed_ms, monotonic_s, now_ms
from aif_stream.domain.envelope import JSON, Envelope, to_headers
from aif_stream.domain.versions import VERSION_EVENT, LogEntry, VersionBook
from aif_stream.errors import AifError
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

SOURCE: Final = "aif.versions"
# Of the processes that hold the record one is first, and the others see its copy before their time has come.
_AFTER_S: Final = (0.2, 2.0)
# Each repair within this time doubles the wait before the next one, up to some minutes: two releases that disagree on
# what can be used, or a producer that goes on writing bad records, do not fill the topic.
_QUIET_S: Final = 900.0
_DOUBLINGS: Final = 8
_DEADLINE_S: Final = 15.0
_CLOSE_S: Final = 1.0
_AGAIN_S: Final = 10.0


Repaired = dict[str, tuple[int, LogEntry]]
"""Version -> offset of the record that displaced its good one, and the good one, which was written behind it."""


async def rewrite_displaced(settings: Settings, book: VersionBook, repaired: Repaired | None = None) -> list[str]:
    """Write the book's displaced records again, acknowledged by Kafka; returns their versions.

    Those in ``repaired`` are left out; what is written is added there. May be repeated, by any number of processes.
    Raises ``BusUnavailable``, ``TopicError``, ``PublishError``.
    """
    repaired = {} if repaired is None else repaired
    due = _due(book, repaired)
    if not due:
        return []
    async with Producer(settings, "aif-versions", topics=[MODEL_UPDATES]) as producer:
        producer.close_deadline_s = _CLOSE_S
        for name in due:
            entry = book.displaced_entries().get(name)
            if entry is None:
                continue  # another process was quicker
            repair = book.displaced[name], entry
            ack = await producer.send(MODEL_UPDATES, name.encode(), entry.value, _headers(name, entry))
            where = {"displaced_by": repair[0], "first_offset": entry.order, "offset": (await ack).offset}
            repaired[name] = repair
            log.warning(kv("version.rewritten", version=name, **where))
    return due


def _due(book: VersionBook, repaired: Repaired) -> list[str]:
    entries = book.displaced_entries()
    return [name for name, entry in entries.items() if repaired.get(name) != (book.displaced[name], entry)]


def _headers(name: str, entry: LogEntry) -> Headers:
    headers = to_headers(Envelope(VERSION_EVENT, f"{name}/again/{now_ms()}", SOURCE, now_ms(), {}), JSON)
    return headers if entry.order < 0 else [*headers, (FIRST_OFFSET, b"%d" % entry.order)]


class VersionRepair:
    """Calls ``rewrite_displaced`` whenever a followed book names displaced records, between ``begin`` and ``end``."""

    def __init__(self, settings: Settings, book: VersionBook) -> None:
        self._settings = settings
        self._book = book
        self._repaired: Repaired = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name="version-repair")
        self.look()

    async def end(self) -> None:
        """Stop. What is not written yet, another process writes, or this one after its next start."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def look(self) -> None:
        """Tell it that the book may have changed."""
        if self._book.displaced and _due(self._book, self._repaired):
            self._wanted.set()

    async def _run(self) -> None:
        repairs, last_s = 0, float("-inf")
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            repairs = repairs if elapsed_ms(last_s) < _QUIET_S * 1000 else 0
            await asyncio.sleep(random.uniform(*_AFTER_S) * 2 ** min(repairs, _DOUBLINGS))
            try:
                async with asyncio.timeout(_DEADLINE_S):
                    if await rewrite_displaced(self._settings, self._book, self._repaired):
                        repairs, last_s = repairs + 1, monotonic_s()
            except (AifError, TimeoutError) as error:
                versions = ",".join(_due(self._book, self._repaired))
                log.warning(kv("version.not_rewritten", versions=versions, again_s=_AGAIN_S, problem=error))
                await asyncio.sleep(_AGAIN_S)
                self.look()
