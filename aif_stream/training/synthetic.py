"""A synthetic catalogue with planted truth, addressable: any item or user is computed from its number and the seed.

training/planted.py says what is true; here it becomes event lines (``aif up``) and a data set (``aif train``). Users
show in their histories what they like (an interest of theirs, the interest of the moment, or neither) and what they
bought; exposure favours an item's low numbers within its cluster (popularity).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aif_stream.domain.events import BehaviorKind, ItemUpserted
from aif_stream.training.dataset import Behaviors, Dataset, Impressions, ItemVersions, group_requests
from aif_stream.training.noise import F64, I64, Noise
from aif_stream.training.planted import CLUSTERS, CONTENT_WIDTH, INTERESTS, STYLES, Planted, Wants

__all__ = ["CONTENT_WIDTH", "END_MS", "SHOWN", "SPAN_MS", "Synthetic"]

SPAN_MS: Final = 30 * 86_400_000
END_MS: Final = 1_700_000_000_000  # of histories, where the caller names no other time
SHOWN: Final = 20  # candidates per training request
_CHUNK: Final = 4096
_CITIES: Final = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven")
_WORDS: Final = tuple(
    f"{a}{b}" for a in ("soft", "bold", "slim", "warm", "deep") for b in ("wood", "wool", "glow", "line")
)
_BUYS: Final = 0.1  # share of a history


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Item ids 1 … ``items_count``, user ids 1 … ``users``. The same seed gives the same items whatever the size.

    The others are knobs of the truth (``Planted``).
    """

    users: int
    items_count: int
    seed: int = 0
    drift: float = 0.5
    updates: float = 0.0
    bea: float = 0.0
    bare: float = 0.0

    @property
    def truth(self) -> Planted:
        return Planted(self.items_count, self.seed, self.drift, self.updates, self.bea, self.bare)

    def items(self, share: float = 0.0) -> Iterator[dict[str, Any]]:
        """The catalogue at a share of the span as item lines (contract), streamed: one chunk in memory."""
        truth = self.truth
        for first in range(1, self.items_count + 1, _CHUNK):
            ids = np.arange(first, min(first + _CHUNK, self.items_count + 1))
            yield from _item_lines(truth, ids, truth.state(ids, share))

    def updates_by_time(self, end_ms: int = END_MS) -> Iterator[dict[str, Any]]:
        """What changes in items within the span, as item lines with ``event_time_ms``, oldest first."""
        truth, ids = self.truth, np.arange(1, self.items_count + 1)
        owner, share = truth.changes(ids)
        order = np.argsort(share, kind="stable")
        for at in range(0, len(order), _CHUNK):
            some = order[at : at + _CHUNK]
            changed = ids[owner[some]]
            times = _times_ms(share[some], end_ms)
            # Half a share's resolution later: at its very time a change has happened.
            lines = _item_lines(truth, changed, truth.state(changed, share[some] + 1e-12))
            for line, time_ms in zip(lines, times.tolist(), strict=True):
                yield line | {"event_time_ms": time_ms}

    def profiles(self) -> Iterator[dict[str, Any]]:
        """User lines: a city that half the time tells the region of the first interest, an age, a budget, a size."""
        truth, noise = self.truth, Noise(self.seed)
        for first in range(1, self.users + 1, _CHUNK):
            ids = np.arange(first, min(first + _CHUNK, self.users + 1))
            region = truth.interests(ids, np.zeros(len(ids)))[:, 0, 0] // (CLUSTERS // len(_CITIES))
            city = np.where(noise.uniform(21, ids) < 0.5, region, noise.integers(22, ids, len(_CITIES)))
            age = 18 + noise.integers(23, ids, 60)
            budget = np.clip(truth.budget(ids), -2, 2).round(2)
            size = truth.user_size(ids).round(2)
            columns = (column.tolist() for column in (ids, city, age, budget, size))
            for user, c, a, b, s in zip(*columns, strict=True):
                yield {"user_id": user, "attributes": {"city": _CITIES[c], "age": a, "budget": b, "size": s}}

    def behaviors(self, per_user: int = 100, end_ms: int = END_MS) -> Iterator[dict[str, Any]]:
        """Behavior lines, user by user, oldest first: ``per_user`` clicks and stronger within 30 days before."""
        names = list(BehaviorKind)
        step = max(1, _CHUNK * 4 // max(per_user, 1))
        truth = self.truth
        for first in range(1, self.users + 1, step):
            ids = np.arange(first, min(first + step, self.users + 1))
            item, share, kind = self._history(truth, ids, per_user)
            time_ms = _times_ms(share, end_ms)
            for at, user in enumerate(ids.tolist()):
                for i, t, k in zip(item[at].tolist(), time_ms[at].tolist(), kind[at].tolist(), strict=True):
                    yield {"user_id": user, "item_id": i, "kind": names[k].value, "event_time_ms": t}

    def dataset(self, impressions: int, per_user: int = 100, name: str = "synthetic") -> Dataset:
        """Catalogue, histories and about ``impressions`` labelled impressions in the later half of the span.

        Items that change are in it with their newest state, and in ``versions`` with all of them.
        """
        truth, users = self.truth, np.arange(1, self.users + 1)
        item, share, kind = self._history(truth, users, per_user)
        owner = np.repeat(users - 1, per_user)
        times = _times_ms(share, END_MS)
        behaviors = Behaviors.sorted_by_user(owner, item.ravel() - 1, times.ravel(), kind.ravel(), self.users)
        requests = max(1, impressions // SHOWN)
        # By chunks: the truth of a million impressions at once would take 2 GB.
        chunks = [self._impressions(truth, f, min(f + _CHUNK, requests)) for f in range(0, requests, _CHUNK)]
        shown = Impressions(*(np.concatenate([getattr(c, part) for c in chunks]) for part in Impressions.__slots__))
        return Dataset(
            name=name,
            items=[ItemUpserted(**line) for line in self.items(share=1.0)],
            profiles=[line["attributes"] for line in self.profiles()],
            behaviors=behaviors,
            requests=group_requests(name, shown, behaviors),
            versions=self._versions() if self.updates else None,
        )

    def _versions(self) -> ItemVersions:
        """Every state of every item; the first holds from the beginning of the span."""
        owner, share = self.truth.changes(np.arange(1, self.items_count + 1))
        states = [ItemUpserted(**line) for line in self.items()]
        states += [ItemUpserted(**line) for line in self.updates_by_time()]
        owner = np.concatenate([np.arange(self.items_count), owner[np.argsort(share, kind="stable")]])
        time_ms = np.concatenate([np.full(self.items_count, END_MS - SPAN_MS), _times_ms(np.sort(share), END_MS)])
        order = np.lexsort((time_ms, owner))
        start = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=self.items_count))])
        return ItemVersions([states[at] for at in order], time_ms[order], start)

    def _history(self, truth: Planted, users: I64, per_user: int) -> tuple[I64, F64, I64]:
        """Items, shares of the span and kinds, each (U, per_user), oldest first."""
        noise = Noise(self.seed)
        places = users[:, None] * 1_000_003 + np.arange(per_user)  # (U, n)
        share = np.sort((np.arange(per_user) + noise.uniform(31, places)) / max(per_user, 1), axis=1)
        owner = np.broadcast_to(users[:, None], places.shape)
        interests, which = truth.interests(owner, share), noise.integers(32, places, INTERESTS)
        long = np.take_along_axis(interests, which[..., None, None], axis=2)[..., 0, :]
        stray = np.stack([noise.integers(33, places, CLUSTERS), noise.integers(34, places, STYLES)], axis=-1)
        draw = noise.uniform(35, places)[..., None]
        wanted = np.where(draw < 0.45, long, np.where(draw < 0.85, truth.moment(owner, share), stray))
        bought = noise.uniform(37, places) < _BUYS
        wanted = np.where(bought[..., None], truth.owned(owner), wanted)
        cluster, style = wanted[..., 0], wanted[..., 1]
        # Half of it is led by the brand, the other half by the look.
        brand = np.where(noise.uniform(38, places) < 0.5, truth.loyal(owner, cluster), -1)
        item = truth.draw(36, places, Wants(cluster, style, brand, owner, share))
        strength = noise.uniform(39, places)
        kind = np.where(bought, 4, np.select([strength < 0.85, strength < 0.93], [1, 2], 3))
        return item, share, kind

    def _impressions(self, truth: Planted, first: int, last: int) -> Impressions:
        """Requests of SHOWN candidates at times in the later half of the span; labels drawn from the truth."""
        noise, number = Noise(self.seed), np.arange(first, last)
        user, when = 1 + noise.integers(41, number, self.users), 0.5 + 0.5 * noise.uniform(42, number)
        places = number[:, None] * SHOWN + np.arange(SHOWN)
        owner: I64 = np.broadcast_to(user[:, None], places.shape)
        share: F64 = np.broadcast_to(when[:, None], places.shape)
        which = noise.integers(43, places, INTERESTS)
        long = np.take_along_axis(truth.interests(owner, share), which[..., None, None], axis=2)[..., 0, 0]
        draw = noise.uniform(45, places)
        moment, owned, stray = truth.moment(owner, share), truth.owned(owner), noise.integers(44, places, CLUSTERS)
        cluster = np.select([draw < 0.3, draw < 0.5, draw < 0.6], [long, moment[..., 0], owned[..., 0]], stray)
        nobody = np.zeros_like(owner)
        wants = Wants(cluster, noise.integers(47, places, STYLES), nobody - 1, nobody, share)
        item = truth.draw(46, places, wants)
        chance = 1 / (1 + np.exp(-truth.affinity(owner.ravel(), share.ravel(), item.ravel())))
        time_ms = np.repeat(_times_ms(when, END_MS), SHOWN)
        clicked = noise.uniform(48, places.ravel()) < chance
        return Impressions(owner.ravel() - 1, item.ravel() - 1, time_ms, clicked, np.repeat(number, SHOWN))


def _times_ms(share: F64, end_ms: int) -> I64:
    return end_ms - SPAN_MS + (share * SPAN_MS).astype(np.int64)


def _item_lines(truth: Planted, ids: I64, state: I64) -> Iterator[dict[str, Any]]:
    """Items (N) after so many changes each."""
    cluster, style = truth.cluster(ids), truth.style(ids, state)
    columns = (
        ids,
        cluster,
        truth.brand(ids),
        truth.price(ids, state).round(2),
        truth.size(ids).round(2),
        style,
        truth.word(ids, len(_WORDS)),
        truth.occasion(ids),
        truth.vibe(ids),
        truth.is_bare(ids),
    )
    vectors = truth.content(ids, state).round(4).tolist()
    for row, vector in zip(zip(*(column.tolist() for column in columns), strict=True), vectors, strict=True):
        item, group, brand, price, size, look, word, occasion, vibe, bare = row
        attributes: dict[str, Any] = {
            "brand": f"b{group}-{brand}",
            "price": price,
            "size": size,
            "tags": [_WORDS[word], _WORDS[(3 * group + look) % len(_WORDS)]],
        }
        if truth.bea:
            attributes |= {"occasion": f"o{occasion}", "vibe": f"v{vibe}"}
        line: dict[str, Any] = {"item_id": item, "category": f"c{group // 2}", "attributes": attributes}
        yield line if bare else line | {"content_vector": vector}
