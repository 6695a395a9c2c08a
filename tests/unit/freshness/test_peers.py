from __future__ import annotations

import pytest

from aif_stream.bus.consuming import Partition
from aif_stream.domain.freshness import Presence
from aif_stream.freshness.peers import Peer, presence_of
from aif_stream.index.leases import Lease

GROUP = "aif.nearline"
P0 = Partition("aif.item-updates", 0)


def worker(presence: Presence, *partitions: int, group: str = GROUP) -> Peer:
    return Peer(Lease("w", presence is Presence.LIVE, 0, {"groups": {group: list(partitions)}}), presence)


LIVE, STUCK, GONE = Presence.LIVE, Presence.STUCK, Presence.GONE


@pytest.mark.parametrize(
    ("workers", "members", "expected"),
    [
        ([worker(LIVE, 0)], None, LIVE),
        ([worker(STUCK, 0)], 1, STUCK),
        ([worker(STUCK, 0)], 0, STUCK),
        ([worker(GONE, 0)], 1, GONE),
        ([worker(GONE, 0), worker(LIVE, 0)], 1, LIVE),
        ([worker(STUCK, 0), worker(LIVE, 1)], 2, STUCK),
        ([worker(STUCK, 0), worker(LIVE, 0, 1)], 1, LIVE),
        ([worker(GONE, 0), worker(LIVE, 1)], 2, GONE),
        ([worker(LIVE, 1)], 1, LIVE),
        ([], 1, LIVE),
        ([], 0, GONE),
        ([], None, GONE),
        ([worker(LIVE, 0, group="another")], 0, GONE),
    ],
)
def test_a_partition_is_as_well_as_the_best_of_those_who_hold_it(
    workers: list[Peer], members: int | None, expected: Presence
) -> None:
    assert presence_of(GROUP, P0, workers, members) is expected
