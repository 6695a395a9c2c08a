"""A synthetic catalogue with planted truth, addressable: any item or user is computed from its number and the seed.

Items lie in clusters, and in styles within a cluster; the content vector is the style's centre plus noise. A user
has three long-term interests (cluster, style), one short-term interest that changes six times over the span, and a
taste of price. The chance of a click grows with the *best* match among the interests (a maximum, which a dot product
cannot express), the match with the interest of the moment, the item's quality, and the fit of its price; exposure
favours an item's low numbers within its cluster (popularity). Histories are drawn from the same interests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.events import BehaviorKind, ItemUpserted
from aif_stream.training.dataset import Behaviors, Dataset, Impressions, group_requests

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

CONTENT_WIDTH: Final = 32
CLUSTERS: Final = 64
STYLES: Final = 8
BRANDS: Final = 400
PHASES: Final = 6  # short-term interests over the span
SPAN_MS: Final = 30 * 86_400_000
END_MS: Final = 1_700_000_000_000  # of histories, where the caller names no other time
SHOWN: Final = 20  # candidates per training request
_CHUNK: Final = 4096
_CITIES: Final = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven")
_WORDS: Final = tuple(
    f"{a}{b}" for a in ("soft", "bold", "slim", "warm", "deep") for b in ("wood", "wool", "glow", "line")
)


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Item ids 1 … ``items``, user ids 1 … ``users``. The same seed gives the same items whatever the size."""

    users: int
    items_count: int
    seed: int = 0

    def items(self) -> Iterator[dict[str, Any]]:
        """The catalogue as item lines (contract), streamed: no more than a chunk in memory."""
        for first in range(1, self.items_count + 1, _CHUNK):
            ids = np.arange(first, min(first + _CHUNK, self.items_count + 1))
            cluster, style = self.cluster(ids), self.style(ids)
            columns = zip(
                ids.tolist(),
                cluster.tolist(),
                self._integers(3, ids, BRANDS // CLUSTERS).tolist(),
                self.price(ids).round(2).tolist(),
                style.tolist(),
                self._integers(5, ids, len(_WORDS)).tolist(),
                self.content(ids).round(4).tolist(),
                strict=True,
            )
            for item, group, brand, price, look, word, vector in columns:
                yield {
                    "item_id": item,
                    "category": f"c{group // 2}",
                    "attributes": {
                        "brand": f"b{group}-{brand}",
                        "price": price,
                        "tags": [_WORDS[word], _WORDS[(3 * group + look) % len(_WORDS)]],
                    },
                    "content_vector": vector,
                }

    def profiles(self) -> Iterator[dict[str, Any]]:
        """User lines: a city that half the time tells the region of the first interest, an age, a budget."""
        for first in range(1, self.users + 1, _CHUNK):
            ids = np.arange(first, min(first + _CHUNK, self.users + 1))
            region = self._interests(ids)[:, 0, 0] // (CLUSTERS // len(_CITIES))
            city = np.where(self._uniform(21, ids) < 0.5, region, self._integers(22, ids, len(_CITIES)))
            age = 18 + self._integers(23, ids, 60)
            budget = np.clip(self.price_taste(ids) + 0.5 * self._normal(24, ids), -2, 2).round(2)
            for user, c, a, b in zip(ids.tolist(), city.tolist(), age.tolist(), budget.tolist(), strict=True):
                yield {"user_id": user, "attributes": {"city": _CITIES[c], "age": a, "budget": b}}

    def behaviors(self, per_user: int = 100, end_ms: int = END_MS) -> Iterator[dict[str, Any]]:
        """Behavior lines, user by user, oldest first: ``per_user`` clicks and stronger within 30 days before."""
        names = list(BehaviorKind)
        step = max(1, _CHUNK * 4 // max(per_user, 1))
        for first in range(1, self.users + 1, step):
            ids = np.arange(first, min(first + step, self.users + 1))
            item, time_ms, kind = self._history(ids, per_user, end_ms)
            for at, user in enumerate(ids.tolist()):
                for i, t, k in zip(item[at].tolist(), time_ms[at].tolist(), kind[at].tolist(), strict=True):
                    yield {"user_id": user, "item_id": i, "kind": names[k].value, "event_time_ms": t}

    def dataset(self, impressions: int, per_user: int = 100) -> Dataset:
        """Catalogue, histories and about ``impressions`` labelled impressions in the later half of the span."""
        name = f"synthetic:users={self.users},items={self.items_count},impressions={impressions},seed={self.seed}"
        users = np.arange(1, self.users + 1)
        item, time_ms, kind = self._history(users, per_user, END_MS)
        owner = np.repeat(users - 1, per_user)
        behaviors = Behaviors.sorted_by_user(owner, item.ravel() - 1, time_ms.ravel(), kind.ravel(), self.users)
        requests = max(1, impressions // SHOWN)
        # By chunks: the truth of a million impressions at once would take 2 GB.
        chunks = [self._impressions(f, min(f + _CHUNK, requests)) for f in range(0, requests, _CHUNK)]
        shown = Impressions(*(np.concatenate([getattr(c, name) for c in chunks]) for name in Impressions.__slots__))
        return Dataset(
            name=name,
            items=[ItemUpserted(**line) for line in self.items()],
            profiles=[line["attributes"] for line in self.profiles()],
            behaviors=behaviors,
            requests=group_requests(name, shown, behaviors),
        )

    # What items are: functions of their numbers.

    def cluster(self, ids: I64) -> I64:
        return (ids - 1) % CLUSTERS

    def style(self, ids: I64) -> I64:
        return self._integers(1, ids, STYLES)

    def quality(self, ids: I64) -> F64:
        return self._normal(2, ids)

    def price(self, ids: I64) -> F64:
        """Log-normal around 20, dearer in some clusters."""
        level: F64 = 20 * np.exp(0.6 * self._normal(4, ids) + 0.4 * np.sin(self.cluster(ids)))
        return level

    def content(self, ids: I64) -> F64:
        """(N) -> (N, V): the style's centre plus noise."""
        places = ids[:, None] * CONTENT_WIDTH + np.arange(CONTENT_WIDTH)
        return self._centres()[self.cluster(ids), self.style(ids)] + 0.35 * self._normal(6, places)

    # What users like.

    def price_taste(self, users: I64) -> F64:
        return self._normal(13, users)

    def affinity(self, users: I64, phase: I64, ids: I64) -> F64:
        """The planted logit of a click, (N): users and items by number, phase of the span 0 … PHASES - 1."""
        content = self.content(ids)
        content /= np.linalg.norm(content, axis=1, keepdims=True)
        centres = self._centres() / np.linalg.norm(self._centres(), axis=2, keepdims=True)
        interests = self._interests(users)  # (N, 3, 2)
        long = np.einsum("nv,nkv->nk", content, centres[interests[..., 0], interests[..., 1]]).max(axis=1)
        moment = self._moment(users, phase)
        short = np.einsum("nv,nv->n", content, centres[moment[:, 0], moment[:, 1]])
        dear = np.log(self.price(ids) / 20) / 0.7
        fit = -np.abs(dear - self.price_taste(users))
        logit: F64 = -2.4 + 4.0 * long**3 + 3.0 * short**3 + 0.7 * self.quality(ids) + 0.4 * fit
        return logit

    def _interests(self, users: I64) -> I64:
        """Three long-term interests (N, 3, 2): cluster and style."""
        places = users[:, None] * 3 + np.arange(3)
        return np.stack([self._integers(11, places, CLUSTERS), self._integers(12, places, STYLES)], axis=-1)

    def _moment(self, users: I64, phase: I64) -> I64:
        """The short-term interest of a phase (N, 2)."""
        places = users * PHASES + phase
        return np.stack([self._integers(14, places, CLUSTERS), self._integers(15, places, STYLES)], axis=-1)

    def _history(self, users: I64, per_user: int, end_ms: int) -> tuple[I64, I64, I64]:
        """Items, times and kinds, each (U, per_user), oldest first."""
        places = users[:, None] * 1_000_003 + np.arange(per_user)  # (U, n)
        share = (np.arange(per_user) + self._uniform(31, places)) / max(per_user, 1)
        phase = np.minimum((share * PHASES).astype(np.int64), PHASES - 1)
        owner = np.broadcast_to(users[:, None], places.shape)
        long = self._interests(users)[np.arange(len(users))[:, None], self._integers(32, places, 3)]
        moment = self._moment(owner.ravel(), phase.ravel()).reshape(*places.shape, 2)
        stray = np.stack([self._integers(33, places, CLUSTERS), self._integers(34, places, STYLES)], axis=-1)
        draw = self._uniform(35, places)[..., None]
        wanted = np.where(draw < 0.45, long, np.where(draw < 0.85, moment, stray))
        item = self._draw_items(36, places, wanted[..., 0], wanted[..., 1])
        time_ms = end_ms - SPAN_MS + (share * SPAN_MS).astype(np.int64)
        strength = self._uniform(37, places)
        kind = np.select([strength < 0.8, strength < 0.9, strength < 0.97], [1, 2, 3], 4)
        return item, np.sort(time_ms, axis=1), kind

    def _draw_items(self, stream: int, places: I64, cluster: I64, style: I64) -> I64:
        """An item of the cluster, of the style if one of eight draws has it; low numbers are drawn more often."""
        tries = places[..., None] * 8 + np.arange(8)
        inside = (self.items_count - 1 - cluster) // CLUSTERS + 1  # items of the cluster, (…)
        rank = (np.maximum(inside, 1)[..., None] * self._uniform(stream, tries) ** 2).astype(np.int64)
        ids = np.minimum(1 + cluster[..., None] + CLUSTERS * rank, self.items_count)
        fits = self.style(ids) == style[..., None]
        chosen: I64 = np.take_along_axis(ids, fits.argmax(axis=-1)[..., None], axis=-1)[..., 0]
        return chosen

    def _impressions(self, first: int, last: int) -> Impressions:
        """Requests of SHOWN candidates at times in the later half of the span; labels drawn from the truth."""
        number = np.arange(first, last)
        user = 1 + self._integers(41, number, self.users)
        share = 0.5 + 0.5 * self._uniform(42, number)
        phase = np.minimum((share * PHASES).astype(np.int64), PHASES - 1)
        places = number[:, None] * SHOWN + np.arange(SHOWN)
        owner, moments = (np.broadcast_to(column[:, None], places.shape) for column in (user, phase))
        long = self._interests(user)[np.arange(len(user))[:, None], self._integers(43, places, 3)]
        moment = self._moment(owner.ravel(), moments.ravel()).reshape(*places.shape, 2)
        stray = self._integers(44, places, CLUSTERS)
        draw = self._uniform(45, places)
        cluster = np.where(draw < 0.3, long[..., 0], np.where(draw < 0.5, moment[..., 0], stray))
        item = self._draw_items(46, places, cluster, self._integers(47, places, STYLES))
        chance = 1 / (1 + np.exp(-self.affinity(owner.ravel(), moments.ravel(), item.ravel())))
        time_ms = np.repeat(END_MS - SPAN_MS + (share * SPAN_MS).astype(np.int64), SHOWN)
        clicked = self._uniform(48, places.ravel()) < chance
        return Impressions(owner.ravel() - 1, item.ravel() - 1, time_ms, clicked, np.repeat(number, SHOWN))

    def _centres(self) -> F64:
        """(CLUSTERS, STYLES, V): the clusters' centres and, around each, its styles'."""
        random = np.random.default_rng([self.seed, 7])
        clusters = random.standard_normal((CLUSTERS, 1, CONTENT_WIDTH))
        return clusters + 0.7 * random.standard_normal((CLUSTERS, STYLES, CONTENT_WIDTH))

    def _bits(self, stream: int, places: I64) -> U64:
        """64 random bits per place: splitmix64 of (seed, stream, place)."""
        base = np.random.SeedSequence([self.seed, stream]).generate_state(1, np.uint64)[0]
        x = base + places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: U64 = x ^ (x >> np.uint64(31))
        return mixed

    def _uniform(self, stream: int, places: I64) -> F64:
        uniform: F64 = (self._bits(stream, places) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return uniform

    def _integers(self, stream: int, places: I64, below: int) -> I64:
        return (self._uniform(stream, places) * below).astype(np.int64)

    def _normal(self, stream: int, places: I64) -> F64:
        """Near enough: the sum of four 16-bit uniforms of one hash, scaled to deviation 1."""
        bits = self._bits(stream, places)
        total = sum(((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF)).astype(np.float64) for part in range(4))
        normal: F64 = (np.asarray(total) / 65535.0 - 2.0) * np.sqrt(3.0)
        return normal
