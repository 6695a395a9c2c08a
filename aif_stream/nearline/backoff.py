"""Waiting for something outside that is down: longer each time, said once and then every ten seconds."""

from __future__ import annotations

import asyncio
import logging

from aif_stream import clock
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# The first retry comes within a Redis restart's shortest gap; a second is the most that recovery adds to freshness.
FIRST_S = 0.05
LONGEST_S = 1.0
SAY_EVERY_S = 10.0


class Backoff:
    """``await pause(error)`` before each retry; ``done()`` when it worked again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pause_s = FIRST_S
        self._since_s: float | None = None
        self._said_s = 0.0

    async def pause(self, error: Exception) -> None:
        now_s = clock.monotonic_s()
        if self._since_s is None:
            self._since_s = now_s
        if self._since_s == now_s or now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            log.warning(kv("waiting", what=self._what, down_s=now_s - self._since_s, error=error))
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, LONGEST_S)

    def done(self) -> None:
        if self._since_s is not None:
            log.info(kv("resumed", what=self._what, down_s=clock.monotonic_s() - self._since_s))
        self._pause_s = FIRST_S
        self._since_s = None
