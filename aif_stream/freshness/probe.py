"""The probe: one item updated on purpose, through the real topic, looked for through the real rank path of each server.

An update is a new event time. A server has it when its answer names that time or a later one
(``freshness.newest_event_ms``), so no two clocks are compared: the time until then is this process's alone.
Updates go on while one is awaited, and each is counted when it is seen: a pause of 30 s is 15 long waits, not one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import numpy as np
import orjson

from aif_stream.bus.publisher import EventPublisher
from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.freshness import PROBE_ITEM, PROBE_USER, Presence
from aif_stream.errors import AifError
from aif_stream.freshness.peers import Peer, Peers
from aif_stream.freshness.report import ProbeFigures, facts_of, rounded
from aif_stream.index.leases import SERVE
from aif_stream.settings import Settings
from aif_stream.telemetry import FRESHNESS_LAG, PROBE_OPEN, PROBE_SEEN, kv

log = logging.getLogger(__name__)

SOURCE: Final = "aif/monitor"
_AGAIN_S: Final = 2.0
_KEPT: Final = 120  # ten minutes at the usual pace
# While an update is young, ask this often: the error of a figure. Later, a tenth of its age.
_ASK_S: Final = 0.004
_ASK_AT_MOST_S: Final = 0.25
# The first question waits until an answer with the update is at all likely: none of the last updates was there in twice
# that time. Each question is a whole request, two thirds of what the probe costs a server. Should one be there sooner
# for once, this is how much too long its figure is (and the next questions begin sooner).
_SOONER_S: Final = 0.008
_LAST: Final = 5
_PATIENCE_S: Final = 2.0
_QUEUED_S: Final = 20.0  # a leader election took half of it when measured
_MOST_OPEN: Final = 720  # an hour of waiting; then each new one replaces the one after the oldest
_CATEGORY: Final = "aif:probe"
_BODY: Final = orjson.dumps({"user_id": PROBE_USER, "candidates": [PROBE_ITEM], "k": 1, "deadline_ms": 1000})


@dataclass(slots=True)
class _Update:
    """One update on its way; ``waiting`` are the servers that do not answer with it yet."""

    event_ms: int
    begun_s: float
    waiting: set[str] = field(default_factory=set)


class Probe:
    """``run`` until cancelled. Raises nothing: what goes wrong is in ``figures().problem``."""

    def __init__(self, settings: Settings, peers: Peers) -> None:
        self._settings = settings
        self._peers = peers
        self._open: deque[_Update] = deque()
        self._seen_s: deque[float] = deque(maxlen=_KEPT)
        self._count = 0
        self._problem = "no update has been seen yet"
        self._askers: dict[str, asyncio.Task[None]] = {}
        self._last_s: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_LAST))  # by server
        self._news = asyncio.Event()

    def figures(self) -> ProbeFigures:
        """Last, p50 and p99 of the last ten minutes, and how long the oldest open update has been awaited."""
        if not self._seen_s:
            return ProbeFigures(open_s=round(self.open_s, 3), problem=self._problem)
        p50, p99 = np.percentile(np.array(self._seen_s), (50, 99))
        return ProbeFigures(
            last_s=rounded(self._seen_s[-1]),
            p50_s=rounded(float(p50)),
            p99_s=rounded(float(p99)),
            open_s=round(self.open_s, 3),
            seen=self._count,
            problem=self._problem,
        )

    @property
    def open_s(self) -> float:
        """Age of the oldest update that a server still lacks; 0 when there is none."""
        return monotonic_s() - self._open[0].begun_s if self._open else 0.0

    async def run(self) -> None:
        """Update every so often; each server has an asker of its own. Switched off: returns at once."""
        if not self._settings.probe_every_s:
            self._problem = "switched off (AIF_PROBE_EVERY_S)"
            return
        PROBE_OPEN.set_function(lambda: self.open_s)
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    async with EventPublisher(self._settings, source=SOURCE) as publisher:
                        await self._update_for_ever(publisher, tasks)
                except AifError as error:
                    self._tell(str(error))
                except TimeoutError:
                    self._tell(f"Kafka took no event for {_QUEUED_S:g} s")
                await asyncio.sleep(_AGAIN_S)

    async def _update_for_ever(self, publisher: EventPublisher, tasks: asyncio.TaskGroup) -> None:
        due_s = monotonic_s()
        while True:
            servers = {
                peer.lease.id: peer for peer in await self._peers.of(SERVE) if peer.presence is not Presence.GONE
            }
            self._follow(servers, tasks)
            event_ms = now_ms()
            # The stamp has whole milliseconds: the wait counts from the stamp, not from the moment after it.
            update = _Update(event_ms, monotonic_s() - (time.time() - event_ms / 1000), set(servers))
            if servers:
                self._open.append(update)
                if len(self._open) > _MOST_OPEN:
                    del self._open[1]
            else:
                self._tell("no server is there")
            self._news.set()
            self._news = asyncio.Event()
            async with asyncio.timeout(_QUEUED_S):
                await publisher.item(PROBE_ITEM, category=_CATEGORY, event_time_ms=event_ms)
            due_s = max(due_s + self._settings.probe_every_s, monotonic_s())
            await asyncio.sleep(due_s - monotonic_s())

    def _follow(self, servers: dict[str, Peer], tasks: asyncio.TaskGroup) -> None:
        """An asker for each server; a server that has gone is awaited no more."""
        for name in [name for name in self._askers if name not in servers]:
            self._askers.pop(name).cancel()
            self._last_s.pop(name, None)
            for update in list(self._open):
                self._resolve(update, name, seen=False)
        for name, peer in servers.items():
            if name not in self._askers:
                self._askers[name] = tasks.create_task(self._ask_for_ever(name, peer.lease.url), name=f"probe {name}")

    async def _ask_for_ever(self, name: str, url: str) -> None:
        while True:
            news = self._news
            newest = max((update for update in self._open if name in update.waiting), default=None, key=_begun)
            if newest is None:
                await news.wait()
                continue
            await asyncio.sleep(first_ask_s(self._last_s[name]) - (monotonic_s() - newest.begun_s))
            found_ms = await self._newest_event(url)
            for update in [u for u in self._open if name in u.waiting and u.event_ms <= found_ms]:
                self._resolve(update, name, seen=True)
            age_s = monotonic_s() - newest.begun_s
            await asyncio.sleep(min(max(_ASK_S, age_s / 10), _ASK_AT_MOST_S))

    async def _newest_event(self, url: str) -> int:
        """The event time of the probe that this server answers with; 0 when it answers without it, or not at all."""
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
        try:
            async with self._peers.session.post(f"{url}/v1/rank", data=_BODY, timeout=timeout) as reply:
                answer: Any = orjson.loads(await reply.read())
        except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
            self._tell(f"{url}: {str(error) or type(error).__name__}")
            return 0
        if reply.status != 200:
            self._tell(f"{url}: HTTP {reply.status} {facts_of(answer).get('detail', '')}".strip())
            return 0
        return int(answer["freshness"].get("newest_event_ms", 0)) if answer["items"] else 0

    def _resolve(self, update: _Update, name: str, *, seen: bool) -> None:
        update.waiting.discard(name)
        waited_s = monotonic_s() - update.begun_s
        if seen:
            FRESHNESS_LAG.labels("probe").observe(waited_s)
            self._last_s[name].append(waited_s)
        if not update.waiting:
            with contextlib.suppress(ValueError):
                self._open.remove(update)
            if seen:
                self._seen_s.append(waited_s)
                self._count += 1
                PROBE_SEEN.inc()
                self._problem = ""

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            log.warning(kv("probe.problem", problem=problem))
        self._problem = problem


def first_ask_s(last_s: Collection[float]) -> float:
    """How old an update is when a server is first asked for it, by how long the last ones took there."""
    return min(*last_s, 2 * _SOONER_S) / 2 if last_s else 0.0


def _begun(update: _Update) -> float:
    return update.begun_s
