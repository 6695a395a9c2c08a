"""A whole replay: tape → schedule → player → comparison → ``Outcome``, which is what JSON, tables and page show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from aif_stream.clock import monotonic_s
from aif_stream.errors import BadInput, VersionError
from aif_stream.http_client import CONNECTIONS, HttpClient
from aif_stream.replay.drift import Drift, Interval, ItemChange, compare, quantile_difference
from aif_stream.replay.player import Recorder, Recording, Side, nothing_answered, play
from aif_stream.replay.schedule import constant, original
from aif_stream.replay.tape import Answer, Bodies, Options, Tape

_CONFLICT: Final = 409
_SHOWN: Final = 100  # changed items with their figures


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``aif replay`` was asked for. ``against``: a URL, a version of ``to``, or "" (the tape's own answers)."""

    to: str
    against: str = ""
    speed: float = 1.0
    rate_per_s: float | None = None
    timeout_s: float = 10.0
    connections: int = CONNECTIONS
    retrieve: bool = False

    @property
    def against_url(self) -> bool:
        return self.against.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Progress:
    """``phase``: sending, comparing."""

    phase: str
    done: int
    total: int
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A replay that ended. ``due_s`` (n): the schedule; ``drift``: None when there was nothing to compare with."""

    due_s: NDArray[np.float64]
    to: Recording
    against: Recording | None
    drift: Drift | None
    compared_with: str

    def shape(self) -> dict[str, Any]:
        """The JSON of the contract, and more."""
        found: dict[str, Any] = {
            "sent": int(self.to.status.size),
            "errors": int((~self.to.answered).sum()),
            "send_error_ms": quantiles_ms(np.abs(self.to.send_error_s)),
            "latency_ms": quantiles_ms(self.to.latency_s[self.to.answered]),
            "scheduled_s": round(float(self.due_s[-1]), 3),
            "to": self.to.url,
            "error_reasons": dict(self.to.errors.most_common(10)),
            "waited_for_connection": self.to.waited,
            "histogram": histogram_ms(self.to.latency_s[self.to.answered]),
        }
        if self.against is not None:
            found["against"] = {
                "url": self.against.url,
                "name": self.against_name,
                "errors": int((~self.against.answered).sum()),
                "error_reasons": dict(self.against.errors.most_common(10)),
                "latency_ms": quantiles_ms(self.against.latency_s[self.against.answered]),
                "difference_ms": {name: _interval(value) for name, value in self.latency_difference_ms().items()},
            }
        if self.drift is not None:
            found["drift"] = _drift_shape(self.drift, self.compared_with)
        return found

    @property
    def against_name(self) -> str:
        """What stands beside its figures: its URL, and what tells it from ``to`` where both are one server."""
        if self.against is None:
            return ""
        url = self.against.url
        return f"{url} {self.compared_with if self.compared_with != url else '(again)'}" if url == self.to.url else url

    def failures(self) -> list[tuple[str, int]]:
        """(whose and why, how often), the ten commonest of each side."""
        sides = [(self.to.url, self.to), *((self.against_name, side) for side in (self.against,) if side is not None)]
        return [(f"{name}: {why}", n) for name, side in sides for why, n in side.errors.most_common(10)]

    def latency_difference_ms(self) -> dict[str, Interval]:
        """Latency of ``against`` less that of ``to`` in ms, over requests that both answered."""
        if self.against is None:
            return {}
        both = self.to.answered & self.against.answered
        a, b = self.to.latency_s[both] * 1000.0, self.against.latency_s[both] * 1000.0
        return {"p50": quantile_difference(a, b, 0.5), "p99": quantile_difference(a, b, 0.99)}


@contextmanager
def replaying(plan: Plan, tape: Tape) -> Iterator[Replay]:
    """Bodies and recorders of a replay; what it recorded can be read while this is open."""
    with ExitStack() as stack:
        bodies = stack.enter_context(tape.bodies(Options(retrieve=plan.retrieve)))
        if plan.rate_per_s is not None:
            due_s = constant(len(tape), plan.rate_per_s)
        else:
            due_s = original(tape.received_ms, plan.speed)
        replay = Replay(plan, tape, due_s, stack, bodies)
        yield replay


class Replay:
    """Made by ``replaying``; ``run`` once."""

    def __init__(self, plan: Plan, tape: Tape, due_s: NDArray[np.float64], stack: ExitStack, bodies: Bodies) -> None:
        self._plan, self._tape, self._due_s = plan, tape, due_s
        self._ended = self._failed = 0
        self._sides = [self._side(stack, plan.to, bodies)]
        if plan.against:
            url, version = (plan.against, None) if plan.against_url else (plan.to, plan.against)
            if version is not None:
                options = Options(model_version=version, retrieve=plan.retrieve)
                bodies = stack.enter_context(tape.bodies(options))
            self._sides.append(self._side(stack, url, bodies))

    async def run(self, on_progress: Callable[[Progress], None] = lambda _: None) -> Outcome:
        """Play, then compare. Raises ``UpstreamError`` when a server is not there or answers nothing, ``VersionError``
        when it does not serve the version to compare with."""
        plan, sides = self._plan, self._sides
        total = len(self._tape) * len(sides)
        if plan.against and not plan.against_url:
            await self._check_version(sides[1].bodies[0])
        await play(
            self._due_s,
            sides,
            timeout_s=plan.timeout_s,
            connections=plan.connections,
            on_progress=lambda: on_progress(Progress("sending", self._ended, total, self._failed)),
        )
        recordings = [side.recorder.recording for side in sides]
        for recording in recordings:
            if (error := nothing_answered(recording)) is not None:
                raise error
        against = recordings[1] if len(recordings) > 1 else None
        drift = self._compare(recordings[0], against, on_progress)
        return Outcome(self._due_s, recordings[0], against, drift, plan.against or "the answers on the tape")

    def _compare(
        self, to: Recording, against: Recording | None, on_progress: Callable[[Progress], None]
    ) -> Drift | None:
        """Tape → to, or to → against."""
        if against is None and not self._tape.answered:
            return None
        total = len(self._tape)
        drift = Drift.of(total)
        for i in range(total):
            before = self._tape.logged(i) if against is None else to.answer(i)
            after = to.answer(i) if against is None else against.answer(i)
            _compare_one(drift, i, before, after, int(self._tape.k[i]))
            if i % 1024 == 0:
                on_progress(Progress("comparing", i, total))
        return drift

    def _side(self, stack: ExitStack, url: str, bodies: Bodies) -> Side:
        recorder = stack.enter_context(Recorder(url, self._due_s, self._on_end))
        return Side(url, bodies, recorder)

    def _on_end(self, answered: bool) -> None:
        self._ended += 1
        self._failed += not answered

    async def _check_version(self, body: bytes) -> None:
        """Ask once before the whole tape is sent for nothing."""
        found: list[tuple[int, bytes]] = []
        async with HttpClient(
            self._plan.to, lambda _, status, answer, __: found.append((status, answer)), timeout_s=self._plan.timeout_s
        ) as client:
            client.submit(0, body, monotonic_s())
            await client.finish()
        status, answer = found[0]
        if status == _CONFLICT:
            raise VersionError(
                f"{self._plan.to} does not serve {self._plan.against}: {_detail(answer)}",
                mend="start an aif serve that does, and give its URL to --against",
            )


def _compare_one(drift: Drift, i: int, before: Answer | None, after: Answer | None, k: int) -> None:
    if before is None or after is None:
        drift.unanswered += 1
        return
    drift.versions[0].add(before.model_version)
    drift.versions[1].add(after.model_version)
    if before.whole and after.whole:
        drift.add(i, compare(before.items, after.items, k))
    else:
        drift.degraded += 1


def quantiles_ms(values_s: NDArray[np.float64]) -> dict[str, float]:
    """p50 p90 p99 p999 max in ms."""
    if not values_s.size:
        raise BadInput("there is no answer to measure")
    points = np.quantile(values_s, (0.5, 0.9, 0.99, 0.999, 1.0)) * 1000.0
    names = ("p50", "p90", "p99", "p999", "max")
    return {name: round(float(value), 3) for name, value in zip(names, points, strict=True)}


def histogram_ms(values_s: NDArray[np.float64]) -> list[dict[str, float]]:
    """Counts in buckets that grow by a tenth (a value is known to 5 %); empty ones are left out."""
    steps = np.ceil(np.log(np.maximum(values_s * 1000.0, 1e-3)) / np.log(1.1)).astype(int)
    edges, counts = np.unique(steps, return_counts=True)
    return [
        {"below_ms": round(float(1.1**edge), 4), "count": int(count)} for edge, count in zip(edges, counts, strict=True)
    ]


def _drift_shape(drift: Drift, compared_with: str) -> dict[str, Any]:
    overlap, correlation, score = drift.overlap_mean, drift.correlation_mean, drift.score_mean
    changed = drift.changed()
    return {
        "overlap_at_k": overlap.value,
        "rank_correlation": correlation.value,
        "score_max_abs": drift.score_worst,
        "changed_items": [change.item_id for change in changed],
        "value": drift.value,
        "compared_with": compared_with,
        "compared": drift.compared,
        "not_compared": {"degraded": drift.degraded, "unanswered": drift.unanswered},
        "changed_items_total": len(drift.items),
        "requests_changed_as_a_whole": drift.whole_user,
        "intervals": {
            "overlap_at_k": _interval(overlap),
            "rank_correlation": _interval(correlation),
            "score_change_mean": _interval(score),
        },
        "changes": [_rounded(change) for change in changed[:_SHOWN]],
        "versions": {"before": sorted(drift.versions[0]), "after": sorted(drift.versions[1])},
    }


def _rounded(change: ItemChange) -> dict[str, Any]:
    return {
        "item_id": change.item_id,
        "requests": change.requests,
        "apart": change.apart,
        "lost": change.lost,
        "gained": change.gained,
        "max_abs": round(change.max_abs, 9),
    }


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _detail(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["detail"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return "HTTP 409"
