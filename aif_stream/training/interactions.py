"""A log of interactions of any size → impressions, labels, histories, requests. One set of rules for every loader.

1. Order in the file does not matter: each user's rows are sorted by time here.
2. Rows of one user and item, each at most 30 minutes after the one before, are one impression at the time of the first.
   It is clicked when any of them is more than an exposure.
3. Every row that is more than an exposure is a history entry at its own time.
4. A log without a single exposure knows no negatives: each impression gets four, drawn from what others clicked before
   its time (so by popularity, which alone then tells nothing), none of them clicked in the same request.
5. A request is a user's next 16 impressions, less where 30 minutes pass without one or a cut of the split lies
   between. Its history ends strictly before its first impression.
6. The cuts (80 %, 90 %) are by time, over a million rows drawn at random, over all of them where there are fewer.

Rows lie on disk by blocks of users; one block at a time is in memory. What stays: ids, catalogue, the sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.events import Attribute, ItemUpserted
from aif_stream.errors import TrainingDataError
from aif_stream.training.dataset import TEST_FROM, VALID_FROM, Behaviors, Dataset, Requests, Split, check_parts
from aif_stream.training.spill import Spill

I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

SESSION_MS: Final = 30 * 60_000  # the field's usual end of a session
PER_REQUEST: Final = 16
NEGATIVES: Final = 4
_SAMPLE: Final = 1_000_000
_USERS_PER_BLOCK: Final = 8192  # of a hundred rows each: 20 MB a block
_STEP_ROWS: Final = 200_000  # with their negatives and all that is sorted on the way: 100 MB
_ROW: Final = np.dtype([("user", "<i8"), ("item", "<i8"), ("time_ms", "<i8"), ("kind", "<i8")])


class Ids:
    """Names → 0, 1, 2 … in the order of their first sight."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def of(self, names: Sequence[str]) -> I64:
        known = self.known
        return np.fromiter((known.setdefault(name, len(known)) for name in names), dtype=np.int64, count=len(names))


class _Shown(NamedTuple):
    """Impressions of a block, by user, then time."""

    user: I64
    item: I64
    time_ms: I64
    clicked: Bools


class Interactions:
    """Takes rows in chunks; ``dataset`` ends it. Repeatable: the same rows give the same data set.

    A context manager, because rows lie on disk until it ends.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self._spill = Spill()
        self._exposures = 0
        self._blocks: set[int] = set()
        self._random = np.random.default_rng(0)
        self._sample = np.zeros(0, dtype=[("rank", "<f8"), ("item", "<i8"), ("time_ms", "<i8")])
        self._starts = [np.zeros(1, dtype=np.int64)]
        self._parts = np.zeros((len(Split), 2), dtype=np.int64)  # impressions, clicks
        self._behaviors = self._impressions = 0

    def __enter__(self) -> Interactions:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._spill.close()

    def add(self, user: I64, item: I64, time_ms: I64, kind: I64) -> None:
        """Rows (n): indices of user and item, ms, code of the behavior (0: exposure)."""
        rows = np.empty(len(user), dtype=_ROW)
        rows["user"], rows["item"], rows["time_ms"], rows["kind"] = user, item, time_ms, kind
        block = user // _USERS_PER_BLOCK
        for number in np.unique(block).tolist():
            self._spill.append(f"block{number}", rows[block == number])
            self._blocks.add(number)
        drawn = np.empty(len(user), dtype=self._sample.dtype)
        drawn["rank"], drawn["item"], drawn["time_ms"] = self._random.random(len(user)), item, time_ms
        sample = np.concatenate([self._sample, drawn])
        if len(sample) > _SAMPLE:
            sample = sample[np.argpartition(sample["rank"], _SAMPLE)[:_SAMPLE]]
        self._sample = sample
        self.rows += len(user)
        self._exposures += int((kind == 0).sum())

    def dataset(
        self,
        items: Sequence[ItemUpserted],
        profiles: Sequence[Mapping[str, Attribute] | None],
        notes: tuple[str, ...] = (),
    ) -> Dataset:
        """Sort, label, group and split. Raises ``TrainingDataError`` for a part that is empty or of one class."""
        if self.rows < 10:
            raise TrainingDataError(f"{self.name} has {self.rows} interactions", mend="at least ten are needed")
        sample = self._sample[np.argsort(self._sample["time_ms"], kind="stable")]
        cuts = sample["time_ms"][[int(len(sample) * share) for share in (VALID_FROM, TEST_FROM)]]
        for number in range((len(profiles) - 1) // _USERS_PER_BLOCK + 1):
            first = number * _USERS_PER_BLOCK
            rows = self._spill.take(f"block{number}", _ROW)
            rows = rows[np.lexsort([rows[name] for name in ("kind", "item", "time_ms", "user")])]
            counts = np.bincount(rows["user"] - first, minlength=min(_USERS_PER_BLOCK, len(profiles) - first))
            ends = np.cumsum(counts)
            low = 0
            while low < len(counts):  # as many users as fit a step, one at least
                begin = int(ends[low] - counts[low])
                high = max(low + 1, int(np.searchsorted(ends, begin + _STEP_ROWS, side="right")))
                self._block(rows[begin : ends[high - 1]], first + low, high - low, cuts, sample)
                low = high
        check_parts(self.name, self._parts)
        return Dataset(self.name, items, profiles, *self._tables(), notes)

    def _tables(self) -> tuple[Behaviors, Requests]:
        def column(name: str) -> I64:
            return self._spill.take(name, np.int64)

        behaviors = Behaviors(column("b.item"), column("b.time_ms"), column("b.kind"), np.concatenate(self._starts))
        first = np.concatenate([column("r.first"), [self._impressions]])
        requests = Requests(
            column("r.user"),
            column("r.time_ms"),
            column("r.split"),
            first,
            column("r.begin"),
            column("r.end"),
            column("i.item"),
            self._spill.take("i.clicked", np.bool_),
        )
        return behaviors, requests

    def _block(self, rows: NDArray[np.void], first: int, users: int, cuts: I64, sample: NDArray[np.void]) -> None:
        acted = rows[rows["kind"] > 0]
        for name in ("item", "time_ms", "kind"):
            self._spill.append(f"b.{name}", np.ascontiguousarray(acted[name]))
        counts = np.bincount(acted["user"] - first, minlength=users)
        starts = self._behaviors + np.cumsum(counts)
        begins = starts - counts
        self._starts.append(starts)
        shown = _impressions(rows)
        split = np.searchsorted(cuts, shown.time_ms, side="right")
        group = _requests(shown, split)
        heads = np.flatnonzero(np.diff(group, prepend=-1))
        user, time_ms = shown.user[heads], shown.time_ms[heads]
        # (user, time) as one sorted key: how many of the block's behaviors lie strictly before the request.
        before = _before(acted["user"], acted["time_ms"], user, time_ms)
        if not self._exposures:
            shown, group, split = self._with_negatives(shown, group, split, sample, first)
            heads = np.flatnonzero(np.diff(group, prepend=-1))
        columns = {
            "r.first": self._impressions + heads,
            "r.user": user,
            "r.time_ms": time_ms,
            "r.split": split[heads],
            "r.begin": begins[user - first],
            "r.end": self._behaviors + before,
            "i.item": shown.item,
            "i.clicked": shown.clicked,
        }
        for name, values in columns.items():
            self._spill.append(name, values)
        self._behaviors += len(acted)
        self._impressions += len(shown.item)
        self._parts[:, 0] += np.bincount(split, minlength=len(Split))
        self._parts[:, 1] += np.bincount(split[shown.clicked], minlength=len(Split))

    def _with_negatives(
        self, shown: _Shown, group: I64, split: I64, sample: NDArray[np.void], seed: int
    ) -> tuple[_Shown, I64, I64]:
        """Rule 4. The first impressions of the log have none: nothing was clicked before them."""
        random = np.random.default_rng([0, seed])
        known = np.repeat(np.searchsorted(sample["time_ms"], shown.time_ms, side="left"), NEGATIVES)
        of = np.repeat(np.arange(len(shown.item)), NEGATIVES)
        drawn = sample["item"][(random.random(len(of)) * known).astype(np.int64)]
        items = int(max(shown.item.max(initial=0), drawn.max(initial=0))) + 1
        keep = (known > 0) & ~np.isin(group[of] * items + drawn, group * items + shown.item)
        of, drawn = of[keep], drawn[keep]
        # Negatives lie after their positive: a stable sort by its place.
        order = np.argsort(np.concatenate([np.arange(len(shown.item)), of]), kind="stable")
        at = np.concatenate([np.arange(len(shown.item)), of])[order]
        item = np.concatenate([shown.item, drawn])[order]
        clicked = np.concatenate([shown.clicked, np.zeros(len(of), dtype=np.bool_)])[order]
        return _Shown(shown.user[at], item, shown.time_ms[at], clicked), group[at], split[at]


def _impressions(rows: NDArray[np.void]) -> _Shown:
    """Rule 2, rows by user, then time."""
    order = np.lexsort((rows["time_ms"], rows["item"], rows["user"]))
    user, item, time_ms = (rows[name][order] for name in ("user", "item", "time_ms"))
    new = np.ones(len(rows), dtype=np.bool_)
    new[1:] = (np.diff(user) != 0) | (np.diff(item) != 0) | (np.diff(time_ms) > SESSION_MS)
    heads = np.flatnonzero(new)
    clicked = np.maximum.reduceat(rows["kind"][order], heads) > 0 if len(heads) else np.zeros(0, dtype=np.bool_)
    user, item, time_ms = user[heads], item[heads], time_ms[heads]
    order = np.lexsort((item, time_ms, user))
    return _Shown(user[order], item[order], time_ms[order], clicked[order])


def _requests(shown: _Shown, split: I64) -> I64:
    """Rule 5: numbers of requests (n), rising."""
    session = np.ones(len(shown.user), dtype=np.bool_)
    session[1:] = (np.diff(shown.user) != 0) | (np.diff(shown.time_ms) > SESSION_MS) | (np.diff(split) != 0)
    heads = np.flatnonzero(session)
    place = np.arange(len(session)) - np.repeat(heads, np.diff(np.append(heads, len(session))))
    return np.cumsum(session | (place % PER_REQUEST == 0)) - 1


def _before(user: I64, time_ms: I64, asked_user: I64, asked_ms: I64) -> I64:
    """How many of the rows (sorted by user, then time) lie strictly before (user, time), in that order."""
    both = np.concatenate([time_ms, asked_ms])
    rank = np.searchsorted(np.unique(both), both)  # times as small numbers, so that user and time fit one integer
    width = len(both) + 1
    rows, asked = user * width + rank[: len(user)], asked_user * width + rank[len(user) :]
    return np.searchsorted(rows, asked, side="left")
