"""The rules of a log: any order of rows, sessions, labels, negatives, histories without leakage, bounded memory."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.domain.events import ItemUpserted
from aif_stream.errors import TrainingDataError
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.interactions import PER_REQUEST, SESSION_MS, Interactions

MINUTE = 60_000


def build(rows: np.ndarray, users: int, items: int, chunks: int = 1) -> Dataset:
    with Interactions("rows") as log:
        for part in np.array_split(rows, chunks):
            log.add(*part.T)
        return log.dataset([ItemUpserted(item_id=n, category="") for n in range(items)], [None] * users)


def random_rows(seed: int, count: int = 400, users: int = 7, items: int = 12, kinds: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    times = random.integers(0, 400, count) * 10 * MINUTE
    kind = random.integers(3 - kinds, 3, count)
    return np.stack([random.integers(0, users, count), random.integers(0, items, count), times, kind], axis=1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), kinds=st.sampled_from([2, 3]))
def test_a_history_ends_before_its_request_and_holds_all_before_it(seed: int, kinds: int) -> None:
    rows = random_rows(seed, kinds=kinds)
    data = build(rows, 7, 12, chunks=3)
    table = data.requests
    for request in range(len(table.user)):
        user, moment = table.user[request], table.time_ms[request]
        history, indices = data.history(request)
        mine = rows[(rows[:, 0] == user) & (rows[:, 3] > 0) & (rows[:, 2] < moment)]
        assert sorted(zip(history["time_kind"] >> np.uint64(3), indices, strict=True)) == sorted(
            (time, item) for _, item, time, _ in mine
        )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), kinds=st.sampled_from([2, 3]))
def test_no_split_sees_past_its_end(seed: int, kinds: int) -> None:
    table = build(random_rows(seed, kinds=kinds), 7, 12).requests
    ends = [table.time_ms[table.split == part] for part in Split]
    assert all(before.max() < after.min() for before, after in pairwise(ends))


def test_the_order_of_rows_changes_nothing() -> None:
    rows = random_rows(3)
    shuffled = rows[np.random.default_rng(1).permutation(len(rows))]
    first, again = build(rows, 7, 12), build(shuffled, 7, 12)
    for name in ("user", "time_ms", "split", "first", "begin", "end", "item", "clicked"):
        np.testing.assert_array_equal(getattr(first.requests, name), getattr(again.requests, name))
    np.testing.assert_array_equal(first.behaviors.item, again.behaviors.item)


def test_an_exposure_and_its_click_are_one_impression_and_a_late_click_is_another() -> None:
    rows = [(0, 0, 0, 0), (0, 0, MINUTE, 1), (0, 0, 2 * MINUTE, 4), (0, 0, 3 * MINUTE + SESSION_MS, 1), (0, 1, 0, 0)]
    filler = [(1, n % 3, n * 600 * MINUTE, n // 2 % 2) for n in range(1, 60)]
    data = build(np.array(rows + filler), 2, 3)
    mine = data.requests.user == 0
    shown = data.requests.shown(np.flatnonzero(mine))
    found = list(zip(data.requests.item[shown].tolist(), data.requests.clicked[shown].tolist(), strict=True))
    assert found == [(0, True), (1, False), (0, True)]
    assert mine.sum() == 2  # the half hour between them ends the request


def test_a_request_has_at_most_sixteen_impressions_of_one_user() -> None:
    rows = random_rows(5, count=3000)
    sizes = np.diff(build(rows, 7, 12).requests.first)
    assert sizes.max() == PER_REQUEST


def test_a_log_of_clicks_alone_gets_negatives_that_the_past_knew_and_the_request_did_not_click() -> None:
    rows = random_rows(2, count=2000, items=40, kinds=2)
    table = build(rows, 7, 40).requests
    known = {item: rows[rows[:, 1] == item, 2].min() for item in range(40)}
    assert 0.15 < table.clicked.mean() < 0.35
    for request in range(len(table.user)):
        shown = slice(table.first[request], table.first[request + 1])
        items, clicked = table.item[shown], table.clicked[shown]
        assert not set(items[~clicked]) & set(items[clicked])
        late = table.time_ms[request] + PER_REQUEST * SESSION_MS
        assert all(known[item] < late for item in items[~clicked])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 4), dtype=int), "has 0 interactions"),
        (np.array([(0, n % 3, n * 1000, 0) for n in range(50)]), "0 are clicks"),
    ],
)
def test_a_log_that_cannot_be_learned_from_is_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(TrainingDataError, match=message) as error:
        build(rows, 1, 3)
    assert error.value.mend


def test_users_of_one_class_and_without_history_stay_in_the_data() -> None:
    rows = [(n % 20, n % 5, n * SESSION_MS, (n // 20) % 2 if n % 20 else 0) for n in range(400)]
    data = build(np.array(rows), 20, 5)
    mine = data.requests.user == 0
    assert mine.any()
    assert (data.requests.begin[mine] == data.requests.end[mine]).all()


PEAK = """
import resource, sys
from pathlib import Path
from aif_stream.training.sources import open_data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = open_data("taobao:" + sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(data.behaviors.item))
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    peaks = []
    for count in (100_000, 800_000):
        path = tmp_path / f"{count}.csv"
        user, item = random.integers(0, 30_000, count), random.integers(0, 2000, count)
        with path.open("w") as file:
            file.writelines(
                f"{u},{i},{i % 50},pv,{t}\n"
                for u, i, t in zip(user, item, np.arange(count) + 1_511_600_000, strict=True)
            )
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True, timeout=120
        )
        peak, rows = map(int, done.stdout.split())
        assert rows == count
        peaks.append(peak / 1024)
    # Eight times the rows: 26 MB more for the sample that negatives and cuts are drawn from, and one block.
    assert peaks[1] < peaks[0] + 150, peaks
