"""Candidates' keys → rows of the pinned version, from this server's mirror or by one batched read from Redis."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.ids import Keys
from aif_stream.domain.row import Rows
from aif_stream.index.mirror import Mirror
from aif_stream.index.store import N2OStore
from aif_stream.kernels.score import Scored
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from aif_stream.online.executor import ComputeThreads

Found = NDArray[np.bool_]


class Join(Protocol):
    """Keys u64 (B) -> rows (B), found bool (B), for a request that is due at ``due_s`` (monotonic). Unknown and removed
    items are not found; their rows are zeros but for a removed one's prefix."""

    async def rows(self, keys: Keys, due_s: float) -> tuple[Rows, Found]: ...


class MirrorJoin:
    """A gather in memory, in a compute thread: no I/O."""

    def __init__(self, mirror: Mirror, threads: ComputeThreads) -> None:
        self._mirror = mirror
        self._threads = threads

    async def rows(self, keys: Keys, due_s: float) -> tuple[Rows, Found]:
        return await self._threads.run(lambda: self.gather(keys), due_s)

    def gather(self, keys: Keys) -> tuple[Rows, Found]:
        """The same in the calling thread. No row is torn and no slot is reused while this reads."""
        with self._mirror.reading() as view:
            return view.join(keys)

    def score(
        self, model: ModelVersion, user: UserSide, keys: Keys, due_s: float, *, stop_if_unknown: bool
    ) -> Scored | None:
        """Join and score in one call, in the calling thread; see ``ModelVersion.score_stored``."""
        with self._mirror.reading() as view:
            return model.score_stored(user, view.stored, keys, due_s, stop_if_unknown=stop_if_unknown)


class RedisJoin:
    """One round trip per call. Raises ``IndexUnavailable``, ``IndexRefused``."""

    def __init__(self, store: N2OStore, model: ModelVersion) -> None:
        self._store = store
        self._model = model

    async def rows(self, keys: Keys, due_s: float) -> tuple[Rows, Found]:
        return await self._store.read_rows(self._model.name, self._model.layout, keys)
