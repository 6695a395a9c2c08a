"""``aif replay --as-of TIME``: the index as it was at TIME, rebuilt from the topics, behind a server of its own.

It is the nearline worker's own code that writes it (decode, coalesce, item side, compare-and-set), fed with every
record appended until TIME, in the topic's order; so rows, orders and histories are those that were there. Redis and
broker are private processes on this machine: nothing is written to the system's own, no group is joined, and nothing
that happens there later reaches the server. (A prefix inside the system's Redis would double its memory and its
append-only file, and the private server would still hear of live rows: decision 0011.)

How far back: to what compaction and retention have surely left alone, the shortest of the three topics' times.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from aif_stream.bus.admin import describe_topics
from aif_stream.bus.consumer import Record
from aif_stream.bus.producer import Producer
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import (
    BEHAVIORS,
    DEAD_LETTERS,
    ITEM_UPDATES,
    MODEL_UPDATES,
    N2O_ROWS,
    USER_UPDATES,
    contracts_dir,
    load_topics,
    partition_counts,
)
from aif_stream.bus.versions import apply_record, publish_version
from aif_stream.clock import elapsed_ms, monotonic_s, now_ms
from aif_stream.domain.versions import VersionBook, VersionRecord, VersionState
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.embedded.process import free_ports
from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import BadInput, EmbeddedError, VersionError
from aif_stream.index.connection import open_redis
from aif_stream.index.histories import HistoryStore
from aif_stream.index.keys import Buckets
from aif_stream.index.store import N2OStore
from aif_stream.nearline.items import ItemsWork
from aif_stream.nearline.users import BehaviorsWork, UsersWork
from aif_stream.nearline.versions import LoadedVersions
from aif_stream.nearline.work import Work
from aif_stream.runtime.roles import Roles, until_ready
from aif_stream.settings import Settings, variables
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

_BATCH: Final = 4_096  # per write: the worker's own 512 are for lag, not for speed
_KEEPS: Final = {
    ITEM_UPDATES: "min.compaction.lag.ms",
    USER_UPDATES: "min.compaction.lag.ms",
    BEHAVIORS: "retention.ms",
}
_SHARED: Final = (
    *("kafka_bootstrap", "redis_url", "index_buckets", "models_dir", "serve_port", "serve_url", "host", "history_long"),
    *("topic_prefix", "request_log_rate", "retrieval_urls", "kafka_security", "redis_cluster", "join"),
)


@dataclass(frozen=True, slots=True)
class AsOf:
    """A server that answers as the system would have at ``at_ms``. ``records``: read, by topic; ``refused``: records
    that had become dead letters."""

    url: str
    settings: Settings
    at_ms: int
    version: str
    records: dict[str, int]
    refused: int
    rebuild_s: float


@asynccontextmanager
async def as_of_server(base: Settings, at_ms: int, report: Callable[[str], None]) -> AsyncIterator[AsOf]:
    """Rebuild, serve, and leave nothing behind. ``report`` hears of each step.

    Raises ``BadInput`` for a time that cannot be had, ``VersionError`` when no version answered then, ``EmbeddedError``
    without the extra ``embedded``, ``BusUnavailable``, ``TopicError``.
    """
    await _check_time(base, at_ms)
    record = await _version_at(base, at_ms)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aif-as-of-")))
        settings = await _private(base, directory, stack)
        began_s = monotonic_s()
        async with Producer(settings, "aif-as-of", topics=[ITEM_UPDATES, USER_UPDATES, N2O_ROWS, DEAD_LETTERS]) as own:
            active = _as_active(record)
            await publish_version(own, active)
            records, refused = await rebuild(base, settings, own, active, at_ms, report)
        took_s = elapsed_ms(began_s) / 1000
        report(f"starting a server on version {record.version}")
        roles = Roles(directory, variables(settings, _SHARED))
        stack.push_async_callback(roles.stop)
        async with aiohttp.ClientSession() as session:
            await until_ready(session, f"{settings.serve_url}/readyz", roles.start("serve"))
        yield AsOf(settings.serve_url, settings, at_ms, record.version, records, refused, round(took_s, 3))


async def rebuild(
    base: Settings,
    private: Settings,
    producer: Producer,
    record: VersionRecord,
    at_ms: int,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, int], int]:
    """Write the index of ``private`` from the topics of ``base``, as far as they had been appended at ``at_ms``.

    ``producer`` (of ``private``) takes what a worker would tell others. Returns (records by topic, how many of them
    were refused).
    """
    read: Counter[str] = Counter()
    refused = 0
    async with open_redis(private) as redis:
        store = N2OStore(redis, Buckets(private.index_buckets))
        await store.ensure_layout()
        await store.add_version(record.version)
        versions = LoadedVersions(store)
        book = VersionBook()
        book.apply(record)
        await versions.follow(book)
        if record.version not in versions.models:
            raise VersionError(f"version {record.version} cannot be loaded from {record.artefact}")
        histories = HistoryStore(redis, private.history_long)
        ahead_ms = private.max_ahead_ms
        works: dict[str, Work[Any, Any]] = {
            ITEM_UPDATES: ItemsWork(store, versions, producer, ahead_ms),
            USER_UPDATES: UsersWork(redis, histories, versions, producer, ahead_ms),
            BEHAVIORS: BehaviorsWork(histories, versions, ahead_ms),
        }
        for topic, work in works.items():
            report(f"reading {topic}")
            async for some in _until(base, topic, at_ms):
                read[topic] += len(some)
                refused += await _take(work, some)
    log.info(kv("as_of.rebuilt", at_ms=at_ms, version=record.version, refused=refused, **read))
    return dict(read), refused


def _as_active(record: VersionRecord) -> VersionRecord:
    """The record as the private system's first activation."""
    return VersionRecord(
        version=record.version,
        state=VersionState.ACTIVE,
        artefact=record.artefact,
        manifest_sha256=record.manifest_sha256,
        created_ms=record.created_ms,
        activation=1,
    )


async def _take(work: Work[Any, Any], records: Sequence[Record]) -> int:
    """One batch, as a lane does it; how many were refused (collisions included)."""
    batch, refused = work.decode(records)  # those became dead letters then
    written = await work.write(await work.prepare(batch))
    await asyncio.gather(*written.acks)
    return len(refused) + len(written.poison)


async def _until(settings: Settings, topic: str, at_ms: int) -> AsyncIterator[list[Record]]:
    """Records appended at ``at_ms`` or before, in batches, each partition in its order."""
    async with LogReader(settings, topic, client_id="aif-as-of") as reader:
        ends = await reader.end_offsets()
        after = await reader.offsets_at(at_ms + 1)
        if after != await reader.beginning_offsets():  # else the broker cannot look times up: the stamps decide
            ends = {number: min(end, after[number]) for number, end in ends.items()}
        while not await reader.caught_up(ends):
            found = await reader.poll(_BATCH)
            kept = [record for record in found if record.offset < ends[record.partition] and record.timestamp <= at_ms]
            if kept:
                yield kept


async def _check_time(settings: Settings, at_ms: int) -> None:
    """Raise ``BadInput`` when ``at_ms`` is to come, or so long ago that the topics may have forgotten."""
    age_ms = now_ms() - at_ms
    if age_ms < 0:
        raise BadInput("--as-of is in the future", mend="name a time that has been")
    specs = {name: spec for name, spec in load_topics(contracts_dir(settings)).items() if name in _KEEPS}
    described = {found.topic: found.config for found in await describe_topics(settings, specs)}
    for topic, name in _KEEPS.items():
        config = {**specs[topic].config, **(described.get(topic) or {})}
        keeps_ms = int(config[name])
        if 0 <= keeps_ms < age_ms:
            raise BadInput(
                f"--as-of is {age_ms / 3_600_000:.1f} h ago, and {topic} keeps every record only for "
                f"{keeps_ms / 3_600_000:.1f} h ({name}): what it was then cannot be told exactly",
                mend=f"a later time, or a larger {name} from now on",
            )


async def _version_at(settings: Settings, at_ms: int) -> VersionRecord:
    """The version that answered then. Raises ``VersionError`` when there was none."""
    then, now = VersionBook(), VersionBook()
    async with LogReader(settings, MODEL_UPDATES, client_id="aif-as-of") as reader:
        ends = await reader.end_offsets()
        while not await reader.caught_up(ends):
            for record in await reader.poll():
                if record.timestamp <= at_ms:
                    apply_record(then, record)
                apply_record(now, record)
    if then.active is None:
        raise VersionError(
            "no model version was active then, as far as aif.model-updates still tells", mend="name a later time"
        )
    return now.records[then.active]  # its artefact may have moved since


async def _private(base: Settings, directory: Path, stack: AsyncExitStack) -> Settings:
    """A Redis and a broker of one's own, and the settings that lead to them."""
    try:
        # Thrown away afterwards, so nothing is written to disk.
        redis = await stack.enter_async_context(EmbeddedRedis(directory / "redis", options={"appendonly": "no"}))
        topics = partition_counts(load_topics(contracts_dir(base)))
        broker = await stack.enter_async_context(EmbeddedBroker(topics))
    except ImportError as error:
        raise EmbeddedError(
            f"--as-of needs the embedded servers: {error}", mend="in a checkout: pip install '.[embedded]'"
        ) from None
    (port,) = free_ports(1)
    return dataclasses.replace(
        base,
        host="127.0.0.1",
        kafka_bootstrap=broker.bootstrap,
        kafka_security="PLAINTEXT",
        topic_prefix="",
        redis_url=redis.url,
        redis_cluster=False,
        serve_port=port,
        serve_url=f"http://127.0.0.1:{port}",
        serve_worker="",
        serve_worker_ports="",
        request_log_rate=0.0,
    )
