"""One look at everything: groups on Kafka, processes by their leases, mirrors by their servers. Changes nothing."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from aif_stream.bus.groups import ALL_GROUPS, EXPLAIN_GROUPS, LIVE_GROUPS
from aif_stream.bus.lag_watch import LagWatch, Place
from aif_stream.bus.topics import N2O_ROWS
from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.freshness import (
    STALL_AFTER_S,
    Presence,
    Sample,
    Status,
    Verdict,
    Window,
    lag_s,
    watermark_age_s,
)
from aif_stream.freshness.gap import GapWatch
from aif_stream.freshness.peers import Peer, Peers, presence_of
from aif_stream.freshness.report import (
    LagReport,
    MirrorState,
    PartitionLag,
    ProbeFigures,
    SourceState,
    StageLag,
    facts_of,
    rounded,
)
from aif_stream.index.leases import EXPLAIN, NEARLINE, SERVE
from aif_stream.settings import Settings

_AGAIN_S: Final = 0.5


class Watcher:
    """``async with Watcher(settings, peers) as watcher: report = await watcher.look()``; keeps the sliding windows.

    Raises ``BusUnavailable``, ``TopicError``.
    """

    def __init__(self, settings: Settings, peers: Peers) -> None:
        self._watch = LagWatch(settings, {**ALL_GROUPS, **EXPLAIN_GROUPS})
        self._peers = peers
        self._windows: defaultdict[tuple[str, int], Window] = defaultdict(Window)
        self._gap = GapWatch()
        self._turn = asyncio.Lock()
        self.probe: Callable[[], ProbeFigures] = ProbeFigures
        self._begun_s = monotonic_s()

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._watch.__aexit__(kind, error, trace)

    async def look(self) -> LagReport:
        """Everything, now. Looks one after the other add to the windows that judge who stands still."""
        async with self._turn:
            workers, explainers, members = await asyncio.gather(
                self._peers.of(NEARLINE), self._peers.of(EXPLAIN), self._watch.members()
            )
            readers = [*workers, *explainers]
            places = [place for place in await self._watch.look() if _is_used(place)]
            at_s, as_of_ms = monotonic_s(), now_ms()
            mirrors, stages = await self._mirrors()
            parts = [self._partition(place, readers, members[place.group], at_s, as_of_ms) for place in places]
            return LagReport(
                partitions=parts,
                watermark_age_s=rounded(watermark_age_s(part.lag_s for part in parts if part.group in LIVE_GROUPS)),
                probe=self.probe(),
                mirrors=mirrors,
                sources=_sources(workers),
                freshness=[*_stage_lags("redis", [(w.lease.id, w.facts) for w in workers if w.lease.alive]), *stages],
                as_of_ms=as_of_ms,
                dead_letters=_dead_letters(readers),
                explanations=self._gap.look(parts, explainers, at_s),
            )

    async def settled(self) -> LagReport:
        """Look until every status is sure: at once when nothing lags, after some seconds when somebody stands still."""
        while True:
            report = await self.look()
            pending = any(part.lag_records and part.status is Status.OK for part in report.partitions)
            moved = all(w.covers_s and w.samples[-1].position > w.samples[0].position for w in self._lagging())
            if not pending or moved or monotonic_s() - self._begun_s > STALL_AFTER_S + 2 * _AGAIN_S:
                return report
            await asyncio.sleep(_AGAIN_S)

    def _lagging(self) -> list[Window]:
        return [window for window in self._windows.values() if window.samples and window.samples[-1].lag_records]

    def _partition(
        self, place: Place, workers: Sequence[Peer], members: int | None, at_s: float, as_of_ms: int
    ) -> PartitionLag:
        sample = Sample(at_s, place.position, place.end, place.next_ms)
        window = self._windows[place.group, place.partition.number]
        window.add(sample)
        presence = presence_of(place.group, place.partition, workers, members)
        if presence is Presence.GONE and self._peers.problem and members is None:
            presence = Presence.UNKNOWN  # neither Redis nor the broker tells who is there
        verdict = window.judge(presence)
        if presence is Presence.GONE and not place.committed:
            verdict = Verdict(verdict.status, "no consumer, and there never was one")
        catch_up_s = window.catch_up_s
        return PartitionLag(
            group=place.group,
            topic=place.partition.topic,
            partition=place.partition.number,
            position=sample.position,
            end=sample.end,
            lag_records=sample.lag_records,
            lag_s=rounded(lag_s(sample, as_of_ms)),
            status=verdict.status,
            reason=verdict.reason,
            rate_per_s=round(window.rate_per_s, 2),
            catch_up_s=rounded(catch_up_s),
        )

    async def _mirrors(self) -> tuple[list[MirrorState], list[StageLag]]:
        ends = await self._watch.ends(N2O_ROWS)  # before the servers are asked: who has these has all until now
        servers = await self._peers.of(SERVE)
        said = await asyncio.gather(*(self._status_of(server) for server in servers))
        found = [await self._mirror(server, status, ends) for server, status in zip(servers, said, strict=True)]
        told = [(server.lease.id, facts_of(status.get("mirror"))) for server, status in zip(servers, said, strict=True)]
        return found, _stage_lags("mirror", told)

    async def _status_of(self, server: Peer) -> dict[str, Any]:
        if server.presence is not Presence.LIVE:
            return {}
        return await self._peers.get(f"{server.lease.url}/v1/status") or {}

    async def _mirror(self, server: Peer, status: dict[str, Any], ends: dict[int, int]) -> MirrorState:
        mirror = facts_of(status.get("mirror"))
        behind = _behind(status, ends)
        age_s: float | None = 0.0 if mirror else None
        if behind:
            times = await self._watch.appended_ms(N2O_ROWS, behind)
            oldest = min(times.values()) if len(times) == len(behind) else None
            age_s = None if oldest is None else max(0, now_ms() - oldest) / 1000
        presence = server.presence
        if presence is Presence.LIVE and not status:
            presence = Presence.STUCK
        window = self._windows[f"mirror {server.lease.id}", 0]
        if mirror:
            end = sum(ends.values())
            window.add(Sample(monotonic_s(), end - sum(ends[n] - at for n, at in behind.items()), end))
        verdict = window.judge(presence)
        rows = mirror.get("rows", server.facts.get("rows"))
        return MirrorState(
            server=server.lease.id,
            url=server.lease.url,
            rows=rows,
            applied_age_s=rounded(age_s),
            version=status.get("model_version", server.facts.get("model_version")),
            status=verdict.status,
            reason=verdict.reason.replace("consumer", "server") or str(mirror.get("problem") or ""),
        )


def _behind(status: dict[str, Any], ends: dict[int, int]) -> dict[int, int]:
    """Positions of a mirror in the partitions of the change log that it has not applied to these ends."""
    positions = facts_of(facts_of(status.get("mirror")).get("positions"))
    found = {number: int(positions.get(str(number), end)) for number, end in ends.items()}
    return {number: position for number, position in found.items() if position < ends[number]}


def _stage_lags(stage: str, told: Iterable[tuple[str, Mapping[str, Any]]]) -> list[StageLag]:
    """What processes said of their last minute; those without an update in it are left out."""
    said = [(name, facts_of(facts.get("freshness"))) for name, facts in told]
    return [StageLag(stage=stage, process=name, **lags) for name, lags in said if lags]


def _dead_letters(workers: Sequence[Peer]) -> dict[str, int]:
    """What the workers that are there have put aside, by reason."""
    counts: Counter[str] = Counter()
    for worker in workers:
        counts.update({reason: int(count) for reason, count in facts_of(worker.facts.get("dead_letters")).items()})
    return dict(counts)


def _sources(workers: Sequence[Peer]) -> list[SourceState]:
    """What living workers say of the producers' clocks; of two opinions the worse."""
    found: dict[str, SourceState] = {}
    for worker in workers:
        if worker.presence is not Presence.LIVE or not worker.lease.alive:
            continue
        for name, said in worker.facts.get("sources", {}).items():
            other = found.get(name)
            if other is None or said["ahead_s"] > other.ahead_s:
                found[name] = SourceState(source=name, **said)
    return [found[name] for name in sorted(found)]


def _is_used(place: Place) -> bool:
    """Whether a group is worth a line: a system whose answers nobody asks about needs no explanation worker."""
    return place.group not in EXPLAIN_GROUPS or place.committed or place.end > 0
