"""One shape for every data set: a catalogue, profiles, flat histories, and impressions grouped into requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.events import Attribute, ItemUpserted
from aif_stream.domain.history import ENTRY, KIND_BITS, History
from aif_stream.domain.ids import keys_of
from aif_stream.errors import TrainingDataError

I64 = NDArray[np.int64]
# Of the time span of all impressions (by count): the rest up to the first cut trains, then validates, then tests.
VALID_FROM: Final = 0.8
TEST_FROM: Final = 0.9
_TIME_BITS: Final = 42  # of milliseconds since the first one: 139 years, and 2^21 items beside it


class Split(IntEnum):
    TRAIN = 0
    VALID = 1
    TEST = 2


@dataclass(frozen=True, slots=True)
class Impressions:
    """N impressions: user and item (indices), when, clicked or not, and a number that groups them to requests."""

    user: I64
    item: I64
    time_ms: I64
    clicked: NDArray[np.bool_]
    group: I64


@dataclass(frozen=True, slots=True)
class Behaviors:
    """M history entries of all users, sorted by user, then time: user u has rows start[u] … start[u + 1]."""

    item: I64
    time_ms: I64
    kind: I64
    start: I64

    @classmethod
    def sorted_by_user(cls, user: I64, item: I64, time_ms: I64, kind: I64, users: int) -> Behaviors:
        order = np.lexsort((item, kind, time_ms, user))
        counts = np.bincount(user, minlength=users)
        start = np.concatenate([[0], np.cumsum(counts)])
        return cls(item[order], time_ms[order], kind[order], start)


@dataclass(frozen=True, slots=True)
class Requests:
    """R requests over impressions sorted by request: request r shows rows first[r] … first[r + 1].

    Its history is behaviors[begin[r]:end[r]]: the user's entries strictly before the request's first impression,
    so nothing that the request's labels brought about is known to it. A request lies in one split.
    """

    user: I64
    time_ms: I64
    split: I64
    first: I64  # (R + 1)
    begin: I64
    end: I64
    item: I64  # (N)
    clicked: NDArray[np.bool_]  # (N)

    def of(self, split: Split) -> I64:
        """Request numbers of a split, by time."""
        return np.flatnonzero(self.split == split)

    def shown(self, requests: I64) -> I64:
        """Impression rows of some requests, request by request."""
        if not len(requests):
            return np.zeros(0, dtype=np.int64)
        return np.concatenate([np.arange(self.first[r], self.first[r + 1]) for r in requests])


@dataclass(frozen=True, slots=True)
class ItemVersions:
    """What items were when: item i has the states start[i] … start[i + 1] - 1, oldest first, each from its time on.

    Every item has at least one state; before the first one's time that one holds.
    """

    states: Sequence[ItemUpserted]  # (S) full feature states, as events carry them
    time_ms: I64  # (S)
    start: I64  # (items + 1)

    def at(self, item: I64, time_ms: I64) -> I64:
        """States (N) of items (N) at times (N): what an index without delay would hold."""
        owner = np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))
        base = min(int(self.time_ms.min()), int(time_ms.min()) if len(time_ms) else 0)
        held = (owner << _TIME_BITS) | (self.time_ms - base)
        asked = (item << _TIME_BITS) | (time_ms - base)
        return np.maximum(np.searchsorted(held, asked, side="right") - 1, self.start[item])


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is trained on and judged by."""

    name: str
    items: Sequence[ItemUpserted]
    profiles: Sequence[Mapping[str, Attribute] | None]
    behaviors: Behaviors
    requests: Requests
    notes: tuple[str, ...] = ()  # what a reader of the run should know: rows left out and why
    versions: ItemVersions | None = None  # items that change over time; ``items`` then holds their newest states

    @property
    def states(self) -> Sequence[ItemUpserted]:
        """Every feature state of every item: the items themselves where none changes."""
        return self.items if self.versions is None else self.versions.states

    def states_at(self, item: I64, time_ms: I64 | int) -> I64:
        """States (N) of items (N) at times (N, or one for all): their indices in ``states``."""
        if self.versions is None:
            return item
        return self.versions.at(item, np.broadcast_to(np.asarray(time_ms, dtype=np.int64), item.shape))

    def history(self, request: int) -> tuple[History, I64]:
        """The history of a request as it is stored, and the indices of its items."""
        span = slice(self.requests.begin[request], self.requests.end[request])
        entries = np.zeros(span.stop - span.start, dtype=ENTRY)
        times, kind = self.behaviors.time_ms[span].astype(np.uint64), self.behaviors.kind[span].astype(np.uint64)
        entries["time_kind"] = (times << np.uint64(KIND_BITS)) | kind
        indices = self.behaviors.item[span]
        entries["key"] = keys_of(str(self.items[i].item_id) for i in indices)
        return entries, indices


def check_parts(name: str, parts: Iterable[Sequence[int]]) -> None:
    """(impressions, clicks) of each split. Raises ``TrainingDataError`` where one is empty or of one class."""
    for part, (shown, clicks) in zip(Split, parts, strict=True):
        if not 0 < clicks < shown:
            raise TrainingDataError(
                f"{name}: of {shown} impressions in the {part.name.lower()} part {clicks} are clicks",
                mend="both classes must occur in each part: give a longer time span",
            )


def group_requests(name: str, shown: Impressions, behaviors: Behaviors) -> Requests:
    """Split by time, then group. A group that a cut goes through is divided, so that no split sees past its end.

    Raises ``TrainingDataError`` where a split would be empty or of one class.
    """
    if len(shown.user) < 10:
        raise TrainingDataError(f"{name} has {len(shown.user)} impressions", mend="at least ten are needed")
    times = np.sort(shown.time_ms)
    cuts = [times[int(len(times) * share)] for share in (VALID_FROM, TEST_FROM)]
    split = np.searchsorted(cuts, shown.time_ms, side="right")
    check_parts(name, [(int((split == part).sum()), int(shown.clicked[split == part].sum())) for part in Split])
    order = np.lexsort((shown.time_ms, shown.group, split))
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (np.diff(shown.group[order]) != 0) | (np.diff(split[order]) != 0)
    heads = np.flatnonzero(new)
    user, time_ms = shown.user[order][heads], shown.time_ms[order][heads]
    begin = behaviors.start[user]
    end = begin + np.array(
        [
            np.searchsorted(behaviors.time_ms[low:high], time, side="left")
            for low, high, time in zip(begin, behaviors.start[user + 1], time_ms, strict=True)
        ],
        dtype=np.int64,
    )
    first = np.concatenate([heads, [len(order)]])
    return Requests(user, time_ms, split[order][heads], first, begin, end, shown.item[order], shown.clicked[order])
