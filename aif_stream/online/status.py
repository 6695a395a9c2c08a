"""What this server says about itself: ``/v1/status`` for the dashboard, the metrics of a request."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.clock import monotonic_s
from aif_stream.domain.quantiles import quantiles
from aif_stream.domain.request import RankAnswer
from aif_stream.telemetry import (
    OVERLAP_SAVED,
    RANK_DEGRADED,
    RANK_REQUESTS,
    RANK_SECONDS,
    RANK_VERSION_DEGRADED,
    RANK_VERSION_SECONDS,
    SERVED_AGE,
    gathers,
    observe_each,
)

STAGES: Final = ("user", "retrieval", "join", "score", "total")
_KEPT: Final = 2_048  # enough for a p99 over the last minutes of a busy server
_RATE_S: Final = 10.0
_ROWS: Final = 256  # answers counted in one go: what a look at all series costs is a microsecond each then
_NOTHING: Final = float("nan")  # nothing was scored, so nothing has an age


class Window:
    """The last values of something, for quantiles that follow the present."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._values = np.zeros(kept)
        self.count = 0

    def add(self, *values: float) -> None:
        for value in values:
            self._values[self.count % self._values.size] = value
            self.count += 1

    def extend(self, values: NDArray[np.float64]) -> None:
        """Add values (n), oldest first."""
        size = self._values.size
        ends = self.count + values.size
        places = np.arange(max(self.count, ends - size), ends)
        self._values[places % size] = values[values.size - places.size :]
        self.count = ends

    def values(self) -> NDArray[np.float64]:
        """What is kept, in no order."""
        return self._values[: min(self.count, self._values.size)]

    def quantiles(self) -> dict[str, float] | None:
        """p50, p99 and max of what is kept; None before the first value."""
        if not self.count:
            return None
        p50, p99, most = quantiles(self.values(), 0.5, 0.99, 1.0)
        return {"p50": round(p50, 3), "p99": round(p99, 3), "max": round(most, 3)}


class RequestLog:
    """Counts requests, in the metrics and for the status page.

    What an answer says is kept as one row of numbers and counted with hundreds of others, or as soon as anybody looks:
    0.5 µs an answer in place of 20.
    """

    def __init__(self) -> None:
        self._stages_ms = {stage: Window() for stage in (*STAGES, "overlap_saved")}
        self._ended_s = Window()
        self._statuses: Counter[str] = Counter()
        self._degraded: Counter[str] = Counter()
        self._rows: list[tuple[float, ...]] = []  # stages and overlap (ms), age of what was served (ms), end (s)
        self._versions: list[str] = []  # which answered
        self.answered = 0
        gathers(self)

    def answer(self, answer: RankAnswer) -> None:
        """An answer that goes out."""
        times, age_ms = answer.timings_ms, answer.freshness.age_ms.p50 if answer.coverage.scored else _NOTHING
        self._rows.append(
            (
                *(times.user, times.retrieval, times.join, times.score, times.total, times.overlap_saved),
                *(age_ms, monotonic_s()),
            )
        )
        self._versions.append(answer.model_version)
        if answer.degraded:
            RANK_VERSION_DEGRADED.labels(version=answer.model_version).inc()
        for reason in answer.degraded:
            RANK_DEGRADED.labels(reason=reason).inc()
            self._degraded[reason] += 1
        self._statuses["200"] += 1
        self.answered += 1
        if len(self._rows) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        """Count what is kept."""
        rows, versions = self._rows, self._versions
        if not rows:
            return
        self._rows, self._versions = [], []
        *stages, age_ms, ended_s = np.array(rows).T
        for window, values in zip(self._stages_ms.values(), stages, strict=True):
            window.extend(values)
        self._ended_s.extend(ended_s)
        for stage, values in zip(STAGES, stages[:-1], strict=True):
            observe_each(RANK_SECONDS.labels(stage), values / 1000.0)
        observe_each(OVERLAP_SAVED, stages[-1] / 1000.0)
        observe_each(SERVED_AGE, age_ms[~np.isnan(age_ms)] / 1000.0)
        total_s, of = stages[STAGES.index("total")] / 1000.0, np.array(versions)
        for version in set(versions):
            observe_each(RANK_VERSION_SECONDS.labels(version), total_s[of == version])
        RANK_REQUESTS.labels(status="200").inc(len(rows))

    def status(self, status: int) -> None:
        """Any other response to ``POST /v1/rank``."""
        RANK_REQUESTS.labels(status=str(status)).inc()
        self._statuses[str(status)] += 1

    def view(self) -> dict[str, Any]:
        """For ``/v1/status``."""
        self.flush()
        recent = int((self._ended_s.values() > monotonic_s() - _RATE_S).sum())
        stages = {stage: found.quantiles() for stage, found in self._stages_ms.items()}
        return {
            "total": sum(self._statuses.values()),
            "by_status": dict(self._statuses),
            "degraded": dict(self._degraded),
            "stages_ms": stages,
            "per_s": round(recent / _RATE_S, 2),
            "total_ms": stages["total"],
        }
