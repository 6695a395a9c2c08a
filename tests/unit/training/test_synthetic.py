"""The generator: same numbers whatever the size, valid lines, a truth that can be learned."""

from __future__ import annotations

import time
from itertools import islice

import msgspec
import numpy as np
import pytest

from aif_stream.domain.events import Behavior, UserUpserted, decode_item
from aif_stream.training.checkpoint import data_fingerprint
from aif_stream.training.dataset import Split
from aif_stream.training.metrics import gauc
from aif_stream.training.sources import open_data
from aif_stream.training.synthetic import CONTENT_WIDTH, END_MS, SPAN_MS, Synthetic


def test_items_do_not_depend_on_the_size_of_the_catalogue_and_do_on_the_seed() -> None:
    small, large, other = (
        list(islice(Synthetic(10, n, seed).items(), 100)) for n, seed in ((100, 1), (9000, 1), (100, 2))
    )
    assert small == large
    assert small != other


def test_lines_pass_the_event_types() -> None:
    world = Synthetic(7, 300, 0)
    items = [decode_item(msgspec.json.encode(line)) for line in world.items()]
    assert [item.item_id for item in items] == list(range(1, 301))
    assert {len(item.content_vector or []) for item in items} == {CONTENT_WIDTH}
    users = [msgspec.convert(line, UserUpserted) for line in world.profiles()]
    assert [user.user_id for user in users] == list(range(1, 8))
    behaviors = [msgspec.convert(line, Behavior, strict=False) for line in world.behaviors(20)]
    assert len(behaviors) == 7 * 20
    assert all(1 <= int(b.item_id) <= 300 for b in behaviors)
    assert all(END_MS - SPAN_MS <= (b.event_time_ms or 0) <= END_MS for b in behaviors)
    assert all(b.kind.code >= 1 for b in behaviors)


def test_a_catalogue_smaller_than_the_clusters_is_drawn_within_its_bounds() -> None:
    assert {line["item_id"] for line in Synthetic(5, 3, 0).behaviors(30)} <= {1, 2, 3}


def test_a_million_items_would_stream_at_fifty_thousand_lines_a_second() -> None:
    began = time.process_time()  # CPU seconds: others on the machine do not count
    assert sum(1 for _ in islice(Synthetic(10, 1_000_000, 0).items(), 50_000)) == 50_000
    assert time.process_time() - began < 5.0  # five times the promise: machines differ


def test_histories_end_before_their_requests_and_a_request_lies_in_one_split() -> None:
    data = Synthetic(50, 500, 0).dataset(4000)
    table, behaviors = data.requests, data.behaviors
    for request in range(len(table.user)):
        user = table.user[request]
        assert behaviors.start[user] == table.begin[request] <= table.end[request] <= behaviors.start[user + 1]
        assert (behaviors.time_ms[table.begin[request] : table.end[request]] < table.time_ms[request]).all()
        rest = behaviors.time_ms[table.end[request] : behaviors.start[user + 1]]
        assert (rest >= table.time_ms[request]).all()
    ends = [table.time_ms[table.split == part] for part in Split]
    assert ends[0].max() < ends[1].min()
    assert ends[1].max() < ends[2].min()


def test_the_planted_truth_ranks_better_than_chance_by_far() -> None:
    world = Synthetic(100, 2000, 0)
    data = world.dataset(20_000)
    table = data.requests
    user = np.repeat(table.user, np.diff(table.first))
    share = share_of(np.repeat(table.time_ms, np.diff(table.first)))
    truth = world.truth.affinity(user + 1, share, table.item + 1)
    assert gauc(user, truth, table.clicked).value > 0.75
    assert 0.05 < table.clicked.mean() < 0.4


@pytest.mark.parametrize("per_user", [1, 100])
def test_behaviors_of_a_user_are_oldest_first(per_user: int) -> None:
    lines = list(Synthetic(3, 200, 0).behaviors(per_user, end_ms=END_MS + 5))
    for user in (1, 2, 3):
        times = [line["event_time_ms"] for line in lines if line["user_id"] == user]
        assert len(times) == per_user
        assert times == sorted(times)


def share_of(time_ms: np.ndarray) -> np.ndarray:
    return (time_ms - (END_MS - SPAN_MS)) / SPAN_MS


def test_items_change_as_often_as_asked_and_the_catalogue_holds_their_newest_states() -> None:
    world = Synthetic(20, 500, 0, updates=2)
    data = world.dataset(2000)
    assert data.versions is not None
    states = np.diff(data.versions.start)
    assert states.min() >= 1
    assert states.mean() == pytest.approx(3.0, abs=0.2)  # the first one and two changes
    ends = np.full(500, END_MS)
    newest = data.versions.at(np.arange(500), ends)
    for at, item in zip(newest.tolist(), data.items, strict=True):
        assert msgspec.structs.replace(data.versions.states[at], event_time_ms=None) == item
    lines = list(world.updates_by_time())
    times = [line["event_time_ms"] for line in lines]
    assert times == sorted(times)
    assert len(lines) == states.sum() - 500
    assert all(isinstance(decode_item(msgspec.json.encode(line)).item_id, int) for line in lines)


def test_without_updates_nothing_changes_and_without_vibes_no_line_names_them() -> None:
    world = Synthetic(10, 200, 0)
    assert list(world.updates_by_time()) == []
    assert world.dataset(2000).versions is None
    assert all("vibe" not in line["attributes"] for line in world.items())
    assert all("vibe" in line["attributes"] for line in Synthetic(10, 200, 0, bea=1).items())


def test_a_share_of_the_items_has_no_content_when_asked() -> None:
    lines = list(Synthetic(10, 2000, 0, bare=30).items())
    assert sum("content_vector" not in line for line in lines) / 2000 == pytest.approx(0.3, abs=0.04)


def test_drift_moves_long_term_interests_and_none_leaves_them() -> None:
    users = np.arange(1, 2001)
    for drift, moved in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        truth = Synthetic(2000, 500, 0, drift=drift).truth
        before, after = (truth.interests(users, np.full(2000, share)) for share in (0.0, 0.999))
        assert (before != after).any(axis=-1).mean() == pytest.approx(moved, abs=0.03)


def test_what_was_bought_is_wanted_less() -> None:
    world = Synthetic(300, 2000, 0)
    data, truth = world.dataset(40_000), world.truth
    table = data.requests
    user = np.repeat(table.user, np.diff(table.first)) + 1
    item = table.item + 1
    owned = truth.owned(user)
    theirs = (truth.cluster(item) == owned[:, 0]) & (truth.style(item, 0 * item) == owned[:, 1])
    near = (truth.cluster(item) == owned[:, 0]) & ~theirs
    assert theirs.sum() > 100
    assert table.clicked[theirs].mean() < table.clicked[near].mean()
    bought = data.behaviors.kind == 4
    assert bought.mean() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("spec", ["bea=2,bare=25", "history=30,drift=1,updates=1.5"])
def test_knobs_are_part_of_the_name_and_give_the_data_again(spec: str) -> None:
    data = open_data(f"synthetic:users=30,items=200,impressions=2000,seed=4,{spec}")
    assert data.name == f"synthetic:users=30,items=200,impressions=2000,seed=4,{spec}"
    assert data_fingerprint(open_data(data.name)) == data_fingerprint(data)
