"""The tier histogram: the definition, and every dispatch level equal to the twin bit by bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, best_level
from aif_stream.kernels.tiers import MAX_TIERS, tier_edges, tiers
from tests.precision import assert_close, sum_bound

LEVELS = [level for level in Level if level <= best_level()]
COMPILED = [level for level in LEVELS if level > Level.NUMPY]
BOUNDS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)


def signatures(rng: np.random.Generator, rows: int, bits: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (rows, bits // 8), dtype=np.uint8)


def by_definition(
    items: NDArray[np.uint8], history: NDArray[np.uint8], mask: NDArray[np.bool_], bounds: tuple[float, ...]
) -> list[list[float]]:
    """One pair at a time, in Python integers."""
    rows = []
    for item in items:
        counts = [0] * (len(bounds) + 1)
        for entry in history[mask]:
            differing = (int.from_bytes(item.tobytes()) ^ int.from_bytes(entry.tobytes())).bit_count()
            similarity = 1 - differing / (8 * item.size)
            counts[sum(similarity >= bound for bound in bounds)] += 1
        rows.append([float(np.float32(count) / np.float32(max(1, mask.sum()))) for count in counts])
    return rows


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("bits", [8, 64, 128, 256])
def test_shares_follow_the_definition(level: Level, bits: int) -> None:
    rng = np.random.default_rng(bits)
    items, history, mask = signatures(rng, 9, bits), signatures(rng, 40, bits), rng.random(40) < 0.7
    history[:9], history[9:12] = items, ~items[:3]  # equal ones and exact complements among them
    bounds = (0.25, 0.5, 0.625, 0.75)  # exact in binary: no rounding at a bound
    got = tiers(items, history, mask, tier_edges(bounds, bits), 5, level=level)
    assert got.tolist() == by_definition(items, history, mask, bounds)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    bits = draw(st.sampled_from([64, 128, 192, 256, 64, 8, 24, 72, 136, 248]))
    n_tiers = draw(st.one_of(st.integers(1, 9), st.integers(1, MAX_TIERS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    items = signatures(rng, draw(st.integers(0, 140)), bits)
    history = signatures(rng, draw(st.integers(0, 450)), bits)
    if draw(st.booleans()) and len(items) and len(history):  # far and near pairs: the extreme tiers
        n = min(len(items), len(history)) // 2
        history[:n], history[n : 2 * n] = items[:n], ~items[:n]
    edges = np.sort(rng.integers(0, n_tiers, bits + 1)).astype(np.uint8)
    if draw(st.booleans()):  # a narrow ramp anywhere, so that every edge position is met
        at = draw(st.integers(-2, bits + 2))
        edges = np.clip(np.arange(bits + 1) - at, 0, n_tiers - 1).astype(np.uint8)
    return {
        "sig_items": items,
        "sig_history": history,
        "history_mask": rng.random(len(history)) < draw(st.sampled_from([0.0, 0.5, 1.0])),
        "edges": edges,
        "n_tiers": n_tiers,
        "item_mask": draw(st.sampled_from([None, rng.random(len(items)) < 0.5])),
    }


@pytest.mark.parametrize("level", COMPILED, ids=lambda level: level.name)
@given(case=cases())
@settings(deadline=None, max_examples=150)
def test_every_level_equals_the_twin(level: Level, case: dict[str, object]) -> None:
    expected = tiers(**case, level=Level.NUMPY)  # type: ignore[arg-type]
    got = tiers(**case, level=level)  # type: ignore[arg-type]
    assert got.dtype == expected.dtype
    assert (got == expected).all()


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_shares_sum_to_one_and_masked_entries_do_not_count(level: Level) -> None:
    rng = np.random.default_rng(3)
    items, history, mask = signatures(rng, 70, 64), signatures(rng, 1_000, 64), rng.random(1_000) < 0.5
    edges = tier_edges(BOUNDS, 64)
    got = tiers(items, history, mask, edges, 8, level=level)
    assert_close(got.sum(axis=1), np.ones(70), sum_bound(8))
    history[~mask] = items[0]
    assert (tiers(items, history, mask, edges, 8, level=level) == got).all()


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_no_counted_history_or_no_content_gives_zeros(level: Level) -> None:
    rng = np.random.default_rng(4)
    items, history, edges = signatures(rng, 5, 64), signatures(rng, 6, 64), tier_edges(BOUNDS, 64)
    assert not tiers(items, history, np.zeros(6, bool), edges, 8, level=level).any()
    content = np.array([True, False, True, False, True])
    got = tiers(items, history, np.ones(6, bool), edges, 8, item_mask=content, level=level)
    assert (got.any(axis=1) == content).all()


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_fields_of_wider_rows_are_read_and_columns_of_a_wider_matrix_filled(level: Level) -> None:
    rng = np.random.default_rng(5)
    rows, history = rng.integers(0, 256, (100, 37), dtype=np.uint8), signatures(rng, 50, 64)
    wide, mask, edges = np.full((100, 20), -1, np.float32), np.ones(50, bool), tier_edges(BOUNDS, 64)
    got = tiers(rows[:, 5:13], history, mask, edges, 8, out=wide[:, 3:11], level=level)
    assert (got == tiers(rows[:, 5:13].copy(), history, mask, edges, 8, level=Level.NUMPY)).all()
    assert (wide[:, 3:11] == got).all()
    assert (wide[:, :3] == -1).all()
    assert (wide[:, 11:] == -1).all()


def test_a_similarity_equal_to_a_bound_lies_above_it() -> None:
    assert tier_edges((0.5, 0.75), 8).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="ascend"):
        tier_edges((0.5, 0.5), 8)


@pytest.mark.skipif(not COMPILED, reason="no compiled library")
def test_columns_that_are_not_adjacent_are_refused() -> None:
    items, mask, edges = np.zeros((2, 8), np.uint8), np.ones(2, bool), tier_edges(BOUNDS, 64)
    with pytest.raises(ValueError, match="adjacent"):
        tiers(items, items, mask, edges, 8, out=np.empty((8, 2), np.float32).T)


def test_wrong_input_is_refused_by_name() -> None:
    items, mask, edges = np.zeros((2, 8), np.uint8), np.ones(2, bool), tier_edges(BOUNDS, 64)
    with pytest.raises(ValueError, match="differ"):
        tiers(items, items[:, :4], mask, edges, 8)
    with pytest.raises(ValueError, match="mask"):
        tiers(items, items, mask[:1], edges, 8)
    with pytest.raises(ValueError, match="edges"):
        tiers(items, items, mask, edges[::-1], 8)
    with pytest.raises(ValueError, match="edges"):
        tiers(items, items, mask, edges, 7)
    with pytest.raises(ValueError, match="at most 256"):
        tiers(np.zeros((2, 33), np.uint8), np.zeros((2, 33), np.uint8), mask, np.zeros(265, np.uint8), 8)
    with pytest.raises(ValueError, match="out must be"):
        tiers(items, items, mask, edges, 8, out=np.empty((2, 7), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        tiers(items.view(np.int8), items, mask, edges, 8)
