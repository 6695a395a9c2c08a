"""The candidates of one request: distinct keys, taken channel by channel as they answer, up to a bound.

The last channel named in the settings is the filler: it is asked for as many as are wanted in all, may take at once
only what the others cannot use, and fills up at the end. So rows can be gathered as each channel answers.
"""

from __future__ import annotations

import numpy as np

from aif_stream.domain.ids import Keys
from aif_stream.kernels.distinct import DistinctKeys

_NONE = np.empty(0, np.uint64)


class Pool:
    """``wanted`` keys at most, none of them ``but``. Not for several threads. ``seen``: an empty set to use (a new one
    is cleared memory)."""

    def __init__(
        self, wanted: int, channels: tuple[str, ...], seen: DistinctKeys | None = None, *, but: int | None = None
    ) -> None:
        self._wanted = wanted
        self._share = wanted // len(channels) if channels else wanted
        self._filler = channels[-1] if channels else ""
        self._open = set(channels)
        self._seen = DistinctKeys(wanted) if seen is None else seen
        self._but = but
        self._left_over = _NONE
        self.size = 0

    def share_of(self, channel: str) -> int:
        """How many to ask of a channel."""
        return self._wanted if channel == self._filler else self._share

    @property
    def has_more(self) -> bool:
        """Whether ``fill`` may give something."""
        return bool(self._left_over.size) and self.size < self._wanted

    def take(self, channel: str, keys: Keys) -> Keys:
        """The keys of this answer that are new, within the bound; the filler's rest is kept for ``fill``."""
        self._open.discard(channel)
        room = self._wanted - self.size
        if channel != self._filler:
            return self._add(keys, room)[0]
        taken, self._left_over = self._add(keys, max(0, room - self._share * len(self._open)))
        return taken

    def fill(self) -> Keys:
        """When every channel has answered or failed: what the filler still has, up to the bound."""
        keys, self._left_over = self._left_over, _NONE
        return self._add(keys, self._wanted - self.size)[0] if keys.size else _NONE

    def _add(self, keys: Keys, room: int) -> tuple[Keys, Keys]:
        """First occurrences of unseen keys, in order, at most ``room``; and the keys behind them."""
        taken, looked = self._seen.take(keys, room, self._but)
        self.size += int(taken.size)
        return taken, keys[looked:]
