"""SlotTable behaves as a dict, compiled or not, and readers beside a writer never see a wrong slot."""

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, best_level
from aif_stream.kernels.slots import ABSENT, SlotTable

WAYS = [Level.NUMPY, *([Level.PORTABLE] if best_level() > Level.NUMPY else [])]
MASK64 = 2**64 - 1


def keys_of(values: list[int]) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def slots_of(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


@pytest.fixture(params=WAYS, ids=lambda way: way.name)
def way(request: pytest.FixtureRequest) -> Level:
    level: Level = request.param
    return level


# Few distinct keys, the edges among them, so that steps meet each other.
some_keys = st.lists(st.sampled_from([0, 1, 2, 7, 2**32, 2**63, MASK64 - 1, MASK64, *range(100, 160)]), max_size=90)
steps = st.lists(st.tuples(st.sampled_from(["assign", "remove"]), some_keys, st.integers(0, 2**31 - 200)), max_size=12)


@pytest.mark.parametrize("level", WAYS, ids=lambda way: way.name)
@given(steps=steps)
@settings(deadline=None)
def test_any_sequence_of_steps_equals_a_dict(level: Level, steps: list[tuple[str, list[int], int]]) -> None:
    table, truth = SlotTable(level=level), dict[int, int]()
    for action, keys, base in steps:
        expected = []
        if action == "assign":
            slots = [base + at for at in range(len(keys))]
            for key, slot in zip(keys, slots, strict=True):
                expected.append(truth.get(key, ABSENT))
                truth[key] = slot
            previous = table.assign(keys_of(keys), slots_of(slots))
        else:
            expected = [truth.pop(key, ABSENT) for key in keys]
            previous = table.remove(keys_of(keys))
        assert previous.tolist() == expected
        assert len(table) == len(truth)
    asked = [0, 1, 3, MASK64, 2**63, *range(100, 160)]
    assert table.lookup(keys_of(asked)).tolist() == [truth.get(key, ABSENT) for key in asked]
    found, slots_found = table.items()
    assert dict(zip(found.tolist(), slots_found.tolist(), strict=True)) == truth


def test_a_table_grows_and_keeps_every_key(way: Level) -> None:
    table, keys = SlotTable(level=way), np.arange(20_000, dtype=np.uint64)
    for first in range(0, keys.size, 700):
        batch = keys[first : first + 700]
        assert (table.assign(batch, batch.astype(np.int32)) == ABSENT).all()
    assert len(table) == keys.size
    assert table.lookup(keys).tolist() == keys.tolist()
    assert (table.lookup(keys + np.uint64(20_000)) == ABSENT).all()
    assert table.capacity <= 2**16, "load stays above 0.3"


def test_a_table_of_the_expected_size_does_not_grow(way: Level) -> None:
    table = SlotTable(10_000, level=way)
    before = table.capacity
    table.assign(np.arange(10_000, dtype=np.uint64), np.arange(10_000, dtype=np.int32))
    assert table.capacity == before


def test_keys_that_come_and_go_do_not_grow_the_table(way: Level) -> None:
    table = SlotTable(1_000, level=way)
    for turn in range(60):
        keys = np.arange(turn * 500, turn * 500 + 500, dtype=np.uint64)
        table.assign(keys, np.arange(500, dtype=np.int32))
        assert (table.remove(keys) >= 0).all()
    assert len(table) == 0
    assert table.capacity <= 4_096


def test_keys_with_equal_homes_are_kept_apart(way: Level) -> None:
    """Keys chosen to start at one entry of the smallest table."""
    rng = np.random.default_rng(1)
    pool = rng.integers(0, 2**63, 20_000, dtype=np.uint64)
    mixed = (pool ^ (pool >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    same = pool[((mixed ^ (mixed >> np.uint64(32))) & np.uint64(63)) == 62][:30]
    assert same.size == 30
    table = SlotTable(level=way)
    table.assign(same, np.arange(30, dtype=np.int32))
    table.remove(same[::3])
    expected = np.where(np.arange(30) % 3 == 0, ABSENT, np.arange(30))
    assert table.lookup(same).tolist() == expected.tolist()


def test_both_ways_build_the_same_answers_from_each_others_hash() -> None:
    if len(WAYS) == 1:
        pytest.skip("no compiled library")
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 2**64, 5_000, dtype=np.uint64)
    tables = [SlotTable(level=way) for way in WAYS]
    for table in tables:
        table.assign(keys, np.arange(keys.size, dtype=np.int32))
    asked = np.concatenate([keys, rng.integers(0, 2**64, 5_000, dtype=np.uint64)])
    assert (tables[0].lookup(asked) == tables[1].lookup(asked)).all()
    assert tables[0].capacity == tables[1].capacity


def test_empty_batches_are_answered_empty(way: Level) -> None:
    table = SlotTable(level=way)
    assert table.lookup(keys_of([])).size == 0
    assert table.assign(keys_of([]), slots_of([])).size == 0
    assert table.remove(keys_of([])).size == 0


def test_lookup_fills_the_given_buffer(way: Level) -> None:
    table, out = SlotTable(level=way), np.full(3, 99, np.int32)
    table.assign(keys_of([5]), slots_of([8]))
    assert table.lookup(keys_of([5, 6, 5]), out) is out
    assert out.tolist() == [8, ABSENT, 8]


def test_wrong_arrays_are_refused(way: Level) -> None:
    table = SlotTable(level=way)
    with pytest.raises(TypeError, match="keys must be"):
        table.lookup(np.array([1], np.int64))
    with pytest.raises(TypeError, match="out must be"):
        table.lookup(keys_of([1]), np.empty(2, np.int32))
    with pytest.raises(ValueError, match="1 keys with 2 slots"):
        table.assign(keys_of([1]), slots_of([1, 2]))
    with pytest.raises(ValueError, match="negative"):
        table.assign(keys_of([1]), slots_of([-1]))
    assert len(table) == 0


@pytest.fixture
def rapid_switches() -> Iterator[None]:
    """Threads take turns every 10 µs, so that the numpy twin is interrupted between its steps."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("rapid_switches")
def test_readers_beside_a_writer_never_see_another_keys_slot(way: Level) -> None:
    """slot // GENERATIONS names the key; a writer adds, moves, removes and grows throughout."""
    generations, n_keys = 8, 6_000
    table, stop, wrong = SlotTable(level=way), threading.Event(), list[str]()
    scramble = np.uint64(0x9E3779B97F4A7C15)  # odd: distinct ids give distinct keys
    ids = np.arange(n_keys, dtype=np.int32)
    keys = ids.astype(np.uint64) * scramble
    fixed = 500  # the first ones stay present all the time

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            asked = rng.integers(0, n_keys, 257)
            slots = table.lookup(keys[asked])
            known = slots != ABSENT
            if (slots[known] // generations != ids[asked][known]).any() or not known[asked < fixed].all():
                wrong.append(f"keys {asked.tolist()} gave {slots.tolist()}")
                return

    table.assign(keys[:fixed], ids[:fixed] * generations)
    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for reader in readers:
        reader.start()
    rng = np.random.default_rng(9)
    for turn in range(250 if way is Level.NUMPY else 4_000):  # each a second or two
        # The table's reach widens turn by turn: several growths and rebuilds on the way.
        chosen = rng.permutation(min(n_keys, fixed + 30 * turn))[:400]
        table.assign(keys[chosen], ids[chosen] * generations + np.int32(turn % generations))
        gone = rng.integers(fixed, n_keys, 200)
        table.remove(keys[gone])
    stop.set()
    for reader in readers:
        reader.join(30)
    assert not wrong
    assert table.capacity >= 4_096
