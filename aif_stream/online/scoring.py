"""Scoring of joined parts, in slices that look at the deadline between them; top k; ages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.clock import monotonic_s
from aif_stream.domain.ids import Keys
from aif_stream.domain.request_log import Packed
from aif_stream.domain.row import TOMBSTONE, VALID, RowLayout, Rows, empty_rows
from aif_stream.kernels.ranking import best_of
from aif_stream.kernels.score import Scored
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion

# Rows per call of the model: small enough to stop within about 2 ms of the deadline, large enough that the fixed
# cost of a call (0.2 ms) does not count.
SLICE_ROWS: Final = 4_096


@dataclass(slots=True)
class Part:
    """Candidates joined together: keys (B), rows (B), found (B), scores f32 (B), -inf until scored.

    ``dropped`` (B): rows that the age policy takes out. ``done``: rows that scoring has reached. ``in_place``: scored
    where the rows lie, so ``rows``, ``found`` and ``dropped`` are empty; ``best`` (rising) are then the places of which
    ``best_rows`` are kept, if any are.
    """

    keys: Keys
    rows: Rows
    found: NDArray[np.bool_]
    dropped: NDArray[np.bool_]
    scores: NDArray[np.float32]
    stale: int = 0
    recomputed: int = 0
    done: int = 0
    in_place: Scored | None = None
    best: NDArray[np.intp] | None = None
    best_rows: Rows | None = None

    @property
    def computed_ms(self) -> NDArray[np.uint64]:
        """When each row was computed (B)."""
        return self.rows["computed_ms"] if self.in_place is None else self.in_place.computed_ms

    def row(self, place: int) -> np.void:
        """The row at a place; of a part scored in place only one of ``best``."""
        if self.best is None or self.best_rows is None:
            found: np.void = self.rows[place]
        else:
            found = self.best_rows[int(np.searchsorted(self.best, place))]
        return found

    @property
    def newest_event_ms(self) -> int:
        """The newest event among the rows."""
        return int(self.rows["event_time_ms"].max()) if self.in_place is None else self.in_place.newest_ms


def part_in_place(keys: Keys, scored: Scored, layout: RowLayout) -> Part:
    """A part that was joined and scored in one call."""
    none = np.empty(0, np.bool_)
    return Part(keys, empty_rows(layout, 0), none, none, scored.scores, done=scored.done, in_place=scored)


def part_of(keys: Keys, rows: Rows, found: NDArray[np.bool_]) -> Part:
    """A part before scoring."""
    count = keys.size
    return Part(keys, rows, found, np.zeros(count, np.bool_), np.full(count, -np.inf, np.float32))


def best_places(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Places of the ``count`` best scores, rising, and of all that equal the last of them; none that is -inf."""
    least = np.partition(scores, -count)[-count] if 0 < count < scores.size else np.float32(-np.inf)
    found: NDArray[np.intp] = np.flatnonzero((scores >= least) & (scores > -np.inf))
    return found


def usable(part: Part) -> NDArray[np.bool_]:
    """Rows (B) that the version can score: found, valid, not removed."""
    mask: NDArray[np.bool_] = part.found & ((part.rows["flags"] & (VALID | TOMBSTONE)) == VALID)
    return mask


def too_old(part: Part, now_ms: int, limit_s: float) -> NDArray[np.bool_]:
    """Usable rows (B) computed longer ago than the limit; none when the limit is 0."""
    if limit_s <= 0:
        return np.zeros(part.keys.size, np.bool_)
    mask: NDArray[np.bool_] = usable(part) & (part.rows["computed_ms"].astype(np.int64) < now_ms - limit_s * 1000.0)
    return mask


def score_part(model: ModelVersion, user: UserSide, part: Part, due_s: float) -> None:
    """Fill ``scores`` slice by slice until all are done or the deadline is past (monotonic seconds)."""
    while part.in_place is None and part.done < part.keys.size and monotonic_s() < due_s:
        # Somebody who was given up at a deadline may still be at work here: both write the same numbers.
        first = part.done
        end = first + SLICE_ROWS
        scores = model.score(user, part.rows[first:end])
        off = ~part.found[first:end] | part.dropped[first:end]
        scores[off] = -np.inf
        part.scores[first:end] = scores
        part.done = max(part.done, min(end, part.keys.size))


class Ranked(NamedTuple):
    """Keys (k) and scores (k), best first; how many were scored; ages of the scored rows in ms (p50, max); the newest
    event time among the parts' rows. ``packed``: candidates and these for the request log, if they were wanted."""

    keys: list[int]
    scores: list[float]
    scored: int
    age_p50_ms: float
    age_max_ms: float
    newest_event_ms: int
    packed: Packed | None = None


def rank(parts: list[Part], k: int, now_ms: int) -> Ranked:
    """Top k of all parts; equal scores in the order of their keys. Age: now − the time the row was computed."""
    parts = [part for part in parts if part.keys.size]
    if not parts:
        return Ranked([], [], 0, 0.0, 0.0, 0)
    keys = _whole([part.keys for part in parts])
    scores = _whole([part.scores for part in parts])
    best = best_of(scores, keys, _whole([part.computed_ms for part in parts]), k)
    if not best.scored:
        return Ranked([], [], 0, 0.0, 0.0, 0)
    ages = [float(max(now_ms - stamp, 0)) for stamp in (*best.middle, best.oldest)]
    newest = max(part.newest_event_ms for part in parts)
    ranked = keys[best.order].tolist(), scores[best.order].tolist()
    return Ranked(*ranked, best.scored, (ages[0] + ages[1]) / 2, ages[2], newest)


def _whole(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
