from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.retrieval.catalogue import Catalogue, Vectors
from aif_stream.retrieval.neighbours import Neighbours, build_index
from tests.precision import sum_bound
from tests.unit.retrieval.test_catalogue import event, removal

WIDTH = 6


def rebuilt(catalogue: Catalogue, neighbours: Neighbours, *, flat_limit: int = 1_000_000) -> None:
    generation, positions, vectors = catalogue.snapshot_vectors()
    neighbours.take(build_index(positions, vectors, generation, flat_limit=flat_limit))


def cosines(catalogue: Catalogue, queries: Vectors) -> dict[int, float]:
    """Every living item that has a vector: key -> its best cosine."""
    living, _ = catalogue.popular()
    usable = catalogue.usable(living)
    best = (catalogue.vectors_of(usable) @ queries.T).max(axis=1)
    return dict(zip(catalogue.keys_of(usable).tolist(), best.tolist(), strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_whatever_changed_since_the_index_was_built_one_query_finds_the_exact_neighbours(
    seed: int, rounds: int
) -> None:
    random = np.random.default_rng(seed)
    catalogue, neighbours, offset = Catalogue(), Neighbours(Catalogue()), 0
    neighbours = Neighbours(catalogue)

    def put(count: int) -> None:
        nonlocal offset
        batch = []
        for item in random.integers(0, 60, count).tolist():
            offset += 1
            vector = random.standard_normal(WIDTH).tolist()
            batch.append(
                removal(str(item), 1, offset) if random.random() < 0.3 else event(str(item), 1, offset, vector=vector)
            )
        catalogue.apply_items(batch)
        neighbours.refresh()

    put(80)
    for _ in range(rounds):
        rebuilt(catalogue, neighbours)
        put(25)
    queries = random.standard_normal((1, WIDTH)).astype(np.float32)
    queries /= np.linalg.norm(queries)
    # Hits that changed are masked, so an index of n may give fewer than k: ask for all there is.
    found = catalogue.keys_of(neighbours.search(queries, 100)).tolist()
    wanted = cosines(catalogue, queries)
    assert set(found) == set(wanted)
    falls = -np.diff([wanted[key] for key in found])
    assert (falls >= -sum_bound(WIDTH)).all()  # equal ones may change places


def test_several_queries_share_k_and_give_distinct_positions() -> None:
    random = np.random.default_rng(0)
    catalogue = Catalogue()
    catalogue.apply_items([event(str(i), 1, i, vector=random.standard_normal(WIDTH).tolist()) for i in range(500)])
    neighbours = Neighbours(catalogue)
    assert neighbours.refresh() is False
    rebuilt(catalogue, neighbours)
    queries = catalogue.vectors_of(np.array([1, 2, 3], np.int32))
    found = neighbours.search(queries, 30)
    assert len(found) == len(set(found.tolist())) == 30
    assert {1, 2, 3} == set(found[:3].tolist())


def test_the_inverted_lists_find_nearly_all_of_the_exact_neighbours_on_clustered_data() -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((40, WIDTH)) * 2
    vectors = (centres[random.integers(0, 40, 6000)] + random.standard_normal((6000, WIDTH)) * 0.3).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    built = build_index(np.arange(6000, dtype=np.int32), vectors, 0, flat_limit=1000)
    assert built.index.nlist == 6
    _, places = built.index.search(vectors[:20], 50)
    best = np.argsort(-(vectors[:20] @ vectors.T), axis=1)[:, :50]  # of equal ones any: they are no tenth of the fifty
    recall = np.mean([len(set(a) & set(b)) / 50 for a, b in zip(places.tolist(), best.tolist(), strict=True)])
    assert recall > 0.9


@pytest.mark.parametrize("changed", [1999, 2001])
def test_a_new_index_is_asked_for_when_much_has_changed(changed: int) -> None:
    catalogue = Catalogue()
    catalogue.apply_items([event(str(i), 1, i, vector=[float(i), 1.0]) for i in range(changed)])
    assert Neighbours(catalogue).refresh() is (changed > 2000)
