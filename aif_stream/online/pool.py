"""The candidates of one request: distinct keys, taken channel by channel as they answer, up to a bound.

The last channel named in the settings is the filler: it is asked for as many as are wanted in all, may take at once
only what the others cannot use, and fills up at the end. So rows can be gathered as each channel answers.
"""

from __future__ import annotations

import numpy as np

from aif_stream.domain.ids import Keys
from aif_stream.kernels.slots import SlotTable

_NONE = np.empty(0, np.uint64)


class Pool:
    """``wanted`` keys at most. Not for several threads."""

    def __init__(self, wanted: int, channels: tuple[str, ...]) -> None:
        self._wanted = wanted
        self._share = wanted // len(channels) if channels else wanted
        self._filler = channels[-1] if channels else ""
        self._open = set(channels)
        self._seen = SlotTable(wanted)
        self._slots = np.zeros(wanted, np.int32)  # the table is a set here: every key's slot is 0
        self._left_over = _NONE
        self.size = 0

    def share_of(self, channel: str) -> int:
        """How many to ask of a channel."""
        return self._wanted if channel == self._filler else self._share

    @property
    def has_more(self) -> bool:
        """Whether ``fill`` would give something."""
        return bool(self._left_over.size) and self.size < self._wanted

    def take(self, channel: str, keys: Keys) -> Keys:
        """The keys of this answer that are new, within the bound; the filler's rest is kept for ``fill``."""
        self._open.discard(channel)
        room = self._wanted - self.size
        if channel != self._filler:
            return self._add(keys, room)
        room -= self._share * len(self._open)
        unseen = keys[self._seen.lookup(keys) < 0]
        self._left_over = unseen[max(0, room) :]
        return self._add(unseen, max(0, room))

    def fill(self) -> Keys:
        """When every channel has answered or failed: what the filler still has, up to the bound."""
        keys, self._left_over = self._left_over, _NONE
        return self._add(keys, self._wanted - self.size)

    def _add(self, keys: Keys, room: int) -> Keys:
        """First occurrences of unseen keys, in order, at most ``room``."""
        taken: list[Keys] = []
        while room > 0 and keys.size:
            # As many as would fit are entered at once; duplicates among them leave room for the next round.
            some, keys = keys[:room], keys[room:]
            fresh = some[self._seen.assign(some, self._slots[: some.size]) < 0]
            taken.append(fresh)
            room -= fresh.size
            if 2 * fresh.size < some.size:
                keys = keys[self._seen.lookup(keys) < 0]
        found = taken[0] if len(taken) == 1 else np.concatenate([_NONE, *taken])
        self.size += int(found.size)
        return found
