"""What one request has so far: its parts, what was short, and how long each stage took."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.ids import Keys
from aif_stream.domain.request import RankRequest, Timings
from aif_stream.errors import AifError
from aif_stream.online.deadline import Deadline
from aif_stream.online.pool import Pool
from aif_stream.online.scoring import Part, Ranked
from aif_stream.online.serving import Serving
from aif_stream.online.user_side import UserPart

_ID_BYTES: Final = 8
_DRAWN: Final = 512
_ids: list[str] = []  # for the event loop only


def _new_id() -> str:
    """An id that nobody can guess: explanations are asked for by it. Drawn many at a time, for each draw is a call of
    the system that gives the interpreter's lock away."""
    if not _ids:
        drawn = secrets.token_hex(_ID_BYTES * _DRAWN)
        _ids.extend(drawn[at : at + 2 * _ID_BYTES] for at in range(0, len(drawn), 2 * _ID_BYTES))
    return _ids.pop()


@dataclass(slots=True)
class Span:
    """From the first beginning to the last end of a stage, monotonic seconds; empty while it has not begun."""

    begin_s: float = float("inf")
    end_s: float = float("-inf")

    @contextmanager
    def open(self) -> Iterator[None]:
        self.begin_s = min(self.begin_s, monotonic_s())
        try:
            yield
        finally:
            self.end_s = max(self.end_s, monotonic_s())

    @property
    def ms(self) -> float:
        return max(0.0, self.end_s - self.begin_s) * 1000.0


@dataclass(slots=True)
class Busy:
    """Time in which a stage was worked on. One piece of work at a time (``Run.turn``), so the sum is wall time too."""

    s: float = 0.0

    @contextmanager
    def open(self) -> Iterator[None]:
        begin_s = monotonic_s()
        try:
            yield
        finally:
            self.s += monotonic_s() - begin_s


@dataclass(slots=True)
class Run:
    """One request under way.

    ``turn``: who holds it works on the parts, in a thread or on the loop; nobody else touches ``pool``, ``parts`` and
    the busy times then. ``arrived``: answers that nobody has taken up yet. ``awaited``: channels still out.
    ``waited_for``: somebody waits a moment so that what arrives meanwhile is one piece of work.
    ``keeps_rows``: the candidates' rows are wanted after scoring, too (facts of an explanation). ``is_logged``: it
    belongs to the sample of the request log.
    """

    request: RankRequest
    serving: Serving
    deadline: Deadline
    reserve_s: float
    pool: Pool
    request_id: str = field(default_factory=_new_id)
    user: asyncio.Task[UserPart] | None = None
    received_ms: int = field(default_factory=now_ms)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    arrived: list[tuple[str, Keys]] = field(default_factory=list)
    awaited: int = 0
    retrieved: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[Keys] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    ranked: Ranked | None = None
    names: dict[int, str] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)
    user_s: Span = field(default_factory=Span)
    retrieval_s: Span = field(default_factory=Span)
    join_s: Busy = field(default_factory=Busy)
    score_s: Busy = field(default_factory=Busy)
    failure: AifError | None = None
    waited_for: bool = False
    keeps_rows: bool = False
    is_logged: bool = False

    def short_of(self, reason: str) -> None:
        if reason and reason not in self.degraded:
            self.degraded.append(reason)

    def settled(self) -> None:
        """One channel more has answered or failed."""
        self.awaited -= 1
        if not self.awaited:
            self.retrieved.set()

    @property
    def known_user(self) -> UserPart | None:
        """The user side when it is there."""
        done = self.user is not None and self.user.done() and not self.user.cancelled()
        return self.user.result() if done and self.user is not None else None

    def timings(self) -> Timings:
        """See ``Timings``. No stage is longer than the total: each is time between the request's two ends."""
        user_ms, retrieval_ms = self.user_s.ms, self.retrieval_s.ms
        together = Span(
            min(self.user_s.begin_s, self.retrieval_s.begin_s), max(self.user_s.end_s, self.retrieval_s.end_s)
        )
        return Timings(
            user=round(user_ms, 3),
            retrieval=round(retrieval_ms, 3),
            join=round(self.join_s.s * 1000.0, 3),
            score=round(self.score_s.s * 1000.0, 3),
            total=round(self.deadline.elapsed_ms(), 3),
            overlap_saved=round(user_ms + retrieval_ms - together.ms, 3),
        )
