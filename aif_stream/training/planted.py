"""The planted truth: what items are, what users like, and the chance of a click, as functions of numbers and time.

Time is a share of the span, 0 … 1. What each kind of model can find in it:

- two-tower: quality of an item, taste for clusters, region.
- COLD besides: price near the user's budget and size near the user's size. Both count only within a narrow window, so
  a product of two vectors would need a dimension for every place of the window; a first layer compares two numbers.
- AIF besides: the *best* match among three long-term interests (a maximum over a history), the match with the interest
  of the moment; what was bought is not wanted again (the same similarity, of another kind of behavior, with the other
  sign); brands that the user returns to.
- with ``bea``: in each of 16 occasions the user likes one of 8 vibes. Neither is in the content vector, and 128 pairs
  do not fit a vector of 32: the history must be read by occasion, which is what a bridge can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from aif_stream.training.noise import F64, I64, Noise

CONTENT_WIDTH: Final = 32
CLUSTERS: Final = 64
STYLES: Final = 8
BRANDS: Final = 6  # of a cluster
INTERESTS: Final = 3
PHASES: Final = 6  # short-term interests over the span
OCCASIONS: Final = 16
VIBES: Final = 8
_TRIES: Final = 8
_WINDOW: Final = 0.5  # of price and size, in deviations: narrower ones want more data than 100,000 impressions


@dataclass(frozen=True, slots=True)
class Wants:
    """What an item is drawn for, each (…): cluster, style, brand of the cluster; the user, the share of the span."""

    cluster: I64
    style: I64
    brand: I64
    user: I64
    share: F64


class Planted:
    """The truth of one seed. ``drift``: how often each long-term interest changes over the span, on average, and how
    far the fashion of clusters moves. ``updates``: how often an item changes its look and price. ``bea``: weight of
    vibes. ``bare``: percent of items without a content vector."""

    def __init__(self, items: int, seed: int, drift: float, updates: float, bea: float, bare: float) -> None:
        self.items, self.drift, self.updates, self.bea, self.bare = items, drift, updates, bea, bare
        self._noise = Noise(seed)
        random = np.random.default_rng([seed, 7])
        clusters = random.standard_normal((CLUSTERS, 1, CONTENT_WIDTH))
        centres = clusters + 0.5 * random.standard_normal((CLUSTERS, STYLES, CONTENT_WIDTH))
        self._centres: F64 = centres
        self._directions: F64 = centres / np.linalg.norm(centres, axis=2, keepdims=True)
        self._fashion: F64 = 0.3 * drift * random.standard_normal((CLUSTERS, PHASES))

    # What items are. ``state``: how often they changed.

    def state(self, ids: I64, share: F64 | float) -> I64:
        """Changes of items (N) before a share of the span: evenly spaced, at each item's own times."""
        return (
            (np.asarray(share) * self.updates + self._noise.uniform(8, ids)).astype(np.int64)
            if self.updates
            else 0 * ids
        )

    def changes(self, ids: I64) -> tuple[I64, F64]:
        """When items (N) change: whose place in ``ids`` and at which share, by item, then time."""
        if not self.updates:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        most = int(np.ceil(self.updates)) + 1
        share = (np.arange(1, most + 1) - self._noise.uniform(8, ids)[:, None]) / self.updates  # (N, most)
        owner, number = np.nonzero(share < 1)
        return owner, share[owner, number]

    def cluster(self, ids: I64) -> I64:
        return (ids - 1) % CLUSTERS

    def style(self, ids: I64, state: I64) -> I64:
        return self._noise.integers(1, _place(ids, state), STYLES)

    def quality(self, ids: I64) -> F64:
        return self._noise.normal(2, ids)

    def brand(self, ids: I64) -> I64:
        return self._noise.integers(3, ids, BRANDS)

    def price(self, ids: I64, state: I64) -> F64:
        """Log-normal around 20, dearer in some clusters."""
        level: F64 = 20 * np.exp(0.6 * self._noise.normal(4, _place(ids, state)) + 0.4 * np.sin(self.cluster(ids)))
        return level

    def word(self, ids: I64, words: int) -> I64:
        return self._noise.integers(5, ids, words)

    def content(self, ids: I64, state: I64) -> F64:
        """(N) -> (N, V): the style's centre plus noise of the item's own."""
        places = ids[:, None] * CONTENT_WIDTH + np.arange(CONTENT_WIDTH)
        centres: F64 = self._centres[self.cluster(ids), self.style(ids, state)]
        return centres + 0.4 * self._noise.normal(6, places)

    def size(self, ids: I64) -> F64:
        return self._noise.normal(7, ids)

    def occasion(self, ids: I64) -> I64:
        return self._noise.integers(9, ids, OCCASIONS)

    def vibe(self, ids: I64) -> I64:
        return self._noise.integers(10, ids, VIBES)

    def is_bare(self, ids: I64) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Items without a content vector."""
        bare: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = self._noise.uniform(18, ids) * 100 < self.bare
        return bare

    # What users like.

    def budget(self, users: I64) -> F64:
        return self._noise.normal(13, users)

    def user_size(self, users: I64) -> F64:
        return self._noise.normal(16, users)

    def interests(self, users: I64, share: F64) -> I64:
        """Long-term interests (…, 3, 2) of users (…) at shares (…): cluster and style."""
        slots = users[..., None] * INTERESTS + np.arange(INTERESTS)
        epoch = (share[..., None] * self.drift + self._noise.uniform(17, slots)).astype(np.int64)
        places = _place(slots, epoch)
        return np.stack([self._noise.integers(11, places, CLUSTERS), self._noise.integers(12, places, STYLES)], axis=-1)

    def moment(self, users: I64, share: F64) -> I64:
        """The short-term interest (…, 2)."""
        places = users * PHASES + phase(share)
        return np.stack([self._noise.integers(14, places, CLUSTERS), self._noise.integers(15, places, STYLES)], axis=-1)

    def owned(self, users: I64) -> I64:
        """What the user buys (…, 2), and has then: a style beside the first interest, in its cluster."""
        first = self.interests(users, np.zeros(users.shape))[..., 0, :]
        other = (first[..., 1] + 1 + self._noise.integers(19, users, STYLES - 1)) % STYLES
        return np.stack([first[..., 0], other], axis=-1)

    def loyal(self, users: I64, cluster: I64) -> I64:
        """The brand of a cluster that the user returns to."""
        return self._noise.integers(20, users * CLUSTERS + cluster, BRANDS)

    def liked_vibe(self, users: I64, occasion: I64) -> I64:
        return self._noise.integers(24, users * OCCASIONS + occasion, VIBES)

    def affinity(self, users: I64, share: F64, ids: I64) -> F64:
        """The logit of a click (N): users and items by number, shares of the span."""
        state = self.state(ids, share)
        content = self.content(ids, state)
        content /= np.linalg.norm(content, axis=1, keepdims=True)
        interests = self._directions[tuple(np.moveaxis(self.interests(users, share), -1, 0))]  # (N, 3, V)
        long = np.einsum("nv,nkv->nk", content, interests).max(axis=1)
        short, owned = (
            np.einsum("nv,nv->n", content, self._directions[tuple(np.moveaxis(chosen, -1, 0))])
            for chosen in (self.moment(users, share), self.owned(users))
        )
        cluster = self.cluster(ids)
        logit: F64 = -4.4 + 7.0 * _sharp(long) + 5.0 * _sharp(short) - 6.0 * _sharp(owned)
        logit += 0.6 * self.quality(ids) + self._fashion[cluster, phase(share)]
        logit += 2.2 * _near(dear(self.price(ids, state)), self.budget(users))
        logit += 2.2 * _near(self.size(ids), self.user_size(users))
        logit += 1.0 * (self.brand(ids) == self.loyal(users, cluster))
        if self.bea:
            logit += self.bea * (self.vibe(ids) == self.liked_vibe(users, self.occasion(ids)))
        return logit

    def draw(self, stream: int, places: I64, wants: Wants) -> I64:
        """An item (…) of the cluster; of eight draws the one that fits best. Low numbers are drawn more often.

        ``style`` and ``brand`` below 0 do not matter; liked vibes count for users from 1 on.
        """
        tries = places[..., None] * _TRIES + np.arange(_TRIES)
        cluster = wants.cluster
        inside = (self.items - 1 - cluster) // CLUSTERS + 1  # items of the cluster, (…)
        rank = (np.maximum(inside, 1)[..., None] * self._noise.uniform(stream, tries) ** 2).astype(np.int64)
        ids = np.minimum(1 + cluster[..., None] + CLUSTERS * rank, self.items)
        state = self.state(ids, wants.share[..., None])
        fit = 2.0 * (self.style(ids, state) == wants.style[..., None]) + 3.0 * (
            self.brand(ids) == wants.brand[..., None]
        )
        if self.bea:
            liked = self.liked_vibe(wants.user[..., None], self.occasion(ids))
            fit += 4.0 * ((self.vibe(ids) == liked) & (wants.user[..., None] > 0))
        chosen: I64 = np.take_along_axis(ids, fit.argmax(axis=-1)[..., None], axis=-1)[..., 0]
        return chosen


def phase(share: F64) -> I64:
    """0 … PHASES - 1."""
    return np.minimum((share * PHASES).astype(np.int64), PHASES - 1)


def dear(price: F64) -> F64:
    """A price on the scale of budgets."""
    level: F64 = np.log(price / 20) / 0.7
    return level


def _place(number: I64, epoch: I64) -> I64:
    """The place of a number after so many changes; of none, the number."""
    return number + (epoch << 40)


def _sharp(cosine: F64) -> F64:
    """Of items in the style .7, beside it in the cluster .2, elsewhere nothing."""
    sharp: F64 = np.maximum(cosine, 0.0) ** 6
    return sharp


def _near(a: F64, b: F64) -> F64:
    """1 where both agree, 0 beyond the window."""
    near: F64 = np.exp(-(((a - b) / _WINDOW) ** 2) / 2)
    return near
