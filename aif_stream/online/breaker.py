"""A circuit breaker: a dependency that failed again and again is left alone for a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from aif_stream.clock import monotonic_s

# Five in a row is no accident; one second is short enough that a restarted server is used again at once.
FAILURES: Final = 5
OPEN_S: Final = 1.0

State = Literal["closed", "open", "trying"]


class Breaker:
    """Closed → (``failures`` in a row) → open → (``open_s`` later, one probe) → closed or open again.

    Ask ``allows`` before a call and tell ``succeeded`` or ``failed`` after it. Not for several threads.
    """

    def __init__(
        self, *, failures: int = FAILURES, open_s: float = OPEN_S, clock: Callable[[], float] = monotonic_s
    ) -> None:
        self._limit = failures
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._retry_s = 0.0

    @property
    def state(self) -> State:
        if self._failures < self._limit:
            return "closed"
        return "open" if self._clock() < self._retry_s else "trying"

    def allows(self) -> bool:
        """True when a call may be made now. While open, one caller per ``open_s`` is let through as the probe."""
        state = self.state
        if state == "trying":
            self._retry_s = self._clock() + self._open_s  # others wait for what this probe finds
        return state != "open"

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._retry_s = self._clock() + self._open_s
