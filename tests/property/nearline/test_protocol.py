"""Roll-outs among crashes, rebalances, zombies and late events, in any order: the protocol of design §5 and §7.

The machine draws who acts next and how many outside effects they get done; ``protocol.py`` is the product's code.
Planted bugs show that it would notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from aif_stream.index.keys import versions_key
from aif_stream.index.scripts import script
from aif_stream.index.store import N2OStore
from aif_stream.index.wire import pack
from aif_stream.nearline import rollout
from aif_stream.settings import Settings
from tests.property.nearline.invariants import Broken
from tests.property.nearline.machine import machine
from tests.property.nearline.protocol import (
    Alter,
    Bench,
    World,
)

# Found is enough: shrinking costs more time than finding. An example takes 0.2 s.
BOUNDED = settings(
    max_examples=100,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
TO_FIND = settings(BOUNDED, max_examples=200, report_multiple_bugs=False)


def test_roll_outs_crashes_rebalances_and_late_events_in_any_order_keep_versions_closed_and_rows_true(
    bench: Bench,
) -> None:
    made = machine(bench)
    run_state_machine_as_test(made, settings=BOUNDED)
    # What the machine is for did happen.
    assert made.met["zombie in a batch"], made.met
    assert made.met["rests"], made.met
    assert made.met["retired"], made.met


class LateList(N2OStore):
    """Lists a version when it is told to, not when it is asked to."""

    async def add_version(self, version: str) -> None:
        """Not yet."""

    async def add_late(self, version: str) -> None:
        for bucket in range(self.buckets.count):
            for _ in range(15):  # it takes its time: longer than a rebuild of a bucket
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
    """Both go: with the second look a rebuild waits for the list, so no wrong row is there to be seen.

    Alone it shows only as workers that never finish, when the publisher dies in between: too rare for so few examples.
    """
    planted = machine(bench, rollout=TasksFirst, alter=staticmethod(without_the_second_look(bench)))
    with pytest.raises(Broken, match=r"2\.5"):
        run_state_machine_as_test(planted, settings=TO_FIND)


def without_the_fence(bench: Bench) -> Alter:
    """Planted: a worker whose partition is another's by now writes whatever versions it happens to bring."""
    brought = "local brought = {}\nfor i = 2, #ARGV, 2 do brought[#brought + 1] = ARGV[i] end\n"
    sha = planted_script(bench, "write_batch", "ipairs(call('SMEMBERS', KEYS[2]))", "ipairs(brought)", brought)

    def alter(world: World, worker: str, lane: str) -> Callable[[bytes], bytes]:
        def on_the_way(command: bytes) -> bytes:
            zombie = worker in world.workers and world.workers[worker].lanes[lane].consumer.is_zombie
            return command.replace(script("write_batch").sha, sha) if zombie else command

        return on_the_way

    return alter


def test_a_zombie_that_writes_without_reading_the_fence_is_found(bench: Bench) -> None:
    with pytest.raises(Broken, match=r"2\.5|came back"):
        run_state_machine_as_test(machine(bench, alter=staticmethod(without_the_fence(bench))), settings=TO_FIND)
