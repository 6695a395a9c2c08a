"""What this server says about itself: ``/v1/status`` for the dashboard, the metrics of a request."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.clock import monotonic_s
from aif_stream.domain.request import RankAnswer
from aif_stream.telemetry import (
    OVERLAP_SAVED,
    RANK_DEGRADED,
    RANK_REQUESTS,
    RANK_SECONDS,
    RANK_VERSION_DEGRADED,
    RANK_VERSION_SECONDS,
    SERVED_AGE,
)

STAGES: Final = ("user", "retrieval", "join", "score", "total")
_KEPT: Final = 2_048  # enough for a p99 over the last minutes of a busy server
_RATE_S: Final = 10.0


class Window:
    """The last values of something, for quantiles that follow the present."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._values = np.zeros(kept)
        self.count = 0

    def add(self, *values: float) -> None:
        for value in values:
            self._values[self.count % self._values.size] = value
            self.count += 1

    def values(self) -> NDArray[np.float64]:
        """What is kept, in no order."""
        return self._values[: min(self.count, self._values.size)]

    def quantiles(self) -> dict[str, float] | None:
        """p50, p99 and max of what is kept; None before the first value."""
        if not self.count:
            return None
        values = self.values()
        p50, p99 = np.percentile(values, (50, 99))
        return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(float(values.max()), 3)}


class RequestLog:
    """Counts requests, in the metrics and for the status page."""

    def __init__(self) -> None:
        self._seconds = {stage: RANK_SECONDS.labels(stage) for stage in STAGES}  # looked up once: a third of the cost
        self._stages_ms = {stage: Window() for stage in (*STAGES, "overlap_saved")}
        self._ended_s = Window()
        self._statuses: Counter[str] = Counter()
        self._degraded: Counter[str] = Counter()
        self.answered = 0

    def answer(self, answer: RankAnswer) -> None:
        """An answer that goes out."""
        times = answer.timings_ms
        for stage in STAGES:
            self._seconds[stage].observe(getattr(times, stage) / 1000.0)
        for stage, window in self._stages_ms.items():
            window.add(getattr(times, stage))
        OVERLAP_SAVED.observe(times.overlap_saved / 1000.0)
        if answer.coverage.scored:
            SERVED_AGE.observe(answer.freshness.age_ms.p50 / 1000.0)
        RANK_VERSION_SECONDS.labels(version=answer.model_version).observe(times.total / 1000.0)
        if answer.degraded:
            RANK_VERSION_DEGRADED.labels(version=answer.model_version).inc()
        for reason in answer.degraded:
            RANK_DEGRADED.labels(reason=reason).inc()
            self._degraded[reason] += 1
        self._ended_s.add(monotonic_s())
        self.answered += 1
        self.status(200)

    def status(self, status: int) -> None:
        """Any response to ``POST /v1/rank``."""
        RANK_REQUESTS.labels(status=str(status)).inc()
        self._statuses[str(status)] += 1

    def view(self) -> dict[str, Any]:
        """For ``/v1/status``."""
        recent = int((self._ended_s.values() > monotonic_s() - _RATE_S).sum())
        return {
            "total": sum(self._statuses.values()),
            "by_status": dict(self._statuses),
            "degraded": dict(self._degraded),
            "stages_ms": {stage: found.quantiles() for stage, found in self._stages_ms.items()},
            "per_s": round(recent / _RATE_S, 2),
            "total_ms": self._stages_ms["total"].quantiles(),
        }
