"""A Kafka-protocol broker inside this process, from the librdkafka that the confluent-kafka wheel carries.

librdkafka's C library holds a "mock cluster" for its own tests: listeners on loopback, served by one C thread that
never takes the GIL, behind ``rd_kafka_mock_*``. The wheel's shared library is loaded with ctypes; the Python package
``confluent_kafka`` is never imported. What it is not, as seen through aiokafka 0.14 with librdkafka 2.16:

- Log: in RAM, 5 MiB (as sent, so compression helps) or 100,000 batches per partition; then the oldest batch vanishes
  and ``auto_offset_reset="earliest"`` skips silently. One batch above 5 MiB is acknowledged and lost. No compaction.
  Persistence is added by embedded/journal.py.
- Time: record timestamps are the producer's (CreateTime), never LogAppendTime; the acknowledgement carries the constant
  timestamp 1234; ``offsets_for_times`` finds nothing.
- Fetch: an idle fetch is not woken by a new record, it answers after the whole ``fetch_max_wait_ms`` (set 20 or less);
  other calls on that connection wait behind it.
- Groups: one member per group. A second one is answered InvalidRequest, and two assignors in a group abort the process.
  A group's first join takes ``rebalance_delay_ms``, each later one the session timeout less 1 s (10,000 ms → 9.0 s,
  1,500 → 0.5 s; a timeout of 1 s or less is waited out in full).
- Producers: idempotence is accepted and not enforced; ``acks=0`` breaks the connection; transactions do not work.
- Admin: names, partitions, brokers and cluster id only (a new cluster id for each start). No topic creation (see
  :meth:`EmbeddedBroker.create_topics`), no configs, no listing of groups. Metadata about an unknown topic creates it,
  with 4 partitions.

Compressed batches (gzip, lz4, snappy, zstd), headers, null keys and values, commits and large records work.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from aif_stream.embedded.wheels import INSTALL, wheel_file
from aif_stream.errors import EmbeddedError

P = ParamSpec("P")
T = TypeVar("T")

_DISTRIBUTION = "confluent-kafka"
_PRODUCER = 0  # rd_kafka_type_t: any client type may own the cluster; a producer does the least on its own
_ERROR_TEXT_BYTES = 512
_PRODUCE, _NOT_LEADER = 0, 6  # API key and a retriable error code
_REFUSALS = 65_536  # requests to refuse; a producer retries ten times a second
_DEFAULT_REBALANCE_DELAY_MS = 100
# The C calls only take a lock or join a thread (measured: 1 to 20 ms); a call that needs longer hangs.
_CALL_DEADLINE_S = 20.0
# The cluster's thread can miss a call that follows another at once, and then looks again after a second.
_BETWEEN_CALLS_S = 0.002


class EmbeddedBroker:
    """A broker in RAM with the given topics (name → partitions).

    ::

        async with EmbeddedBroker({"aif.item-updates": 4}) as broker:
            AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
    """

    def __init__(
        self,
        topics: Mapping[str, int],
        *,
        brokers: int = 1,
        rebalance_delay_ms: int = _DEFAULT_REBALANCE_DELAY_MS,
    ) -> None:
        for name, partitions in topics.items():
            _check_topic(name, partitions)
        if brokers < 1:
            raise ValueError(f"brokers must be at least 1, not {brokers}")
        self._topics = dict(topics)
        self._brokers = brokers
        self._rebalance_delay_ms = rebalance_delay_ms
        self._library: ctypes.CDLL | None = None
        self._client: int | None = None
        self._cluster: int | None = None
        self._bootstrap = ""

    @property
    def bootstrap(self) -> str:
        """``host:port``, comma-separated for several brokers. Raises EmbeddedError when the broker is not running."""
        if self._cluster is None:
            raise EmbeddedError("the embedded broker is not running", mend="enter its `async with` first")
        return self._bootstrap

    async def __aenter__(self) -> Self:
        if self._cluster is not None:
            raise EmbeddedError("the embedded broker runs already", mend="one `async with` at a time")
        try:
            await _in_thread(self._open)
        except BaseException:
            await _in_thread(self._close)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _in_thread(self._close)

    async def create_topics(self, topics: Mapping[str, int]) -> None:
        """Adds topics while the broker runs. Raises EmbeddedError when one exists already."""
        for name, partitions in topics.items():
            _check_topic(name, partitions)
        for name, partitions in topics.items():
            await _in_thread(self._create, name, partitions)

    async def set_down(self) -> None:
        """Drops every connection and refuses new ones; the records stay. For tests of "Kafka is down"."""
        await _in_thread(self._switch, "rd_kafka_mock_broker_set_down")

    async def set_up(self) -> None:
        """Listens again on the same ports with the same records."""
        await _in_thread(self._switch, "rd_kafka_mock_broker_set_up")

    async def refuse_producers(self) -> None:
        """Refuse every further append with a retriable error. Consumers are not affected.

        Call it before reading the remaining records at a stop, so that none is acknowledged after the last read.
        """
        await _in_thread(self._refuse, _PRODUCE, _REFUSALS)

    def _open(self) -> None:
        library = self._library = _load()
        conf = library.rd_kafka_conf_new()
        library.rd_kafka_conf_set_log_cb(conf, None)  # or it warns on stderr that no bootstrap server is set
        text = ctypes.create_string_buffer(_ERROR_TEXT_BYTES)
        self._client = library.rd_kafka_new(_PRODUCER, conf, text, _ERROR_TEXT_BYTES)
        if not self._client:
            library.rd_kafka_conf_destroy(conf)  # a failed rd_kafka_new leaves it with the caller
            raise EmbeddedError(f"librdkafka gave no client: {text.value.decode(errors='replace')}")
        self._cluster = library.rd_kafka_mock_cluster_new(self._client, self._brokers)
        if not self._cluster:
            raise EmbeddedError(
                "librdkafka could not open the broker's listeners", mend="check that 127.0.0.1 has free ports"
            )
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, self._rebalance_delay_ms)
        for name, partitions in self._topics.items():
            time.sleep(_BETWEEN_CALLS_S)
            self._create(name, partitions)
        self._bootstrap = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def _close(self) -> None:
        cluster, self._cluster = self._cluster, None
        client, self._client = self._client, None
        if self._library is None:
            return
        if cluster:
            self._library.rd_kafka_mock_cluster_destroy(cluster)
        if client:
            self._library.rd_kafka_destroy(client)

    def _create(self, name: str, partitions: int) -> None:
        library, cluster = self._running()
        code = library.rd_kafka_mock_topic_create(cluster, name.encode(), partitions, self._brokers)
        _raise_for(library, code, f"topic {name} ({partitions} partitions)")

    def _switch(self, function: str) -> None:
        library, cluster = self._running()
        _raise_for(library, getattr(library, function)(cluster, -1), function)

    def _refuse(self, request: int, times: int) -> None:
        library, cluster = self._running()
        errors = (ctypes.c_int * times)(*[_NOT_LEADER] * times)
        library.rd_kafka_mock_push_request_errors_array(cluster, request, times, errors)

    def _running(self) -> tuple[ctypes.CDLL, int]:
        if self._library is None or self._cluster is None:
            raise EmbeddedError("the embedded broker is not running", mend="enter its `async with` first")
        return self._library, self._cluster


def _check_topic(name: str, partitions: int) -> None:
    if not name or partitions < 1:
        raise ValueError(f"topic {name!r} needs a name and at least one partition, not {partitions}")


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.wait_for(asyncio.to_thread(function, *args, **kwargs), _CALL_DEADLINE_S)


def _raise_for(library: ctypes.CDLL, code: int, what: str) -> None:
    if code:
        raise EmbeddedError(f"embedded broker, {what}: {library.rd_kafka_err2str(code).decode()}")


def _is_librdkafka(file: PurePath) -> bool:
    """Linux: librdkafka-<hash>.so.1, macOS: librdkafka.1.dylib, Windows: librdkafka-<hash>.dll."""
    return file.name.startswith("librdkafka") and {".so", ".dylib", ".dll"}.intersection(file.suffixes) != set()


def _load() -> ctypes.CDLL:
    """librdkafka with the signatures of the functions used here (rdkafka.h and rdkafka_mock.h, 2.6 and later)."""
    path = wheel_file(_DISTRIBUTION, _is_librdkafka)
    if path is None:
        raise EmbeddedError("the embedded broker needs the confluent-kafka wheel with its librdkafka", mend=INSTALL)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EmbeddedError(f"{path} cannot be loaded: {error}", mend=INSTALL) from error
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_conf_destroy": (None, [pointer]),
        "rd_kafka_conf_set_log_cb": (None, [pointer, pointer]),
        "rd_kafka_new": (pointer, [number, pointer, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_err2str": (text, [number]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, number]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_topic_create": (number, [pointer, text, number, number]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [pointer, ctypes.c_int32]),
        "rd_kafka_mock_broker_set_down": (number, [pointer, ctypes.c_int32]),
        "rd_kafka_mock_push_request_errors_array": (
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)],
        ),
        "rd_kafka_mock_broker_set_up": (number, [pointer, ctypes.c_int32]),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise EmbeddedError(f"{path.name} has no {name}", mend=f"confluent-kafka 2.6 or later: {INSTALL}") from None
        function.restype, function.argtypes = result, arguments
    return library
