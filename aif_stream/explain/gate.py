"""Explanations stand back while the servers are busy: how busy, the servers say in their leases.

A server's lease carries the seconds that its compute threads have worked; two beats of it give their share of the time.
Above a priority's limit its units wait, but never longer than that priority's patience: nothing stands still for good,
and the OS does the rest (the worker runs at the lowest niceness).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from aif_stream.clock import monotonic_s
from aif_stream.domain.explanations import Priority
from aif_stream.errors import IndexRefused, IndexUnavailable
from aif_stream.index.leases import BEAT_S, SERVE, LeaseBook
from aif_stream.telemetry import EXPLAIN_GATE, kv

log = logging.getLogger(__name__)


class Limit(NamedTuple):
    """Busy share of the servers' threads above which units wait, and how long each waits at most."""

    busy: float
    patience_s: float


# At 50 requests/s of 10,000 candidates two threads are busy for some 30 % of the time; above 60 % queues begin to form.
LIMITS: Final = {Priority.HIGH: Limit(0.95, 0.1), Priority.NORMAL: Limit(0.8, 0.5), Priority.LOW: Limit(0.6, 2.0)}
_LOOK_S: Final = 0.05


class Gate:
    """``watch`` runs beside the work; ``passed`` waits."""

    def __init__(self, leases: LeaseBook) -> None:
        self._leases = leases
        self._seen: dict[str, tuple[float, float]] = {}
        self.busy = 0.0

    async def watch(self) -> None:
        """Look at the servers each beat, until cancelled. Redis away: nothing is known, the gate is open."""
        while True:
            try:
                servers = {lease.id: lease.facts for lease in await self._leases.read(SERVE) if lease.alive}
            except (IndexUnavailable, IndexRefused) as error:
                log.debug(kv("gate.unread", problem=error))
                servers = {}
            self.observe(servers, monotonic_s())
            await asyncio.sleep(BEAT_S)

    def observe(self, servers: Mapping[str, Mapping[str, Any]], now_s: float) -> None:
        """One look: the busiest server counts."""
        shares, seen = [0.0], {}
        for name, facts in servers.items():
            busy_s, threads = float(facts.get("busy_s", 0.0)), max(1, int(facts.get("threads", 1)))
            before = self._seen.get(name)
            seen[name] = (now_s, busy_s)
            if before is not None and now_s > before[0]:
                shares.append((busy_s - before[1]) / (threads * (now_s - before[0])))
        self._seen, self.busy = seen, max(shares)

    async def passed(self, priority: Priority) -> None:
        """Return when units of this priority may run."""
        limit, begin_s = LIMITS[priority], monotonic_s()
        while self.busy > limit.busy and monotonic_s() - begin_s < limit.patience_s:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        EXPLAIN_GATE.inc(monotonic_s() - begin_s)
