"""Which model version answers whom: follows ``aif.model-updates`` and pins what is held (``holding.py``).

A switch, the start of a canary or a rollback only changes what the next request pins, as long as the version is held. A
request keeps what it pinned to its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from aif_stream.bus.versions import VersionFollower
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState, in_canary
from aif_stream.errors import BusUnavailable, Overloaded, VersionError
from aif_stream.index.store import N2OStore
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.holding import Holding
from aif_stream.online.mirror_feed import MirrorFeed
from aif_stream.online.serving import Serving
from aif_stream.settings import Settings
from aif_stream.telemetry import MODEL_VERSION, RANK_VERSION_DEGRADED, RANK_VERSION_SECONDS, flush_gathered, kv

log = logging.getLogger(__name__)

_RETRY_S: Final = 1.0
# The mirror's end was confirmed longer ago than this: answers say so. Ten of its regular confirmations missed.
BEHIND_S: Final = 5.0


class ServedVersions:
    """``run`` follows the topic; ``pin`` hands out what answers a request."""

    def __init__(self, settings: Settings, store: N2OStore, threads: ComputeThreads) -> None:
        self._settings = settings
        self._book: VersionBook | None = None
        self._states: dict[str, str] = {}
        self._serving: Serving | None = None
        self._unread = "reading the model versions"
        self._holding = Holding(settings, store, threads, self._turn)

    @property
    def serving(self) -> Serving | None:
        """What answers users outside a canary."""
        return self._serving

    @property
    def feed(self) -> MirrorFeed:
        return self._holding.feed

    @property
    def names(self) -> list[str]:
        """Versions that must stay in Redis for this server's sake."""
        return self._holding.names

    @contextmanager
    def pin(self, name: str | None, user: str) -> Iterator[Serving]:
        """What answers this user's request, or the version that it names, until the context ends.

        Raises ``Overloaded`` when nothing is held yet, ``VersionError`` when ``name`` is not.
        """
        serving = self._chosen(name, user)
        try:
            with serving.in_flight.one():
                yield serving
        finally:
            if serving.name not in self._states:
                # Let go meanwhile, and the answer is counted as soon as this ends: that series would stay for ever.
                asyncio.get_running_loop().call_soon(self._forget, serving.name)

    def _forget(self, name: str) -> None:
        """End the series of a version that is held no longer."""
        if name not in self._states:
            flush_gathered()  # what it has answered last
            for metric in (RANK_VERSION_SECONDS, RANK_VERSION_DEGRADED):
                with suppress(KeyError):  # it never answered
                    metric.remove(name)

    def behind(self, serving: Serving) -> bool:
        """Whether a version's rows here may be older than what Redis holds."""
        return serving.fed is not None and serving.fed.confirmed_age_s > BEHIND_S

    @property
    def problem(self) -> str:
        """What keeps the version from answering that should; "" when it does."""
        book = self._book
        if book is None:
            return self._unread
        if book.active is None:
            return "no version is active: publish and activate one"
        return "" if book.active in self._holding.held else self._holding.waits_for(book.active)

    def is_retired(self, name: str) -> bool:
        """Whether a version is known to be retired."""
        record = None if self._book is None else self._book.records.get(name)
        return record is not None and record.state is VersionState.RETIRED

    def reasons(self) -> list[str]:
        """Why this server is not ready; empty when it is."""
        return [] if self._serving is not None else [self.problem]

    def view(self) -> list[dict[str, Any]]:
        """Every version that is held or should be, for people."""
        names = self._holding.wants()
        return [self._facts(name, name in names) for name in dict.fromkeys((*names, *self.names))]

    def _facts(self, name: str, is_wanted: bool) -> dict[str, Any]:
        serving, failure = self._holding.held.get(name), self._holding.failures.get(name)
        if serving is None:
            if failure is not None:
                return {"version": name, "state": "failed", "problem": failure.problem}
            return {"version": name, "state": "loading" if is_wanted else "leaving"}
        return {
            "version": name,
            "state": self._states[name],
            "percent": self._book.percent_of(name) if self._book is not None else 0.0,
            "in_flight": serving.in_flight.count,
            "rows": None if serving.mirror is None else len(serving.mirror),
            "memory_mb": round(serving.nbytes / 2**20, 1),
        }

    async def run(self) -> None:
        """Follow until cancelled. Raises ``IndexRefused`` when the first mirror does not fit, ``TopicError``."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._holding.run(), name="versions-held")
            tasks.create_task(self._follow(), name="version-records")

    def _chosen(self, name: str | None, user: str) -> Serving:
        if self._serving is None:
            raise Overloaded(f"no model version is served yet: {self.problem}", mend="see /readyz")
        book = self._book
        if name is not None:
            serving = self._holding.held.get(name)
            if serving is None:
                held = ", ".join(f"{each} ({self._states.get(each, 'warm')})" for each in sorted(self._holding.held))
                raise VersionError(
                    f"version {name} is not held by this server, which holds {held}",
                    mend="leave model_version out, or see /v1/status for when it is",
                )
            return serving
        canary = None if book is None else self._holding.held.get(book.canary or "")
        if canary is not None and book is not None and in_canary(canary.name, user, book.percent_of(canary.name)):
            return canary
        return self._serving

    async def _follow(self) -> None:
        while True:
            try:
                async with VersionFollower(self._settings, self._on_record, repairs=True) as follower:
                    self._take(follower.book)
                    await follower.wait()
            except BusUnavailable as error:
                self._unread = str(error)
                log.warning(kv("versions.unreachable", problem=error))
            await asyncio.sleep(_RETRY_S)

    async def _on_record(self, book: VersionBook, _record: VersionRecord) -> None:
        self._take(book)

    def _take(self, book: VersionBook) -> None:
        """The book has changed: what is held answers at once as it says, the rest is brought in order."""
        self._book = book
        self._turn()
        self._holding.follow(book)

    def _turn(self) -> None:
        """Point the pin at what the book says, as far as it is held. No await: no request sees a half of it."""
        book = self._book
        if book is None:
            return
        active = self._holding.held.get(book.active or "")
        if active is not None and active is not self._serving:
            log.info(kv("version.served", version=active.name, before=self._serving.name if self._serving else "-"))
            self._serving = active
            self._holding.answering = active.name
        states = dict.fromkeys(self._holding.held, "warm")
        if book.canary in states:
            states[book.canary] = "canary"
        if self._serving is not None:
            states[self._serving.name] = "active"
        for name, state in self._states.items():
            if states.get(name) != state:
                MODEL_VERSION.remove(name, state)
        for name, state in states.items():
            MODEL_VERSION.labels(name, state).set(1)
        left, self._states = self._states.keys() - states.keys(), states
        for name in left:
            self._forget(name)
        for serving in self._holding.held.values():
            if serving.mirror is not None:
                serving.mirror.watched = serving is self._serving
