"""Which explanation is next: priorities with a head start each, and a turn for the oldest.

A task waits as if it had come earlier: high by 30 s, normal by 10 s, low not at all. So a low one is overtaken only by
what came within 30 s after it. Every eighth turn goes to the oldest of all, whatever its priority: while high ones
never cease, of n older ones waiting here it begins within 8·(n + 1) turns. The queues are short; what does not fit
stays in Kafka, each priority in a topic of its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from aif_stream.domain.explanations import Priority

T = TypeVar("T")

HEAD_START_S: Final = {Priority.HIGH: 30.0, Priority.NORMAL: 10.0, Priority.LOW: 0.0}
OLDEST_EVERY: Final = 8
CAPACITY: Final = 64


@dataclass(frozen=True, slots=True)
class Waiting(Generic[T]):
    """``since_s``: when it was asked for, on one clock for all."""

    work: T
    priority: Priority
    since_s: float


class Queues(Generic[T]):
    """Not for several threads. ``room`` says how many more of a priority are taken; beyond it, wait."""

    def __init__(self) -> None:
        self._queues: dict[Priority, deque[Waiting[T]]] = {priority: deque() for priority in Priority}
        self._turns = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def room(self, priority: Priority) -> int:
        return CAPACITY - len(self._queues[priority])

    def push(self, waiting: Waiting[T]) -> None:
        self._queues[waiting.priority].append(waiting)

    def pop(self, *, only: Priority | None = None) -> Waiting[T] | None:
        """The next one; ``only`` of one priority, which is nobody's turn."""
        if only is not None:
            return self._queues[only].popleft() if self._queues[only] else None
        heads = [queue for queue in self._queues.values() if queue]
        if not heads:
            return None
        self._turns += 1
        if self._turns % OLDEST_EVERY == 0:
            return min(heads, key=lambda queue: queue[0].since_s).popleft()
        return min(heads, key=lambda queue: queue[0].since_s - HEAD_START_S[queue[0].priority]).popleft()

    def drop(self) -> list[Waiting[T]]:
        """Everything that waits; the queues are empty then."""
        found = [waiting for queue in self._queues.values() for waiting in queue]
        for queue in self._queues.values():
            queue.clear()
        return found
