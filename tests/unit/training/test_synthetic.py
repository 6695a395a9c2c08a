"""The generator: same numbers whatever the size, valid lines, a truth that can be learned."""

from __future__ import annotations

from itertools import islice

import msgspec
import numpy as np
import pytest

from aif_stream.clock import monotonic_s
from aif_stream.domain.events import Behavior, UserUpserted, decode_item
from aif_stream.training.dataset import Split
from aif_stream.training.metrics import gauc
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
    began = monotonic_s()
    assert sum(1 for _ in islice(Synthetic(10, 1_000_000, 0).items(), 50_000)) == 50_000
    assert monotonic_s() - began < 1.0 * 5  # five times the promise: this machine is shared


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
    share = (np.repeat(table.time_ms, np.diff(table.first)) - (END_MS - SPAN_MS)) / SPAN_MS
    truth = world.affinity(user + 1, np.minimum((share * 6).astype(np.int64), 5), table.item + 1)
    assert gauc(user, truth, table.clicked).value > 0.75
    assert 0.05 < table.clicked.mean() < 0.4


@pytest.mark.parametrize("per_user", [1, 100])
def test_behaviors_of_a_user_are_oldest_first(per_user: int) -> None:
    lines = list(Synthetic(3, 200, 0).behaviors(per_user, end_ms=END_MS + 5))
    for user in (1, 2, 3):
        times = [line["event_time_ms"] for line in lines if line["user_id"] == user]
        assert len(times) == per_user
        assert times == sorted(times)
