"""Inside a batch the newest event of an id wins; hot ids cost one write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from aif_stream.domain.order import Order
from aif_stream.nearline.work import Taken


class Ordered(Protocol):
    """An event that has an id and an order."""

    @property
    def id_text(self) -> str: ...

    @property
    def order(self) -> Order: ...


E = TypeVar("E", bound=Ordered)


@dataclass(slots=True)
class Newest(Generic[E]):
    """The newest event of one id in a batch. ``last``: the id's last record in the batch, the one that compaction would
    keep."""

    taken: Taken[E]
    last: Taken[E]

    def came_after(self, winner: Order) -> bool:
        """Whether the last record is an older event behind the winner's own: compaction would keep the wrong one."""
        return self.last.event.order < winner and self.last.record.offset > winner.offset


def coalesce(batch: Sequence[Taken[E]]) -> list[Newest[E]]:
    """One entry per id (not per key: the store tells two ids of one key apart), the newest by order.

    Records of one id come from one partition, so the batch has them in the order of their offsets.
    """
    newest: dict[str, Newest[E]] = {}
    for taken in batch:
        event = taken.event
        text = event.id_text
        held = newest.get(text)
        if held is None:
            newest[text] = Newest(taken, taken)
            continue
        held.last = taken
        if event.order >= held.taken.event.order:
            held.taken = taken
    return list(newest.values())
