"""Explanations on their way to the workers: pending in Redis, acknowledged by Kafka. Opened when first used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import msgspec

from aif_stream.bus.producer import ROLE_CLOSE_S, Producer
from aif_stream.bus.topics import EXPLANATION_REQUESTS
from aif_stream.clock import now_ms
from aif_stream.domain.envelope import JSON, Envelope, to_headers
from aif_stream.domain.explanations import EXPLANATION_TASK_EVENT, ExplanationTask, Reply, State
from aif_stream.errors import BusUnavailable
from aif_stream.index.explanations import Answer, ExplanationStore
from aif_stream.settings import Settings

# The client should hear of an unreachable broker before its own patience ends.
_ACK_S: Final = 10.0


class ExplanationWork:
    """Kafka away at the start is no reason not to answer rank requests, so nothing is opened before it is used."""

    def __init__(self, settings: Settings, store: ExplanationStore) -> None:
        self._settings = settings
        self._store = store
        self._opening = asyncio.Lock()
        self._producer: Producer | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.__aexit__(kind, error, trace)

    async def start(
        self, task: ExplanationTask, score: float, recorded: Callable[[list[str]], None] = lambda _: None
    ) -> Answer:
        """Make it pending and hand it to Kafka, or join what runs already. One that is pending is handed over once
        more: its task may have been lost, and a worker that sees a task twice does it once. ``recorded`` is called with
        its id as soon as Redis has it.

        Raises ``BusUnavailable``, ``PublishError``, ``IndexUnavailable``: ask again, it then joins.
        """
        answer = await self._store.ask(task, score=score)
        recorded([task.explanation_id])
        if answer.reply is Reply.OK or answer.state is State.PENDING:
            task = msgspec.structs.replace(task, run=answer.run, deadline_ms=answer.deadline_ms)
            await self._hand_over(task)
        return answer

    async def _hand_over(self, task: ExplanationTask) -> None:
        topic = EXPLANATION_REQUESTS[task.priority]
        envelope = Envelope(EXPLANATION_TASK_EVENT, f"{task.explanation_id}/{task.run}", "aif/serve", now_ms(), {})
        try:
            async with asyncio.timeout(_ACK_S):
                producer = await self._open()
                key = task.explanation_id.encode()
                await (await producer.send(topic, key, msgspec.json.encode(task), to_headers(envelope, JSON)))
        except TimeoutError:
            raise BusUnavailable(
                f"Kafka did not acknowledge an explanation within {_ACK_S:g} s",
                mend="ask again: what is pending already is joined",
            ) from None

    async def _open(self) -> Producer:
        async with self._opening:
            if self._producer is None:
                topics = list(EXPLANATION_REQUESTS.values())
                producer = Producer(self._settings, "aif-explanations", topics=topics, close_deadline_s=ROLE_CLOSE_S)
                await producer.__aenter__()
                self._producer = producer
            return self._producer
