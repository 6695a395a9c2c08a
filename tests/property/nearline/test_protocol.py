"""Roll-outs among crashes, rebalances, zombies and late events, in any order: the protocol of design §5 and §7.

The machine draws who acts next and how many outside effects they get done; ``protocol.py`` is the product's code.
A planted bug shows that it would notice.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from aif_stream.index.keys import versions_key
from aif_stream.index.scripts import script
from aif_stream.index.store import N2OStore
from aif_stream.index.wire import pack
from aif_stream.nearline import rollout
from aif_stream.settings import Settings
from tests.property.nearline.invariants import Broken
from tests.property.nearline.machine import BOUNDED, TO_FIND, Bench, machine
from tests.property.nearline.protocol import (
    Alter,
)


def test_roll_outs_crashes_rebalances_and_late_events_in_any_order_keep_versions_closed_and_rows_true(
    bench: Bench,
) -> None:
    made = machine(bench)
    run_state_machine_as_test(made, settings=BOUNDED)
    # What the machine is for did happen.
    assert made.met["zombie in a batch"], made.met
    assert made.met["rests"], made.met


class LateList(N2OStore):
    """Lists a version when it is told to, not when it is asked to."""

    async def add_version(self, version: str) -> None:
        """Not yet."""

    async def add_late(self, version: str) -> None:
        for bucket in range(self.buckets.count):
            for _ in range(5):  # it takes its time
                await self.versions()
            await self._redis.call("SADD", versions_key(bucket), version)


class TasksFirst(rollout.Rollout):
    """Planted: the tasks are published before the fence."""

    def __init__(self, settings: Settings, producer: Any, store: N2OStore, *more: Any) -> None:
        self._late = LateList(store._redis, store.buckets)
        super().__init__(settings, producer, self._late, *more)

    async def _give_out(self, version: str, buckets: Iterable[int]) -> None:
        await super()._give_out(version, buckets)
        await self._late.add_late(version)


def planted_script(bench: Bench, name: str, before: str, after: str, head: str = "") -> bytes:
    """The SHA of a script of the product with one expression replaced, known to Redis."""
    text = resources.files("aif_stream.index").joinpath(f"{name}.lua").read_text()
    assert text.count(before) == 1
    (sha,) = bench.stage.run(bench.redis.everywhere("SCRIPT", "LOAD", head + text.replace(before, after))).values()
    return bytes(sha)


def without_the_second_look(bench: Bench) -> Alter:
    """A rebuild that does not ask whether its bucket lists the version: the order of the steps alone counts."""
    listed = "return redis.error_reply('VERSIONUNLISTED ' .. ARGV[1])"
    sha = planted_script(bench, "write_rebuilt", listed, "return string.rep('\\0', count)")

    def on_the_way(command: bytes) -> bytes:
        return pack("PING") if b"SISMEMBER" in command else command.replace(script("write_rebuilt").sha, sha)

    return lambda *_: on_the_way


def test_tasks_that_are_published_before_the_fence_are_found(bench: Bench) -> None:
    planted = machine(bench, rollout=TasksFirst, alter=staticmethod(without_the_second_look(bench)))
    with pytest.raises(Broken, match=r"2\.5"):
        run_state_machine_as_test(planted, settings=TO_FIND)
