"""Redis Cluster: which node owns a key's slot, and what to do when it has moved.

Source: Redis Cluster specification, "MOVED Redirection" and "ASK redirection".
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import hiredis
from redis.crc import key_slot

from aif_stream.errors import IndexDenied, IndexRefused, IndexUnavailable
from aif_stream.index.link import Reply
from aif_stream.index.refusals import error_of
from aif_stream.index.wire import Address, Wire, pack

SLOTS: Final = 16384
# Redirections happen while slots migrate; more rounds than this mean that the nodes disagree.
_MAX_ROUNDS: Final = 5
Node = tuple[str, int]


class ClusterRoute:
    """Sends each command to the primary that owns its key. Commands of one key stay in order."""

    def __init__(self, seed: Address, timeout_s: float, greeting: Sequence[bytes]) -> None:
        if seed.db:
            raise IndexRefused(f"a Redis Cluster has database 0 alone, AIF_REDIS_URL names {seed.db}", mend="use /0")
        self._seed = seed
        self._timeout_s = timeout_s
        self._greeting = greeting
        self._wires: dict[Node, Wire] = {}
        self._owner: list[Node | None] = []
        self._learned = 0
        self._slot_of: dict[bytes, int] = {}

    @property
    def generation(self) -> int:
        """See ``connection.Route``."""
        return self._learned + sum(wire.links for wire in self._wires.values())

    def look_again(self) -> None:
        """See ``connection.Route``."""
        self._owner = []

    async def execute(self, commands: Sequence[bytes], keys: Sequence[bytes]) -> list[Reply]:
        """See ``connection.Route``."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(commands, keys)
        except TimeoutError:
            raise IndexUnavailable(
                f"the Redis Cluster at {self._seed} did not answer within {self._timeout_s:g} s",
                mend="look at its nodes",
            ) from None
        except IndexUnavailable:
            self.look_again()  # a failover may have moved the slots
            raise

    async def execute_everywhere(self, commands: Sequence[bytes]) -> dict[str, list[Reply]]:
        """See ``connection.Route``."""
        while not self._owner:
            await self._learn()
        nodes = sorted({node for node in self._owner if node is not None})
        try:
            replies = await asyncio.gather(*(self._wire(node).execute(commands) for node in nodes))
        except IndexUnavailable:
            self.look_again()
            raise
        return {f"{host}:{port}": found for (host, port), found in zip(nodes, replies, strict=True)}

    async def wires(self) -> list[Wire]:
        """See ``connection.Route``."""
        while not self._owner:
            await self._learn()
        return [self._wire(node) for node in sorted({node for node in self._owner if node is not None})]

    def close(self) -> None:
        for wire in self._wires.values():
            wire.close()

    async def _follow(self, commands: Sequence[bytes], keys: Sequence[bytes]) -> list[Reply]:
        replies: list[Reply] = [None] * len(commands)
        open_ = list(range(len(commands)))
        asked: dict[int, Node] = {}
        for _ in range(_MAX_ROUNDS):
            while not self._owner:  # others may want it learned again meanwhile
                await self._learn()
            await self._round(commands, keys, open_, asked, replies)
            open_, asked, moved = _redirected(open_, replies)
            if moved:
                self.look_again()
            if not moved and not asked:  # a TRYAGAIN is passed on: it takes as long as its slot migrates
                return replies
        raise IndexUnavailable(
            f"the Redis Cluster at {self._seed} sends a key in circles", mend="redis-cli --cluster check"
        )

    async def _round(
        self,
        commands: Sequence[bytes],
        keys: Sequence[bytes],
        open_: Sequence[int],
        asked: dict[int, Node],
        replies: list[Reply],
    ) -> None:
        """Send the open commands, each to its node, all nodes at once."""
        per_node: dict[Node, list[int]] = defaultdict(list)
        for i in open_:
            per_node[asked.get(i) or self._owner_of(keys[i])].append(i)

        async def send(node: Node, positions: list[int]) -> None:
            packed: list[bytes] = []
            for i in positions:
                packed += (pack("ASKING"), commands[i]) if i in asked else (commands[i],)
            answers = iter(await self._wire(node).execute(packed))
            for i in positions:
                if i in asked:
                    next(answers)
                replies[i] = next(answers)

        await asyncio.gather(*(send(node, positions) for node, positions in per_node.items()))

    def _owner_of(self, key: bytes) -> Node:
        slot = self._slot_of.get(key)
        if slot is None:
            if len(self._slot_of) > 100_000:  # user keys: many, and cheap to compute again
                self._slot_of.clear()
            slot = self._slot_of[key] = key_slot(key)
        owner = self._owner[slot]
        if owner is None:
            raise IndexUnavailable(f"no node of the Redis Cluster owns slot {slot}", mend="redis-cli --cluster fix")
        return owner

    def _wire(self, node: Node) -> Wire:
        if node not in self._wires:
            self._wires[node] = Wire(self._seed.at(*node), self._timeout_s, self._greeting)
        return self._wires[node]

    async def _learn(self) -> None:
        """Ask every known node for the map of slots and take the first answer: some of them may be gone."""
        seed = (self._seed.host, self._seed.port)
        tasks = [asyncio.create_task(self._ask_map(node)) for node in {seed, *self._wires}]
        failure = IndexUnavailable(f"no node of the Redis Cluster at {self._seed} answers")
        try:
            for answer in asyncio.as_completed(tasks):
                try:
                    self._owner = await answer
                    self._learned += 1
                    return
                except IndexUnavailable as error:
                    failure = error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise failure

    async def _ask_map(self, node: Node) -> list[Node | None]:
        """The slots as ``node`` knows them. One that is cut off from the others (``cluster_state:fail``) knows the map
        of before: ``IndexUnavailable``."""
        state, reply = await self._wire(node).execute([pack("CLUSTER", "INFO"), pack("CLUSTER", "SLOTS")])
        if isinstance(reply, hiredis.ReplyError):
            kind = error_of(reply, f"Redis at {self._seed}")
            if isinstance(kind, IndexUnavailable | IndexDenied):
                raise kind
            raise IndexRefused(f"Redis at {self._seed}: {reply}", mend="set AIF_REDIS_CLUSTER=false")
        if not isinstance(state, hiredis.ReplyError) and b"cluster_state:fail" in state:
            raise IndexUnavailable(f"{node[0]}:{node[1]} says cluster_state:fail", mend="redis-cli --cluster check")
        owner: list[Node | None] = [None] * SLOTS
        for first, last, (host, port, *_), *_replicas in reply:
            # An empty host means "the one you asked" (cluster specification, CLUSTER SLOTS).
            owner[first : last + 1] = [((host or node[0].encode()).decode(), port)] * (last - first + 1)
        return owner


def _redirected(open_: Sequence[int], replies: list[Reply]) -> tuple[list[int], dict[int, Node], bool]:
    """Which commands go again, where ASK sends them, and whether the map is out of date."""
    again: list[int] = []
    asked: dict[int, Node] = {}
    moved = False
    for i in open_:
        reply = replies[i]
        if not isinstance(reply, hiredis.ReplyError):
            continue
        kind, _, rest = str(reply).partition(" ")
        if kind == "MOVED":
            moved = True
            again.append(i)
        elif kind == "ASK":
            host, _, port = rest.rpartition(" ")[2].rpartition(":")
            asked[i] = (host, int(port))
            again.append(i)
    return again, asked, moved
