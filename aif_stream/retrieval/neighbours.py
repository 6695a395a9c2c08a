"""Content-vector neighbours: a faiss index over a snapshot, and an exact search over what changed since.

faiss indexes cannot be changed while they are searched, and removal from an IVF list is slow. So the index is
never changed: hits whose vector changed since its snapshot are masked, the changed vectors are searched exactly
beside it, and a new index is built in a thread when those have become many.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from aif_stream.retrieval.catalogue import Catalogue, Positions, Vectors

# Below this an exact scan (10 queries x 50,000 x 32 numbers) takes about 2 ms and needs no training.
FLAT_LIMIT: Final = 50_000
# Rebuild when the exact part holds more than this and more than a tenth of the index: 4 ms more per query.
_CHANGED_LIMIT: Final = 2_000
_CHANGED_SHARE: Final = 0.1
# About 1,000 vectors per list at a million, 16 lists of them looked at: recall@100 above 0.9 on clustered data.
_LIST_LENGTH: Final = 1_000
_PROBES: Final = 16
# k-means needs about 40 samples per centroid (faiss warns below 39); more cost time and gain nothing here.
_SAMPLES_PER_LIST: Final = 40


@dataclass(frozen=True, slots=True)
class _Built:
    """One faiss index; its ids are places in ``positions`` (n)."""

    index: Any
    positions: Positions
    generation: int


@dataclass(frozen=True, slots=True)
class _Changed:
    """Living positions (n) changed since the index was built, and their vectors (n, V)."""

    positions: Positions
    vectors: Vectors


def build_index(positions: Positions, vectors: Vectors, generation: int, *, flat_limit: int = FLAT_LIMIT) -> _Built:
    """Exact below ``flat_limit``, IVF above. Deterministic. 1,000,000 x 32 takes about 10 s on one core."""
    faiss.omp_set_num_threads(1)
    count, width = vectors.shape
    index: Any = faiss.IndexFlatIP(width)
    if count >= flat_limit:
        lists = max(1, count // _LIST_LENGTH)
        index = faiss.IndexIVFFlat(index, width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = 1
        sample = np.random.default_rng(1).choice(count, min(count, lists * _SAMPLES_PER_LIST), replace=False)
        index.train(vectors[np.sort(sample)])
        index.nprobe = _PROBES
    step = 8_192  # adding in steps lets other threads have the processor in between
    for start in range(0, count, step):
        index.add(vectors[start : start + step])
        time.sleep(0)
    return _Built(index, positions, generation)


class Neighbours:
    """Searched from one thread, told of changes from another; both only swap references."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._built: _Built | None = None
        self._changed: _Changed | None = None

    @property
    def indexed(self) -> int:
        """Vectors in the faiss index."""
        return 0 if self._built is None else int(self._built.positions.size)

    def refresh(self) -> bool:
        """Take in what changed (in the catalogue's writing thread); True when a new index should be built."""
        generation = -1 if self._built is None else self._built.generation
        positions = self._catalogue.usable(self._catalogue.changed_since(generation))
        self._changed = _Changed(positions, self._catalogue.vectors_of(positions))
        return positions.size > max(_CHANGED_LIMIT, _CHANGED_SHARE * self.indexed)

    def take(self, built: _Built) -> None:
        """Swap in a new index and drop what it contains from the changed part."""
        self._built = built
        self.refresh()

    def search(self, queries: Vectors, k: int) -> NDArray[np.int64]:
        """queries (R, V), unit -> at most k distinct positions, best first by their best query."""
        built, changed = self._built, self._changed
        each = -(-k * 3 // (2 * len(queries)))  # half more than k in all: queries share neighbours
        found: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        if built is not None and built.positions.size:
            scores, places = built.index.search(queries, min(each, built.positions.size))
            hits = built.positions[places[places >= 0]].astype(np.int64)
            fresh = ~self._catalogue.is_changed(hits, built.generation)
            found.append((hits[fresh], scores[places >= 0][fresh]))
        if changed is not None and changed.positions.size:
            best = (changed.vectors @ queries.T).max(axis=1)
            found.append((changed.positions.astype(np.int64), best))
        if not found:
            return np.empty(0, np.int64)
        positions = np.concatenate([part for part, _ in found])
        order = np.argsort(-np.concatenate([part for _, part in found]), kind="stable")
        positions = positions[order]
        _, first = np.unique(positions, return_index=True)
        return positions[np.sort(first)][:k]
