"""The state machine: one operator, two workers, one server, and whoever draws what happens to them next."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aif_stream.nearline import retirement, rollout
from tests.property.nearline.invariants import Broken, Judge
from tests.property.nearline.protocol import (
    LANES,
    T0_MS,
    Alter,
    Bench,
    Worker,
)
from tests.property.nearline.stepping import Gate

VERSIONS = ("v1", "v2", "v3")
ITEMS = ("1", "2", "3", "ada")
IDLE_ROUNDS = 400
HANG_ROUNDS = 40  # a publish, then the two tasks of its rebuild
WAKING_STEPS = 4
ASKED = (None, "publish", "publish", "activate", "retire")
SEEDS = st.integers(0, 1 << 32)


class Protocol(RuleBasedStateMachine):
    """One operator, two workers, one server; made for a bench by ``machine``."""

    bench: Bench
    alter: Alter = staticmethod(lambda *_: None)
    rollout: type[rollout.Rollout] = rollout.Rollout
    met: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        stage = self.bench.stage
        self.world = self.bench.now = self.bench.world(alter=self.alter, rollout=self.rollout)
        self.judge = Judge(self.world)
        self.made = 0
        try:
            self._set_up()
        except BaseException:
            stage.run(self.world.end())
            raise

    def _set_up(self) -> None:
        """Two workers, four items, v1 answering."""
        stage = self.bench.stage
        stage.run(self.world.redis.everywhere("FLUSHALL"))
        stage.run(self.world.store.ensure_layout())
        for _ in range(2):
            stage.run(self.world.add_worker())
        names = list(self.world.workers)
        for group in self.world.groups.values():
            for partition in group.owner:
                group.give(partition, names[partition.number % 2])
        for worker in self.world.workers.values():
            self._rejoin(worker)
        for item in ITEMS:
            self._event(item, T0_MS, removed=False, times=1)
        self.world.operate(lambda r, _: r.publish(self.world.artefacts["v1"]))
        self._rest()
        self.world.operate(lambda _, a: a.activate("v1"))
        self._rest()

    @rule(item=st.sampled_from(ITEMS), late=st.integers(-2, 3), removed=st.integers(0, 4), times=st.integers(1, 2))
    def event(self, item: str, late: int, removed: int, times: int) -> None:
        """An update or removal, perhaps of long ago, perhaps twice."""
        self._event(item, T0_MS + self.made * 10 - max(0, late) * 25, removed=not removed, times=times)

    def _work(self, seed: int) -> None:
        """Actors (a lane of a worker, the operator) get on by some outside effects each, updates coming in between."""
        chance = random.Random(seed)  # a list of draws would leave no room for other rules in an example
        for _ in range(chance.randrange(1, 24)):
            gates = [gate for worker in self.world.workers.values() for gate in worker.gates.values()]
            gates.append(self.world.operator_gate)
            actor, pick = chance.randrange(len(gates) + 2), chance.randrange(3)
            if actor == len(gates):
                self._event(ITEMS[pick], T0_MS + self.made * 10, removed=False, times=1)
                continue
            if actor > len(gates):
                # Whoever does not hear of a rebalance does not hear of versions either.
                hearing = [worker for worker in self.world.workers.values() if not worker.is_zombie]
                self.bench.stage.run(chance.choice(hearing).follow() if hearing else asyncio.sleep(0))
                continue
            for _ in range(chance.randrange(1, 5)):
                self.bench.stage.run(_release(gates[actor], pick))
            self._check()

    # A third of all rules that are drawn.
    work = rule(seed=SEEDS)(_work)
    work_on = rule(seed=SEEDS)(_work)
    work_more = rule(seed=SEEDS)(_work)
    work_still = rule(seed=SEEDS)(_work)

    @rule(which=st.integers(0, 1), heir=st.booleans())
    def crash(self, which: int, heir: bool) -> None:
        """A worker is killed; the other one, or one that is started in its place, gets its partitions."""
        dead = list(self.world.workers.values())[which]
        self.met["crash in a batch"] += any(lane._flights for lane in dead.lanes.values())
        self.bench.stage.run(dead.crash())
        del self.world.workers[dead.name]
        born = self.bench.stage.run(self.world.add_worker())
        other = next(name for name in self.world.workers if name != born.name)
        for group in self.world.groups.values():
            for partition in group.owned_by(dead.name):
                group.give(partition, born.name if heir else other)
        self._rejoin(born)

    @rule(lane=st.sampled_from(LANES), number=st.integers(0, 1))
    def rebalance(self, lane: str, number: int) -> None:
        """A partition goes to the other worker. Who had it is a zombie until it is told."""
        group = self.world.groups[lane]
        partition = sorted(group.owner)[number]
        first, second = self.world.workers
        group.give(partition, second if group.owner[partition] == first else first)
        self._tell(group.owner[partition], lane)

    @rule(
        which=st.integers(0, 1),
        steps=st.integers(0, 6),
        lanes=st.sampled_from((LANES, LANES[:1], LANES[1:])),
        slow_heir=st.booleans(),
        asked=st.sampled_from(ASKED),
        version=st.sampled_from(VERSIONS),
    )
    def hang(
        self, which: int, steps: int, lanes: tuple[str, ...], slow_heir: bool, asked: str | None, version: str
    ) -> None:
        """A worker (or a lane of it) stands still, its partitions given away, while others finish what they can.

        It may have taken updates just before, and who inherits may be slow to begin with them. Then it wakes.
        """
        hung = list(self.world.workers.values())[which]
        other = next(worker for worker in self.world.workers.values() if worker is not hung)
        for item in ITEMS if steps else ():
            self._event(item, T0_MS + self.made * 10, removed=False, times=1)
        self._get_on([hung.gates[lane] for lane in lanes], steps)
        for lane in lanes:
            group = self.world.groups[lane]
            for partition in group.owner:
                group.give(partition, other.name)
            self._tell(other.name, lane)
        if asked is not None:
            self._ask(asked, version)
        still = {hung.gates[lane] for lane in lanes} | ({other.gates["items"]} if slow_heir else set())
        gates = [gate for worker in self.world.workers.values() for gate in worker.gates.values() if gate not in still]
        for _ in range(HANG_ROUNDS):
            if other.book.records != self.world.book().records:
                self.bench.stage.run(other.follow())
            self._get_on([*gates, self.world.operator_gate], 1)
        self._get_on([hung.gates[lane] for lane in lanes], WAKING_STEPS)

    @rule(which=st.integers(0, 1), lane=st.sampled_from(LANES))
    def told(self, which: int, lane: str) -> None:
        """A heartbeat answers: the next poll will begin with the rebalance."""
        self._tell(list(self.world.workers)[which], lane)

    @rule(which=st.integers(0, 1))
    def follow(self, which: int) -> None:
        """A worker hears what the topic of versions says by now."""
        self.bench.stage.run(list(self.world.workers.values())[which].follow())

    @rule(version=st.sampled_from(VERSIONS[1:]))
    def publish(self, version: str) -> None:
        self._ask("publish", version)

    @rule(version=st.sampled_from(VERSIONS))
    def activate(self, version: str) -> None:
        self._ask("activate", version)

    @rule()
    def roll_back(self) -> None:
        if not self.world.operating:
            self.world.operate(lambda _, a: a.rollback())

    @rule(version=st.sampled_from(VERSIONS))
    def retire(self, version: str) -> None:
        self._ask("retire", version)

    @rule()
    def operator_dies(self) -> None:
        if self.world.operator is not None:
            self.world.operator.cancel()
            self.bench.stage.run(self.bench.stage.settle())

    @rule()
    def serve(self) -> None:
        """The server reads both topics to their ends."""
        self.bench.stage.run(self.world.server.follow())

    @rule()
    def rest(self) -> None:
        """Everybody hears everything and finishes."""
        self._rest()

    @invariant()
    def holds(self) -> None:
        self._check()

    def teardown(self) -> None:
        try:
            self._rest()
        finally:
            self.bench.stage.run(self.world.end())

    def _event(self, item: str, time_ms: int, *, removed: bool, times: int) -> None:
        self.made += 1
        line = {"item_id": item, "category": ("tea", "books")[self.made % 2], "attributes": {"price": float(self.made)}}
        payload = None if removed else json.dumps({**line, "content_vector": [float(self.made % 7 - 3)] * 12}).encode()
        self.world.publish_event(item, time_ms, payload, times)

    def _ask(self, what: str, version: str) -> None:
        """The operator begins something, unless it still does something else."""
        if self.world.operating:
            return
        if what == "publish":
            self.world.operate(lambda r, _: r.publish(self.world.artefacts[version]))
        elif what == "activate":
            self.world.operate(lambda _, a: a.activate(version))
        else:
            self.world.operate(lambda *_: self._retire(version))

    def _get_on(self, gates: Sequence[Gate], steps: int) -> None:
        """So many effects of each, looked at after every round."""
        for _ in range(steps):
            for gate in gates:
                self.bench.stage.run(_release(gate, 0))
            self._check()

    async def _retire(self, version: str) -> None:
        await retirement.retire_version(self.bench.settings, version)
        self.judge.freed.add(version)
        self.met["retired"] += 1

    def _rejoin(self, worker: Worker) -> None:
        for lane in worker.lanes.values():
            lane.consumer.join()
        self.bench.stage.run(worker.start())

    def _tell(self, name: str, lane: str) -> None:
        self.world.workers[name].lanes[lane].consumer.told = True

    def _check(self) -> None:
        self.world.raise_failed()
        self.bench.stage.run(self.judge.check())
        self.met["zombie in a batch"] += any(
            lane.consumer.is_zombie and bool(lane._flights)
            for worker in self.world.workers.values()
            for lane in worker.lanes.values()
        )

    def _rest(self) -> None:
        """Everybody in turn until all is committed; the server last."""
        self.bench.stage.run(self._all_get_on())
        self.world.raise_failed()
        self.bench.stage.run(self.world.server.follow())
        self.bench.stage.run(self.judge.check_at_rest())
        self.met["rests"] += 1

    async def _all_get_on(self) -> None:
        for _ in range(IDLE_ROUNDS):
            for worker in self.world.workers.values():
                if worker.book.records != self.world.book().records:
                    await worker.follow()
                for lane in worker.lanes.values():
                    lane.consumer.told = True
            gates = [gate for worker in self.world.workers.values() for gate in worker.gates.values()]
            for gate in (*gates, self.world.operator_gate):
                await _release(gate, 0)
                await self.bench.stage.settle()
            if self._all_done():
                return
        raise Broken("the workers never finish: " + repr([gate.parked for gate in gates]))

    def _all_done(self) -> bool:
        lanes = [lane for worker in self.world.workers.values() for lane in worker.lanes.values()]
        committed = all(
            group.commits.get(partition, 0) == len(self.world.topics.logs[partition])
            for group in self.world.groups.values()
            for partition in group.owner
        )
        return committed and not self.world.operating and all(lane.consumer.empty for lane in lanes)


async def _release(gate: Gate, pick: int) -> None:
    gate.release(pick)


def machine(bench: Bench, **planted: Any) -> type[Protocol]:
    return type("Machine", (Protocol,), {"bench": bench, "met": Counter(), **planted})
