"""The compiled scorer and its plain twin agree, on each dispatch path, for any version, user and batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aif_stream.domain.row import HAS_CONTENT, TOMBSTONE, Rows
from aif_stream.kernels import native
from aif_stream.kernels.native import Level, best_level
from aif_stream.kernels.score import PAD, ScoreKernel, Stored, padded
from aif_stream.kernels.slots import SlotTable
from aif_stream.model.compiled import why_not
from aif_stream.model.config import Kind
from aif_stream.model.split import UserSide, score_rows
from aif_stream.model.version import ModelVersion
from tests.model_builders import VARIANTS, make_history, make_items, small_config, small_version
from tests.precision import EPS_BF16, assert_close, rounding_bound, score_bound

LEVELS = [level for level in Level if Level.PORTABLE <= level <= best_level()]
# A product of read-out and item is the twin's alone (model/compiled.py says which and why).
ON_TWIN = [name for name, choices in VARIANTS.items() if why_not(small_config(**choices))]
FORMS = [(Kind.COLD, ""), *((Kind.AIF, name) for name in VARIANTS if name not in ON_TWIN)]
VERSIONS: dict[tuple[Kind, str], ModelVersion] = {}

pytestmark = pytest.mark.skipif(best_level() is Level.NUMPY, reason="no compiled library")


def version_of(kind: Kind, variant: str) -> ModelVersion:
    if (kind, variant) not in VERSIONS:
        VERSIONS[kind, variant] = small_version(kind, **VARIANTS[variant])
    return VERSIONS[kind, variant]


def kernel_of(version: ModelVersion) -> ScoreKernel:
    assert version._kernel is not None
    return version._kernel


def user_of(version: ModelVersion, entries: int, seed: int = 1) -> UserSide:
    seen = make_items(entries, seed=seed)
    rows = version.item_side(seen, version.layout.dtype).rows
    return version.user_side({"city": "rome"}, make_history(seen, seed), rows, np.ones(entries, np.bool_))


def rows_of(version: ModelVersion, count: int, seed: int = 2) -> Rows:
    return version.item_side(make_items(count, seed=seed), version.layout.dtype).rows


def twin(version: ModelVersion, user: UserSide, rows: Rows) -> np.ndarray:
    return score_rows(version.net, version._tiers, user, rows)


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    form=st.sampled_from(FORMS),
    count=st.integers(0, 200),
    entries=st.integers(0, 70),
    seed=st.integers(0, 50),
    breaking=st.lists(st.tuples(st.integers(0, 199), st.sampled_from(["flags", "category", "removed"])), max_size=5),
)
def test_kernel_equals_twin_for_any_version_user_and_batch(
    level: Level, form: tuple[Kind, str], count: int, entries: int, seed: int, breaking: list[tuple[int, str]]
) -> None:
    version = version_of(*form)
    rows, user = rows_of(version, count, seed), user_of(version, entries, seed)
    for at, what in breaking:
        if at >= count:
            continue
        if what == "category":
            rows["category"][at] = -1
        else:
            rows["flags"][at] = TOMBSTONE if what == "removed" else 0
    assert user.packed is not None
    scores = kernel_of(version).score(user.packed, rows, level=level)
    exact = twin(version, user, rows)
    assert_close(scores, exact, score_bound(version.config, exact))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("variant", ["", "all", "few bits"])
def test_a_score_has_the_same_bits_in_any_batch(level: Level, variant: str) -> None:
    version = version_of(Kind.AIF, variant)
    rows, user, kernel = rows_of(version, 300), user_of(version, 40), kernel_of(version)
    assert user.packed is not None
    whole = kernel.score(user.packed, rows, level=level)
    for cut in (1, 3, 63, 64, 65, 299):
        parts = [kernel.score(user.packed, part, level=level) for part in (rows[:cut], rows[cut:])]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.skipif(not native.has_bf16(), reason="this CPU has no AVX512_BF16")
@pytest.mark.parametrize("variant", ["", "all", "coded"])
def test_bf16_products_move_scores_by_their_rounding_only(variant: str) -> None:
    version = version_of(Kind.AIF, variant)
    rows, user, kernel = rows_of(version, 500), user_of(version, 40), kernel_of(version)
    assert user.packed is not None
    exact, rounded = (kernel.score(user.packed, rows, bf16=bf16) for bf16 in (False, True))
    valid = np.isfinite(exact)
    assert_close(rounded, exact, rounding_bound(exact, EPS_BF16))
    assert np.abs(rounded - exact)[valid].max() > 0


def test_values_that_the_version_does_not_know_count_as_none_and_read_no_foreign_memory() -> None:
    version = version_of(Kind.AIF, "all")
    rows, user = rows_of(version, 3), user_of(version, 40)
    strange = rows.copy()
    strange["category"], strange["key2"], strange["code"] = 2**31 - 1, -(2**31), 2**32 - 1
    none = rows.copy()
    none["category"], none["key2"] = -1, -1
    kernel = kernel_of(version)
    assert user.packed is not None
    found, expected = (kernel.score(user.packed, each) for each in (strange, none))
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 20  # only the code's row differs


def test_a_float32_layout_and_a_wrong_user_are_refused() -> None:
    version, other = version_of(Kind.AIF, ""), version_of(Kind.AIF, "coded")
    user = user_of(version, 10)
    assert user.packed is not None
    with pytest.raises(ValueError, match="layout"):
        kernel_of(version).score(user.packed, rows_of(other, 4))


def test_a_version_that_the_kernel_cannot_score_is_scored_by_the_twin() -> None:
    assert ON_TWIN == ["product"]
    version = version_of(Kind.AIF, "product")
    assert version._kernel is None
    rows, user = rows_of(version, 64), user_of(version, 20)  # whole blocks: nothing is filled up
    assert user.packed is None
    np.testing.assert_array_equal(version.score(user, rows), twin(version, user, rows))


def test_widths_are_filled_up_to_whole_vectors() -> None:
    assert [padded(n) for n in (1, PAD, PAD + 1)] == [PAD, PAD, 2 * PAD]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("hidden", "bits"), [(64, 64), (64, 24), (64, 256), (80, 64), (32, 40)])
def test_the_linear_term_is_the_twins_at_the_usual_width_and_at_others(level: Level, hidden: int, bits: int) -> None:
    version = small_version(hidden=hidden, signature_bits=bits)
    rows, user = rows_of(version, 150), user_of(version, 30)
    rows["flags"][::7] &= ~np.uint8(HAS_CONTENT)
    assert user.packed is not None
    found = kernel_of(version).score(user.packed, rows, level=level)
    exact = twin(version, user, rows)
    assert_close(found, exact, score_bound(version.config, exact))


@pytest.mark.parametrize("name", ["numpy", *(level.name.lower() for level in LEVELS)])
def test_a_level_forced_by_its_setting_is_what_runs(name: str) -> None:
    native.use_level(name)
    try:
        assert native.default_level().name.lower() == name
        version = small_version()
        assert (version._kernel is None) == (name == "numpy")
        rows, user = rows_of(version, 50), user_of(version, 20)
        exact = twin(version, user, rows)
        assert_close(version.score(user, rows), exact, score_bound(version.config, exact))
    finally:
        native.use_level("auto")


def test_a_side_weighs_what_its_arrays_do() -> None:
    version = version_of(Kind.AIF, "all")
    user = user_of(version, 40)
    assert user.packed is not None
    least = user.bag.nbytes + user.first.nbytes + user.signatures.nbytes + user.category_row.nbytes
    assert user.nbytes >= least + user.key2_row.nbytes + user.kinds.nbytes


def stored_of(rows: Rows, keys: np.ndarray) -> Stored:
    """Rows in an arena in another order than their keys', with a gap at its start."""
    slots = np.random.default_rng(7).permutation(len(rows)).astype(np.int32) + 1
    arena = np.zeros((len(rows) + 1, rows.dtype.itemsize), np.uint8)
    arena[slots] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    table = SlotTable(len(rows))
    table.assign(keys, slots)
    return Stored(table, arena)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("kind", "variant"), FORMS)
def test_rows_scored_where_they_lie_have_the_bits_of_gathered_rows(level: Level, kind: Kind, variant: str) -> None:
    version = version_of(kind, variant)
    user, rows = user_of(version, 40), rows_of(version, 150)
    rows["event_time_ms"], rows["computed_ms"] = np.arange(150) + 5, np.arange(150) + 900
    rows["flags"][17] |= TOMBSTONE
    keys = np.arange(150, dtype=np.uint64) * 3
    stored = stored_of(rows, keys)
    assert user.packed is not None
    asked = np.random.default_rng(8).permutation(keys)[:130]
    found = kernel_of(version).score_keys(user.packed, stored, asked, 9e9, stop_if_unknown=True, level=level)
    assert found is not None
    wanted = kernel_of(version).score(user.packed, rows[(asked // 3).astype(np.intp)], level=level)
    assert found.scores.tobytes() == wanted.tobytes()
    assert found.computed_ms.tolist() == rows["computed_ms"][(asked // 3).astype(np.intp)].tolist()
    assert (found.done, found.newest_ms) == (130, int(rows["event_time_ms"][(asked // 3).astype(np.intp)].max()))


def test_an_unknown_key_stops_the_call_or_is_left_out() -> None:
    version = version_of(*FORMS[-1])
    user, rows = user_of(version, 10), rows_of(version, 70)
    keys = np.arange(70, dtype=np.uint64)
    stored, asked = stored_of(rows, keys), np.append(keys, np.uint64(1 << 40))
    kernel = kernel_of(version)
    assert user.packed is not None
    assert kernel.score_keys(user.packed, stored, asked, 9e9, stop_if_unknown=True) is None
    found = kernel.score_keys(user.packed, stored, asked, 9e9, stop_if_unknown=False)
    assert found is not None
    assert found.scores[-1] == -np.inf
    assert found.computed_ms[-1] == 0
    assert found.scores[:-1].tobytes() == kernel.score(user.packed, rows).tobytes()


def test_past_the_deadline_nothing_is_scored_and_all_is_said() -> None:
    version = version_of(*FORMS[-1])
    user, rows = user_of(version, 10), rows_of(version, 70)
    keys = np.arange(70, dtype=np.uint64)
    assert user.packed is not None
    found = kernel_of(version).score_keys(user.packed, stored_of(rows, keys), keys, 0.0, stop_if_unknown=True)
    assert found is not None
    assert found.done == 0
    assert np.isneginf(found.scores).all()
    assert not found.computed_ms.any()
