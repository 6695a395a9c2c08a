"""All items as arrays: key, category, content vector, popularity, and the order of the newest event.

An item has one position for ever; a removed one keeps it (with its order, so that a late older event cannot
revive it). Letters: N positions, V content width, B positions of a batch.

One thread writes (``apply_items``, ``apply_popularity``); others read through ``vectors_of`` and friends, whose
arrays are replaced, never resized in place. A read beside a write may see a half-written vector: for naming
candidates that is harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aif_stream.bus.events import ItemEvent
from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.ids import HASHED_BIT, Keys, canonical_id, is_hashed
from aif_stream.kernels.slots import SlotTable

Positions = NDArray[np.int32]
Vectors = NDArray[np.float32]

_FIRST_CAPACITY: Final = 1024
NO_CATEGORY: Final = -1


@dataclass(slots=True)
class _Columns:
    """(N) each; ``vectors`` (N, V)."""

    keys: Keys
    event_time_ms: NDArray[np.int64]
    offset: NDArray[np.int64]
    category: NDArray[np.int32]
    alive: NDArray[np.bool_]
    has_vector: NDArray[np.bool_]
    popularity: NDArray[np.float32]
    changed_in: NDArray[np.int32]
    vectors: Vectors


class Catalogue:
    """See the module. ``generation`` numbers snapshots of the vectors: ``changed_in`` > g means changed since g."""

    def __init__(self) -> None:
        self._columns = _columns(_FIRST_CAPACITY, 0)
        self._table = SlotTable(_FIRST_CAPACITY)
        self._names: dict[int, str] = {}
        self._categories: dict[str, int] = {}
        self._changed: list[Positions] = []
        self.size = 0
        self.alive = 0
        self.version = 0
        self.generation = 0
        self.width_mismatches = 0

    @property
    def width(self) -> int:
        """V, fixed by the first vector seen; 0 before."""
        width: int = self._columns.vectors.shape[1]
        return width

    @property
    def nbytes(self) -> int:
        """Bytes of the columns and the table."""
        columns = self._columns
        return sum(int(getattr(columns, name).nbytes) for name in columns.__slots__) + self._table.nbytes

    def apply_items(self, changes: Sequence[ItemEvent]) -> None:
        """Take a batch. Older events than the known one are ignored; equal ones are repeatable."""
        newest: dict[int, ItemEvent] = {}
        for change in changes:
            known = newest.get(change.key)
            if known is None or known.order <= change.order:
                newest[change.key] = change
        if not newest:
            return
        batch = list(newest.values())
        positions = self.positions_of(np.fromiter(newest, np.uint64, len(newest)), create=True)
        columns = self._columns
        times = np.array([change.order.event_time_ms for change in batch], np.int64)
        offsets = np.array([change.order.offset for change in batch], np.int64)
        known_times, known_offsets = columns.event_time_ms[positions], columns.offset[positions]
        wins = (times > known_times) | ((times == known_times) & (offsets >= known_offsets))
        chosen = np.flatnonzero(wins)
        columns.event_time_ms[positions[chosen]] = times[chosen]
        columns.offset[positions[chosen]] = offsets[chosen]
        self._write([batch[i] for i in chosen.tolist()], positions[chosen])

    def apply_popularity(self, item_keys: Keys, weights: NDArray[np.float32]) -> Positions:
        """Add weights (B) to items (B), known or not yet; returns their positions (B)."""
        positions = self.positions_of(item_keys, create=True)
        np.add.at(self._columns.popularity, positions, weights)
        self.version += 1
        return positions

    def positions_of(self, keys: Keys, *, create: bool = False) -> Positions:
        """Positions (B) of keys (B); unknown ones are -1, or get a new position."""
        positions = self._table.lookup(keys)
        if not create or not (positions < 0).any():
            return positions
        new = np.unique(keys[positions < 0])
        self._reserve(self.size + new.size)
        fresh = np.arange(self.size, self.size + new.size, dtype=np.int32)
        self._columns.keys[fresh] = new
        self._table.assign(new, fresh)
        self.size += int(new.size)
        return self._table.lookup(keys)

    def snapshot_vectors(self) -> tuple[int, Positions, Vectors]:
        """(generation, positions (n) of living items with a vector, their vectors (n, V)); call in the writing thread.

        What changes afterwards has a higher ``changed_in``.
        """
        columns = self._columns
        usable = columns.alive[: self.size] & columns.has_vector[: self.size]
        positions = np.flatnonzero(usable).astype(np.int32)
        generation = self.generation
        self.generation += 1
        return generation, positions, columns.vectors[positions]

    def changed_since(self, generation: int) -> Positions:
        """Positions (n) whose vector changed after that snapshot, removed ones included, without repetition."""
        if not self._changed:
            return np.empty(0, np.int32)
        positions = np.unique(np.concatenate(self._changed))
        positions = positions[self._columns.changed_in[positions] > generation]
        self._changed = [positions]
        return positions

    def is_changed(self, positions: NDArray[np.int64], generation: int) -> NDArray[np.bool_]:
        """Whether each position (B) changed after that snapshot."""
        changed: NDArray[np.bool_] = self._columns.changed_in[positions] > generation
        return changed

    def usable(self, positions: Positions) -> Positions:
        """Those of the positions (B) that live and have a vector."""
        columns = self._columns
        return positions[columns.alive[positions] & columns.has_vector[positions]]

    def vectors_of(self, positions: Positions) -> Vectors:
        """Unit vectors (B, V)."""
        return self._columns.vectors[positions]

    def keys_of(self, positions: NDArray[np.int32] | NDArray[np.int64]) -> Keys:
        """Keys (B)."""
        return self._columns.keys[positions]

    def categories_of(self, positions: Positions) -> NDArray[np.int32]:
        """Category codes (B), ``NO_CATEGORY`` for removed or not yet seen items."""
        return self._columns.category[positions]

    def popular(self) -> tuple[Positions, NDArray[np.int32]]:
        """Living positions (n), most popular first, newer first among equals, and their categories (n)."""
        columns = self._columns
        living = np.flatnonzero(columns.alive[: self.size]).astype(np.int32)
        times = columns.event_time_ms[living].astype(np.float64)
        oldest, newest = (times.min(), times.max()) if living.size else (0.0, 0.0)
        # Popularity counts in whole numbers, so a share below 1 only breaks ties.
        rank = columns.popularity[living] + (times - oldest) / (newest - oldest + 1.0) * 0.999
        living = living[np.argsort(-rank, kind="stable")]
        return living, columns.category[living]

    def names_of(self, keys: Keys) -> dict[int, str]:
        """Ids of the hashed keys among ``keys``."""
        if not self._names:
            return {}
        return {key: self._names[key] for key in keys[keys >= np.uint64(HASHED_BIT)].tolist() if key in self._names}

    def _write(self, batch: list[ItemEvent], positions: Positions) -> None:
        columns = self._columns
        was_alive = columns.alive[positions]
        is_alive = np.array([change.item is not None for change in batch], np.bool_)
        columns.category[positions] = [self._category(change) for change in batch]
        columns.alive[positions] = is_alive
        self.alive += int(is_alive.sum()) - int(was_alive.sum())
        self._names.update((change.key, change.id_text) for change in batch if is_hashed(change.key))
        self._write_vectors(batch, positions, revived=is_alive != was_alive)
        self.version += 1

    def _write_vectors(self, batch: list[ItemEvent], positions: Positions, revived: NDArray[np.bool_]) -> None:
        found = [self._vector(change.item) for change in batch]
        if not self.width:
            return
        columns = self._columns
        vectors = np.zeros((len(batch), self.width), np.float32)
        has_vector = np.zeros(len(batch), np.bool_)
        for i, vector in enumerate(found):
            if vector is not None:
                vectors[i], has_vector[i] = vector, True
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        # Most updates leave the content as it is; those do not make the neighbour index older.
        changed = revived | (has_vector != columns.has_vector[positions])
        changed |= (vectors != columns.vectors[positions]).any(axis=1)
        moved = positions[changed]
        columns.changed_in[moved] = self.generation
        columns.has_vector[positions] = has_vector
        columns.vectors[moved] = vectors[changed]
        if moved.size:
            self._changed.append(moved)

    def _vector(self, item: ItemUpserted | None) -> NDArray[np.float32] | None:
        """The item's vector; a zero, empty or differently wide one counts as none."""
        vector = None if item is None else item.content()
        if vector is None or not vector.size or not vector.any():
            return None
        if not self.width:
            self._columns.vectors = np.zeros((self._columns.keys.size, vector.size), np.float32)
        if vector.size != self.width:
            self.width_mismatches += 1
            return None
        return vector

    def _category(self, change: ItemEvent) -> int:
        if change.item is None:
            return NO_CATEGORY
        return self._categories.setdefault(canonical_id(change.item.category, "category"), len(self._categories))

    def _reserve(self, count: int) -> None:
        old = self._columns
        if count <= old.keys.size:
            return
        new = _columns(max(count, old.keys.size * 3 // 2), self.width)
        for name in old.__slots__:
            getattr(new, name)[: self.size] = getattr(old, name)[: self.size]
        self._columns = new


def _columns(capacity: int, width: int) -> _Columns:
    return _Columns(
        keys=np.zeros(capacity, np.uint64),
        event_time_ms=np.full(capacity, -1, np.int64),
        offset=np.full(capacity, -1, np.int64),
        category=np.full(capacity, NO_CATEGORY, np.int32),
        alive=np.zeros(capacity, np.bool_),
        has_vector=np.zeros(capacity, np.bool_),
        popularity=np.zeros(capacity, np.float32),
        changed_in=np.full(capacity, -1, np.int32),
        vectors=np.zeros((capacity, width), np.float32),
    )
