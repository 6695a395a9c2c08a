"""One item of one answer, made again from its facts: the same version, user and rows, and so the same score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.facts import Facts, FactsHead
from aif_stream.domain.history import ENTRY, History, times_ms
from aif_stream.domain.row import Rows
from aif_stream.errors import Unexplainable
from aif_stream.model.split import UserSide
from aif_stream.model.subsets import subset_scores
from aif_stream.model.version import ModelVersion

Bools = NDArray[np.bool_]

# Split and joint form agree to this, and CPUs of two kinds sum in other orders; on the same one the bits are the same.
TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Case:
    """``entries`` (n) and ``history_rows`` (n): what the user side used; ``rows`` (B): the answer's items, best first;
    ``at``: the one that is explained; ``cut`` (1 or 0): the best item that was left out; ``recomputed``: its score,
    computed now; ``whole``: the user side of the answer."""

    version: ModelVersion
    head: FactsHead
    entries: History
    newest: History
    history_rows: Rows
    rows: Rows
    cut: Rows
    at: int
    whole: UserSide
    recomputed: float

    @property
    def item_id(self) -> str:
        return self.head.items[self.at].item_id

    @property
    def given(self) -> float:
        """The score that the answer had."""
        return self.head.items[self.at].score

    @property
    def row(self) -> Rows:
        """The item's row (1)."""
        return self.rows[self.at : self.at + 1]

    def side(self, keep: Bools | None = None, *, profile: bool = True) -> UserSide:
        """The user as if only the entries ``keep`` (n) had ever happened, with or without profile."""
        entries, rows = self.entries, self.history_rows
        if keep is not None:
            entries, rows = entries[keep], rows[keep]
        return _side(self.version, self.head, entries, rows, self.newest, profile=profile)

    def without(self, places: Sequence[int]) -> UserSide:
        """The user without the entries at these places."""
        keep = np.ones(len(self.entries), np.bool_)
        keep[list(places)] = False
        return self.side(keep)

    def scores_without(self, sets: Sequence[Sequence[int]], rows: Rows) -> NDArray[np.float32]:
        """Logits f32 (R, B) of rows (B) for the user without the entries at each of these sets (R) of places: those of
        ``without`` and ``scores`` but for the order of sums (some 1e-6), at a fraction of their price."""
        keeps = np.ones((len(sets), len(self.entries)), np.bool_)
        for keep, places in zip(keeps, sets, strict=True):
            keep[list(places)] = False
        newest_ms = int(times_ms(self.newest)[0]) if len(self.newest) else None
        return subset_scores(
            self.version, self.head.attributes, self.entries, self.history_rows, keeps, rows, newest_ms=newest_ms
        )

    def scores(self, side: UserSide, rows: Rows) -> NDArray[np.float32]:
        """Logits f32 (B)."""
        return self.version.score(side, rows)


def open_case(version: ModelVersion, facts: Facts, item_id: str) -> Case:
    """Recompute the answer's score. Raises ``Unexplainable`` when the item is not in the answer, or when the score is
    not the one that was given."""
    head, dtype = facts.head, version.layout.dtype
    at = next((place for place, item in enumerate(head.items) if item.item_id == item_id), None)
    if at is None:
        raise Unexplainable(f"item {item_id} is not in the answer to request {head.request_id}")
    if head.row_bytes != dtype.itemsize:
        raise Unexplainable(f"rows of {head.row_bytes} bytes in the facts, {dtype.itemsize} in version {version.name}")
    history_rows = np.frombuffer(facts.history_rows, dtype)
    rows = np.frombuffer(facts.item_rows, dtype)
    whole = _side(version, head, facts.entries, history_rows, facts.newest, profile=True)
    recomputed = float(version.score(whole, rows[at : at + 1])[0])
    given = head.items[at].score
    if abs(recomputed - given) > TOLERANCE:
        raise Unexplainable(
            f"the score is not found again: {given:.6f} was given, the facts make {recomputed:.6f}",
            mend="rows of the history changed while the answer was made, or this CPU sums in another order",
        )
    count = len(head.items)
    return Case(
        version, head, facts.entries, facts.newest, history_rows, rows[:count], rows[count:], at, whole, recomputed
    )


def _side(
    version: ModelVersion, head: FactsHead, entries: History, rows: Rows, newest: History, *, profile: bool
) -> UserSide:
    found = np.ones(len(entries), np.bool_)
    if len(newest):  # a stored entry that could not be used: ages count from it all the same
        entries = np.concatenate([entries, newest]).astype(ENTRY, copy=False)
        rows = np.concatenate([rows, np.zeros(1, rows.dtype)])
        found = np.append(found, False)
    return version.user_side(head.attributes if profile else None, entries, rows, found)
