"""Scoring of joined parts, in slices that look at the deadline between them; top k; ages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.clock import monotonic_s
from aif_stream.domain.ids import Keys
from aif_stream.domain.row import TOMBSTONE, VALID, Rows
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion

# Rows per call of the model: small enough to stop within about 2 ms of the deadline, large enough that the fixed
# cost of a call (0.2 ms) does not count.
SLICE_ROWS: Final = 4_096


@dataclass(slots=True)
class Part:
    """Candidates joined together: keys (B), rows (B), found (B), scores f32 (B), -inf until scored.

    ``dropped`` (B): rows that the age policy takes out. ``done``: rows that scoring has reached.
    """

    keys: Keys
    rows: Rows
    found: NDArray[np.bool_]
    dropped: NDArray[np.bool_]
    scores: NDArray[np.float32]
    stale: int = 0
    recomputed: int = 0
    done: int = 0


def part_of(keys: Keys, rows: Rows, found: NDArray[np.bool_]) -> Part:
    """A part before scoring."""
    count = keys.size
    return Part(keys, rows, found, np.zeros(count, np.bool_), np.full(count, -np.inf, np.float32))


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
    while part.done < part.keys.size and monotonic_s() < due_s:
        end = part.done + SLICE_ROWS
        scores = model.score(user, part.rows[part.done : end])
        off = ~part.found[part.done : end] | part.dropped[part.done : end]
        scores[off] = -np.inf
        part.scores[part.done : end] = scores
        part.done = min(end, part.keys.size)


@dataclass(frozen=True, slots=True)
class Ranked:
    """Keys (k) and scores (k), best first; how many were scored; ages of the scored rows in ms (p50, max); the newest
    event time among the parts' rows."""

    keys: list[int]
    scores: list[float]
    scored: int
    age_p50_ms: float
    age_max_ms: float
    newest_event_ms: int


def rank(parts: list[Part], k: int, now_ms: int) -> Ranked:
    """Top k of all parts; equal scores in the order of their keys. Age: now − the time the row was computed."""
    parts = [part for part in parts if part.keys.size]
    if not parts:
        return Ranked([], [], 0, 0.0, 0.0, 0)
    keys = np.concatenate([part.keys for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    computed = np.concatenate([part.rows["computed_ms"] for part in parts])
    finite = np.isfinite(scores)
    scored = int(finite.sum())
    if not scored:
        return Ranked([], [], 0, 0.0, 0.0, 0)
    if scored < keys.size:
        keys, scores, computed = keys[finite], scores[finite], computed[finite]
    ages = np.maximum(now_ms - computed.astype(np.int64), 0)
    if k < scored:
        cut = np.partition(scores, scored - k)[scored - k]  # keep every equal of the last place: ties go by key
        kept = scores >= cut
        keys, scores = keys[kept], scores[kept]
    best = np.lexsort((keys, -scores))[:k]
    newest = max(int(part.rows["event_time_ms"].max()) for part in parts)
    age_p50_ms, age_max_ms = float(np.median(ages)), float(ages.max())
    return Ranked(keys[best].tolist(), scores[best].tolist(), scored, age_p50_ms, age_max_ms, newest)
