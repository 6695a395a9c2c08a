"""The user's part of a request: stored profile and history, rows of its items, the model's user side.

A side that was computed is used again for a while as long as what is stored of the user is the same: the history is
read for every request (one round trip, 17 KB for 1,000 entries) and its digest is the watermark, exact also for events
that came late into the middle. So a new behavior counts at once; only rows of the history's items may be older, and the
answer tells that age. Requests for the same side at the same time share one computation.

Redis away: what was last read of this user is used again (with its age), or nothing is known of the user; the
answer says ``user``. The same holds when a caller stops waiting.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from hashlib import blake2b
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.facts import UserInputs
from aif_stream.domain.row import Rows
from aif_stream.errors import IndexRefused, IndexUnavailable
from aif_stream.index.histories import HistoryStore, StoredUser
from aif_stream.model.rows import at_places
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from aif_stream.online.breaker import Breaker
from aif_stream.online.cache import AgedCache
from aif_stream.online.deadline import Deadline
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.join import MirrorJoin
from aif_stream.online.serving import Serving
from aif_stream.settings import Settings
from aif_stream.telemetry import USER_SIDES, kv

log = logging.getLogger(__name__)

# 4,000 users with 1,000 entries each; what is not there when Redis fails is answered as an unknown user.
_STORED_BYTES: Final = 64 * 2**20
# A user side is 0.5 MB at 64 signature bits and 64 hidden units: some 500 of them.
_SIDES_BYTES: Final = 256 * 2**20
# The longest that rows of the history's items may be behind (the answer tells the age).
_REUSE_MOST_S: Final = 60.0
# Redis answers a user in under a millisecond; beyond this, or this share of a longer deadline, the last known user
# is the better answer.
_READ_S: Final = 0.05
_READ_SHARE: Final = 0.25
_HIT: Final = USER_SIDES.labels("hit")  # nearly every request


@dataclass(frozen=True, slots=True)
class UserPart:
    """A user side, how old what it was made of is, and the reason if that is not the truth of now ("" if it is).

    ``inputs``: what it was made of, for whoever has to make it again (explanations); None: of nobody known."""

    side: UserSide
    age_ms: float
    short_of: str
    inputs: UserInputs | None = None


class Made(NamedTuple):
    """A user side and what it was made of (None: of nothing)."""

    side: UserSide
    inputs: UserInputs | None


class UserSides:
    """One per server. ``redis`` is the breaker that recomputations share."""

    def __init__(self, settings: Settings, histories: HistoryStore, threads: ComputeThreads, redis: Breaker) -> None:
        self._histories = histories
        self._threads = threads
        self._redis = redis
        self._reuse_s = min(settings.user_cache_s, _REUSE_MOST_S)
        self._stored: AgedCache[int, StoredUser] = AgedCache(_STORED_BYTES)
        self._sides: AgedCache[tuple[str, int], tuple[bytes, Made]] = AgedCache(_SIDES_BYTES)
        self._computing: dict[tuple[str, int, bytes], asyncio.Task[Made]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = list(self._computing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def memory_bytes(self) -> int:
        """Memory of the sides that are kept."""
        return self._sides.bytes

    @property
    def pending(self) -> int:
        """Sides that are being computed."""
        return len(self._computing)

    async def of(self, serving: Serving, user_key: int, deadline: Deadline, reserve_s: float) -> UserPart:
        """The user side, at the latest ``reserve_s`` before the deadline (short of "deadline:user" then)."""
        try:
            async with asyncio.timeout(deadline.left_s(reserve_s)):
                most_s = max(_READ_S, _READ_SHARE * (deadline.due_s - deadline.started_s))
                stored, age_s, short_of = await self._read(user_key, deadline.left_s(reserve_s, most_s))
                if stored is None:
                    return UserPart(serving.unknown_user, 0.0, short_of)
                made, side_age_s = await self._side(serving, user_key, stored, deadline.due_s)
        except TimeoutError:
            return UserPart(serving.unknown_user, 0.0, "deadline:user")
        except (IndexUnavailable, IndexRefused):  # AIF_JOIN=redis: the rows of the history could not be read
            return UserPart(serving.unknown_user, 0.0, "user")
        return UserPart(made.side, max(age_s, side_age_s) * 1000.0, short_of, made.inputs)

    async def _side(self, serving: Serving, user_key: int, stored: StoredUser, due_s: float) -> tuple[Made, float]:
        """The side of what is stored, and its age in s: remembered, being computed, or computed now."""
        if not stored.history.size and not stored.attributes:
            return Made(serving.unknown_user, None), 0.0
        mark = _watermark(stored)
        known = self._sides.get((serving.name, user_key), self._reuse_s)
        if known is not None and known[0][0] == mark:
            _HIT.inc()
            return known[0][1], known[1]
        job = (serving.name, user_key, mark)
        task = self._computing.get(job)
        USER_SIDES.labels("computed" if task is None else "shared").inc()
        if task is None:
            # A task of its own: it ends for the others when the first who asked stops waiting.
            task = self._computing[job] = asyncio.create_task(self._compute(serving, user_key, mark, stored, due_s))
            task.add_done_callback(lambda done: self._ended(job, done))
        return await asyncio.shield(task), 0.0

    def _ended(self, job: tuple[str, int, bytes], task: asyncio.Task[Made]) -> None:
        self._computing.pop(job, None)
        if not task.cancelled():
            task.exception()  # seen: whoever waits gets it too, and maybe nobody waits any more

    async def _read(self, user_key: int, budget_s: float) -> tuple[StoredUser | None, float, str]:
        """(what is stored, its age in s, "" or "user"); None: nothing is known and Redis cannot be asked."""
        if self._redis.allows():
            try:
                async with asyncio.timeout(budget_s):
                    stored = await self._histories.read(user_key)
            except (IndexUnavailable, TimeoutError) as error:
                # A request's own tight deadline is no fault of Redis.
                if not isinstance(error, TimeoutError) or budget_s >= _READ_S:
                    self._redis.failed()
                log.warning(kv("user.unread", error=str(error) or "timeout", redis=self._redis.state))
            except IndexRefused as error:
                log.error(kv("user.refused", error=error))
            else:
                self._redis.succeeded()
                self._stored.put(user_key, stored, stored.history.nbytes + 1024)
                return stored, 0.0, ""
        known = self._stored.get(user_key)
        return (known[0], known[1], "user") if known is not None else (None, 0.0, "user")

    async def _compute(self, serving: Serving, user_key: int, mark: bytes, stored: StoredUser, due_s: float) -> Made:
        made = await self._computed(serving, stored, due_s)
        if self._reuse_s > 0:
            weight_bytes = made.side.nbytes + (0 if made.inputs is None else made.inputs.nbytes)
            self._sides.put((serving.name, user_key), (mark, made), weight_bytes)
        return made

    async def _computed(self, serving: Serving, stored: StoredUser, due_s: float) -> Made:
        history = stored.history
        keys, join = np.ascontiguousarray(history["key"]), serving.join
        if isinstance(join, MirrorJoin):
            return await self._threads.run(lambda: _make(serving.model, stored, *join.gather(keys)), due_s)
        rows, found = await join.rows(keys, due_s)
        return await self._threads.run(lambda: _make(serving.model, stored, rows, found), due_s)


def _make(model: ModelVersion, stored: StoredUser, rows: Rows, found: NDArray[np.bool_]) -> Made:
    """In a thread. The rows that were used are kept beside the side: 250 KB of 1,000 entries."""
    history = stored.history
    used = model.used_entries(rows, found)
    newest = history[-1:] if history.size and (not used.size or used[-1] != history.size - 1) else history[:0]
    mine = at_places(rows, used)
    inputs = UserInputs(stored.attributes, at_places(history, used), mine, newest)
    return Made(model.user_side_of(stored.attributes, history, used, mine), inputs)


def _watermark(stored: StoredUser) -> bytes:
    """Which history and profile these are, 16 bytes. 17 KB take 20 µs."""
    digest = blake2b(np.ascontiguousarray(stored.history).tobytes(), digest_size=16)
    digest.update(repr(stored.order).encode())
    return digest.digest()
