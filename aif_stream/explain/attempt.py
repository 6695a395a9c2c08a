"""One attempt at a task: the lease that it holds, the signs of life, and the end of it when it is taken away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aif_stream.clock import now_ms
from aif_stream.domain.explanations import Action, ExplanationTask, Reply, Stage, Told
from aif_stream.errors import IndexDenied, IndexUnavailable
from aif_stream.index.explanations import ExplanationStore
from aif_stream.telemetry import EXPLANATION_COARSE

# A worker that was killed is missed after so long; one that is alive says so ten times meanwhile.
LEASE_MS: Final = 5_000
_BEAT_S: Final = 0.5


class LostAttempt(Exception):
    """The work is not ours any more: cancelled, ended, or another attempt's."""


class Attempt:
    """One attempt that holds its work: every write names it, and one that is refused ends it."""

    def __init__(self, store: ExplanationStore, task: ExplanationTask, number: int) -> None:
        self._store = store
        self.task = task
        self.number = number
        self.progress = ""
        self.near = False  # a part of it is a like user's
        self._lost = False

    def check(self) -> None:
        """Raises ``LostAttempt`` when the work was taken away meanwhile."""
        if self._lost:
            raise LostAttempt

    async def tell(self, told: Told, fields: dict[str, bytes]) -> None:
        """Raises ``LostAttempt`` when the machine refuses."""
        self.check()
        said = await self._store.tell(self.task.explanation_id, told, fields)
        if said.reply is not Reply.OK:
            self._lost = True
            raise LostAttempt

    async def stage(self, stage: Stage, data: bytes) -> None:
        """A part of the result is there."""
        await self.tell(Told(Action.STAGE, attempt=self.number, lease_ms=LEASE_MS), {f"stage:{stage.value}": data})
        if stage is Stage.NATIVE:
            EXPLANATION_COARSE.labels(priority=self.task.priority).observe(self.waited_s)

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Signs of life and progress while the body works; the body is cancelled when the work is lost."""
        body = asyncio.current_task()
        beating = asyncio.create_task(self._beat(body.cancel if body is not None else lambda: True))
        try:
            yield
        except asyncio.CancelledError:
            if self._lost and body is not None and body.uncancel() == 0:
                raise LostAttempt from None
            raise
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, lost: Callable[[], bool]) -> None:
        said = ""
        while True:
            await asyncio.sleep(_BEAT_S)
            fields = {} if self.progress == said else {"progress": self.progress.encode()}
            said = self.progress
            # Where nothing can be told the lease may run out: then another attempt takes over.
            with contextlib.suppress(IndexUnavailable, IndexDenied):
                told = Told(Action.KEEP, attempt=self.number, lease_ms=LEASE_MS)
                answer = await self._store.tell(self.task.explanation_id, told, fields)
                if answer.reply is not Reply.OK:
                    self._lost = True
                    lost()
                    return

    @property
    def waited_s(self) -> float:
        """Seconds since the answer, or since the asking when that was later."""
        return max(0.0, (now_ms() - max(self.task.asked_ms, self.task.answered_ms)) / 1000.0)
