"""Workers, an operator and a server of one deployment: the product's own code, one outside effect at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from aif_stream.bus.consumer import GroupConsumer
from aif_stream.bus.dead_letters import DeadLetters
from aif_stream.bus.events import event_headers, item_from_record
from aif_stream.bus.producer import Producer
from aif_stream.bus.topics import ITEM_UPDATES, MODEL_UPDATES, N2O_ROWS, REBUILD_TASKS
from aif_stream.bus.versions import apply_record
from aif_stream.domain.events import EventType
from aif_stream.domain.order import Order
from aif_stream.domain.versions import VersionBook, VersionState
from aif_stream.errors import AifError
from aif_stream.index.changelog import decode_head
from aif_stream.index.connection import Redis
from aif_stream.index.keys import Buckets
from aif_stream.index.marks import MarkBook
from aif_stream.index.mirror import Mirror
from aif_stream.index.rebuilds import RebuildTally
from aif_stream.index.store import N2OStore
from aif_stream.model.version import ModelVersion
from aif_stream.nearline import row_process
from aif_stream.nearline.activation import Activation
from aif_stream.nearline.changes import ChangeLog
from aif_stream.nearline.items import ItemsWork
from aif_stream.nearline.lane import Lane
from aif_stream.nearline.rebuild import RebuildWork
from aif_stream.nearline.rollout import Rollout
from aif_stream.nearline.row_process import Computed, RowProcess
from aif_stream.nearline.versions import LoadedVersions
from aif_stream.settings import Settings
from tests.property.nearline.logs import Group, LogConsumer, LogProducer, LogReader, Topics
from tests.property.nearline.stepping import Gate, GatedRedis, Stage

BUCKETS: Final = Buckets(2)
LANES: Final = ("items", "rebuild")
TOPIC_OF: Final = {"items": ITEM_UPDATES, "rebuild": REBUILD_TASKS}
BATCH_OF: Final = {"items": 2, "rebuild": 1}
T0_MS: Final = 1_700_000_000_000
Alter = Callable[["World", str, str], Callable[[bytes], bytes] | None]
"""World, worker, lane -> what changes its commands on their way to Redis."""


class InlineRows(RowProcess):
    """The rebuild's computation without its process."""

    async def rows(self, artefact: Path, payloads: Sequence[bytes], orders: Sequence[Order]) -> Computed:
        return row_process._compute(artefact, list(payloads), list(orders))


class SteppedLane(Lane[Any, Any]):
    """The product's lane, its consumer being the world's and its pauses a gate."""

    def __init__(self, world: World, member: str, name: str, gate: Gate, **parts: Any) -> None:
        super().__init__(world.settings, group=name, topic=TOPIC_OF[name], batch_records=BATCH_OF[name], **parts)
        self.gate = gate
        self.consumer = LogConsumer(world.topics, world.groups[name], member, gate, self._on_revoked, self._on_assigned)

    def _join(self) -> GroupConsumer:
        return cast("GroupConsumer", self.consumer)

    async def _pause(self, backoff: Any, error: Exception) -> None:
        await self.gate.step("pause")


class Worker:
    """One ``aif nearline``: an items and a rebuild lane."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.gates = {lane: Gate() for lane in LANES}
        self.book = VersionBook()
        redis = {lane: world.gated(gate, name, lane) for lane, gate in self.gates.items()}
        producers = {lane: cast("Producer", LogProducer(world.topics, gate)) for lane, gate in self.gates.items()}
        stores = {lane: N2OStore(redis[lane], BUCKETS) for lane in LANES}
        self.versions = LoadedVersions(stores["items"])
        items = ItemsWork(stores["items"], self.versions, producers["items"], world.settings.max_ahead_ms)
        rebuild = RebuildWork(
            world.settings,
            store=stores["rebuild"],
            tally=RebuildTally(redis["rebuild"], BUCKETS.count),
            versions=self.versions,
            changes=ChangeLog(producers["rebuild"]),
            process=InlineRows(),
            live_lag_ms=lambda: 0.0,
        )
        letters = DeadLetters(world.settings, producers["items"])
        marks = MarkBook(redis["items"], ("cluster", "items"))
        works: dict[str, tuple[Any, MarkBook | None]] = {"items": (items, marks), "rebuild": (rebuild, None)}
        self.lanes = {
            lane: SteppedLane(world, name, lane, self.gates[lane], work=work, marks=mark, dead_letters=letters)
            for lane, (work, mark) in works.items()
        }
        self._world = world
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """As the role does: read what the topic says, then join."""
        await self.follow()
        stop = asyncio.Event()
        self.tasks = {name: asyncio.create_task(lane.run(stop)) for name, lane in self.lanes.items()}

    async def follow(self) -> None:
        """What the topic of versions says now."""
        self.book = self._world.book()
        await self.versions.follow(self.book)

    @property
    def is_zombie(self) -> bool:
        """Whether a partition that it holds is another's by now."""
        return any(lane.consumer.is_zombie for lane in self.lanes.values())

    async def crash(self) -> None:
        """kill -9: what waited at a gate was never done, and nobody hears of it."""
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


class Server:
    """A serving process as far as rows go: mirrors of what it pins, kept while they live."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.mirrors: dict[str, tuple[Mirror, LogReader]] = {}
        self.pinned: str | None = None

    async def follow(self) -> None:
        book = self._world.book()
        live = {record.version for record in book.live()}
        self.mirrors = {name: found for name, found in self.mirrors.items() if name in live}
        if book.active is not None and book.active not in self.mirrors:
            mirror = Mirror(self._world.models[book.active].layout, book.active, memory_mb=1)
            reader = LogReader(self._world.topics, N2O_ROWS)
            reader.seek(await reader.end_offsets())
            await mirror.load(self._world.store)
            self.mirrors[book.active] = (mirror, reader)
        self.pinned = book.active
        for mirror, reader in self.mirrors.values():
            await self._catch_up(mirror, reader)

    async def _catch_up(self, mirror: Mirror, reader: LogReader) -> None:
        """As ``online.mirror_feed`` does with one reader for all."""
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            for record in await reader.poll(64, 100):
                mirror.take(decode_head(record.headers), record.value or b"")


@dataclass
class World:
    """Kafka's and Redis' side, and everybody who acts on them."""

    stage: Stage
    settings: Settings
    redis: Redis
    models: Mapping[str, ModelVersion]
    artefacts: Mapping[str, Path]
    alter: Alter = lambda *_: None
    rollout: type[Rollout] = Rollout
    topics: Topics = field(default_factory=Topics)
    groups: dict[str, Group] = field(default_factory=lambda: {lane: Group(TOPIC_OF[lane]) for lane in LANES})
    workers: dict[str, Worker] = field(default_factory=dict)
    events: dict[tuple[str, Order], bytes | None] = field(default_factory=dict)
    operator: asyncio.Task[Any] | None = None
    born: int = 0

    def __post_init__(self) -> None:
        self.store = N2OStore(self.redis, BUCKETS)
        self.tally = RebuildTally(self.redis, BUCKETS.count)
        self.operator_gate = Gate()
        self.server = Server(self)

    def gated(self, gate: Gate, worker: str, lane: str) -> Redis:
        return GatedRedis(self.stage, self.redis, gate, self.alter(self, worker, lane))

    def book(self) -> VersionBook:
        """What the topic of versions says now."""
        book = VersionBook()
        for record in self.topics.of(MODEL_UPDATES)[0]:
            apply_record(book, record)
        return book

    async def add_worker(self) -> Worker:
        self.born += 1
        worker = Worker(self, f"w{self.born}")
        self.workers[worker.name] = worker
        return worker

    def publish_event(self, item: str, time_ms: int, payload: bytes | None, times: int = 1) -> None:
        """An update (``payload``) or a removal (None) in the log, perhaps twice: the same event, another offset."""
        kind = EventType.ITEM_UPSERTED if payload is not None else EventType.ITEM_REMOVED
        for _ in range(times):
            where = self.topics.append(ITEM_UPDATES, item.encode(), payload, event_headers(kind, "1", "test", time_ms))
            record = self.topics.of(ITEM_UPDATES)[where.partition][where.offset]
            event = item_from_record(record, self.settings.max_ahead_ms)
            self.events[item, event.order] = payload

    def operate(self, action: Callable[[Rollout, Activation], Coroutine[Any, Any, Any]]) -> None:
        """Begin what an operator asks for; refusals (``AifError``) are an answer."""
        redis = GatedRedis(self.stage, self.redis, self.operator_gate)
        producer = cast("Producer", LogProducer(self.topics, self.operator_gate))
        tally = RebuildTally(redis, BUCKETS.count)
        rollout = self.rollout(self.settings, producer, N2OStore(redis, BUCKETS), tally)
        activation = Activation(self.settings, producer, tally)

        async def asked() -> None:
            try:
                await action(rollout, activation)
            except AifError:
                return

        self.operator = self.stage.loop.create_task(asked())

    @property
    def operating(self) -> bool:
        return self.operator is not None and not self.operator.done()

    def raise_failed(self) -> None:
        """A lane or an operator that died of something else than the machine's crash."""
        for worker in self.workers.values():
            for task in worker.tasks.values():
                if task.done():
                    task.result()
        if self.operator is not None and self.operator.done() and not self.operator.cancelled():
            self.operator.result()

    async def end(self) -> None:
        for worker in self.workers.values():
            await worker.crash()
        if self.operator is not None:
            self.operator.cancel()
            await asyncio.gather(self.operator, return_exceptions=True)

    async def may_answer(self) -> set[str]:
        """Versions that a server may pin: ready, active, or so complete that an activation is accepted."""
        book, found = self.book(), set()
        for name in book.records:
            state = book.state_of(name)
            whole = state is VersionState.REBUILDING and not (await self.tally.read(name)).missing
            if whole or state in (VersionState.READY, VersionState.ACTIVE):
                found.add(name)
        return found


@dataclass
class Bench:
    """What all examples share: a loop, a Redis, three models on disk."""

    stage: Stage
    settings: Settings
    redis: Redis
    world: Callable[..., World]
    now: World | None = None


def read_versions_of(world: Callable[[], World]) -> Callable[[Settings], Awaitable[VersionBook]]:
    """In place of ``bus.versions.read_versions``: the same fold over the world's log."""

    async def read(_: Settings) -> VersionBook:
        return world().book()

    return read


def open_redis_of(world: Callable[[], World]) -> Callable[[Settings], Any]:
    """In place of ``index.connection.open_redis``, for the operator."""

    @asynccontextmanager
    async def opened(_: Settings) -> Any:
        yield GatedRedis(world().stage, world().redis, world().operator_gate)

    return opened
