"""What may be committed: tasks end in any order, offsets only move past what has ended."""

from __future__ import annotations

from collections.abc import Iterable

from aif_stream.bus.consumer import Partition


class Offsets:
    """The open records of each partition. A partition that is assigned anew begins anew."""

    def __init__(self) -> None:
        self._open: dict[Partition, set[int]] = {}
        self._next: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}

    def take(self, partition: Partition, offset: int) -> None:
        """A record that was read."""
        self._open.setdefault(partition, set()).add(offset)
        self._next[partition] = max(self._next.get(partition, 0), offset + 1)

    def end(self, partition: Partition, offset: int) -> None:
        """Its work is done, and whoever needs to know does."""
        self._open.get(partition, set()).discard(offset)

    def forget(self, partitions: Iterable[Partition]) -> None:
        """Not ours any more."""
        for partition in partitions:
            for book in (self._open, self._next, self._committed):
                book.pop(partition, None)

    def due(self) -> dict[Partition, int]:
        """Next offsets to commit that are not committed yet."""
        found = {p: min(self._open[p], default=after) for p, after in self._next.items()}
        return {p: offset for p, offset in found.items() if offset > self._committed.get(p, 0)}

    def committed(self, offsets: dict[Partition, int]) -> None:
        """Kafka has these."""
        for partition, offset in offsets.items():
            if partition in self._next:
                self._committed[partition] = offset
