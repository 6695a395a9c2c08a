from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.online.pool import Pool

KEYS = st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=60)


def u64(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, dtype=np.uint64)


@given(st.integers(1, 50), st.lists(KEYS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_whatever_the_order_of_answers_keys_are_distinct_bounded_and_all_used_when_there_is_room(
    wanted: int, answers: list[list[int]], random: Random
) -> None:
    channels = tuple(f"c{i}" for i in range(len(answers)))
    pool = Pool(wanted, channels)
    order = list(zip(channels, answers, strict=True))
    random.shuffle(order)
    taken: list[int] = []
    given_out: dict[str, list[int]] = {}
    for channel, keys in order:
        given_out[channel] = keys[: pool.share_of(channel)]
        taken += pool.take(channel, u64(given_out[channel])).tolist()
    taken += pool.fill().tolist()
    everything = {key for keys in given_out.values() for key in keys}
    assert len(taken) == len(set(taken)) == pool.size
    assert set(taken) <= everything
    assert len(taken) <= wanted
    # The filler fills up: nothing is left over while there is room.
    assert len(taken) == min(wanted, len(everything))


def test_the_filler_leaves_the_shares_of_channels_that_are_still_out_and_fills_up_later() -> None:
    pool = Pool(9, ("a", "b", "popular"))
    assert (pool.share_of("a"), pool.share_of("popular")) == (3, 9)
    assert pool.take("popular", u64([1, 2, 3, 4, 5, 6, 7, 8, 9])).tolist() == [1, 2, 3]
    assert pool.take("a", u64([3, 20])).tolist() == [20]
    assert pool.take("b", u64([20, 4])).tolist() == [4]
    assert pool.fill().tolist() == [5, 6, 7, 8]
    assert pool.size == 9


def test_a_channel_that_failed_gives_its_share_to_the_filler() -> None:
    pool = Pool(4, ("a", "popular"))
    assert pool.take("popular", u64([1, 2, 3, 4])).tolist() == [1, 2]
    assert pool.fill().tolist() == [3, 4]


@given(KEYS, st.integers(1, 70))
def test_first_occurrences_are_taken_in_order(keys: list[int], wanted: int) -> None:
    assert Pool(wanted, ()).take("", u64(keys)).tolist() == list(dict.fromkeys(keys))[:wanted]
