"""The three channels: neighbours of the user's recent items, favourite categories, popularity with filler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.candidates import Candidates
from aif_stream.domain.ids import Keys
from aif_stream.errors import BadInput
from aif_stream.retrieval.catalogue import Catalogue, Positions
from aif_stream.retrieval.neighbours import Neighbours
from aif_stream.retrieval.recent import RecentItems

CHANNELS: Final = ("neighbours", "category", "popular")
# The newest few say what the user wants now; each adds about 0.5 ms of search at a million items.
_QUERIES: Final = 8
_FAVOURITES: Final = 3


@dataclass(frozen=True, slots=True)
class Ranking:
    """Living items by popularity: ``order`` (n), and the same by category: category c is ``starts[c]:starts[c+1]``."""

    order: Positions
    by_category: Positions
    starts: NDArray[np.int64]


EMPTY_RANKING: Final = Ranking(np.empty(0, np.int32), np.empty(0, np.int32), np.zeros(1, np.int64))


def rank_by_popularity(catalogue: Catalogue) -> Ranking:
    """O(n log n), about 0.3 s at a million items: done in the writing thread, now and then."""
    order, category = catalogue.popular()
    grouped = np.argsort(category, kind="stable")
    codes = int(category.max(initial=-1)) + 1
    starts = np.searchsorted(category[grouped], np.arange(codes + 1))
    return Ranking(order, order[grouped], starts)


class Channels:
    """Answers from what the feeds have built. Safe in another thread than the writing one."""

    def __init__(self, catalogue: Catalogue, recent: RecentItems, neighbours: Neighbours) -> None:
        self._catalogue = catalogue
        self._recent = recent
        self._neighbours = neighbours
        self.ranking = EMPTY_RANKING

    def answer(self, channel: str, user_key: int, k: int) -> Candidates:
        """At most k distinct keys, best first; none for a user without history (but ``popular`` knows everybody).

        Raises ``BadInput`` naming ``channel`` when there is no such channel.
        """
        if channel == "neighbours":
            keys = self._of_neighbours(user_key, k)
        elif channel == "category":
            keys = self._of_categories(user_key, k)
        elif channel == "popular":
            keys = self._catalogue.keys_of(self.ranking.order[:k])
        else:
            raise BadInput(f"no channel {channel!r:.40}; there are {', '.join(CHANNELS)}", field="channel")
        return Candidates(channel, keys, self._catalogue.names_of(keys))

    def _of_neighbours(self, user_key: int, k: int) -> Keys:
        recent = self._catalogue.usable(self._recent.of(user_key))[:_QUERIES]
        if not recent.size:
            return np.empty(0, np.uint64)
        found = self._neighbours.search(self._catalogue.vectors_of(recent), k)
        return self._catalogue.keys_of(found)

    def _of_categories(self, user_key: int, k: int) -> Keys:
        """The user's most frequent categories, each with its share of k by how often it occurs."""
        ranking = self.ranking
        codes = self._catalogue.categories_of(self._recent.of(user_key))
        codes = codes[(codes >= 0) & (codes < ranking.starts.size - 1)]
        favourites, counts = np.unique(codes, return_counts=True)
        best = np.argsort(-counts, kind="stable")[:_FAVOURITES]
        parts: list[Positions] = []
        total = int(counts[best].sum())
        for code, count in zip(favourites[best].tolist(), counts[best].tolist(), strict=True):
            start, end = int(ranking.starts[code]), int(ranking.starts[code + 1])
            parts.append(ranking.by_category[start : min(end, start + -(-k * count // total))])
        if not parts:
            return np.empty(0, np.uint64)
        return self._catalogue.keys_of(np.concatenate(parts)[:k])
