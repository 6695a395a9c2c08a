"""What a lane does with its records: the seam between the loop (lane.py) and items, users, behaviors, rebuilds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from aif_stream.bus.consumer import UNPARSEABLE, Record, Unparseable
from aif_stream.domain.decoding import fault_of

B = TypeVar("B")
E = TypeVar("E")
P = TypeVar("P")
E_co = TypeVar("E_co", covariant=True)


class Taken(NamedTuple, Generic[E_co]):
    """A record and the event that it carries."""

    record: Record
    event: E_co


class Poison(NamedTuple):
    """A record that cannot be used, for the dead-letter topic."""

    record: Record
    reason: str
    problem: str


@dataclass(frozen=True, slots=True)
class Written:
    """Effects that Redis has acknowledged; ``acks`` are those that Kafka still has to."""

    acks: Sequence[Awaitable[object]] = ()
    poison: Sequence[Poison] = field(default=())


class Work(Protocol[B, P]):
    """What one lane does; one instance per lane. ``B``: a decoded batch, ``P``: what is ready to be written."""

    @property
    def name(self) -> str: ...

    def decode(self, records: Sequence[Record]) -> tuple[B, list[Poison]]:
        """What cannot be used becomes a dead letter, and the lane goes on."""
        ...

    async def prepare(self, batch: B) -> P:
        """Coalesce and compute; no effects."""
        ...

    async def write(self, prepared: P) -> Written:
        """All effects, repeatable. Raises ``IndexUnavailable`` or ``IndexRefused``: it is called again."""
        ...

    async def restore(self) -> None:
        """Redis lost something: put back what replaying this lane's topic does not."""
        ...


def decode_each(records: Sequence[Record], decode: Callable[[Record], E]) -> tuple[list[Taken[E]], list[Poison]]:
    """Records one by one. ``decode`` asks neither store nor bus, so whatever it raises is its record's fault."""
    batch: list[Taken[E]] = []
    poison: list[Poison] = []
    for record in records:
        if isinstance(record, Unparseable):
            poison.append(Poison(record, UNPARSEABLE, record.problem))
            continue
        try:
            batch.append(Taken(record, decode(record)))
        except Exception as error:  # noqa: BLE001  # the edge of one record
            fault = fault_of(error)
            poison.append(Poison(record, fault.reason, str(fault)))
    return batch, poison
