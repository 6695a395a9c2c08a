"""The one way to write to Kafka: idempotent, acks=all, compressed, no timestamps of our own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerClosed

from aif_stream.bus.connection import describe, kafka_errors, kafka_kwargs, require_topics
from aif_stream.bus.diagnosis import AUTHORIZATION_ERRORS, rights_mend
from aif_stream.bus.topics import contracts_dir, load_topics, topic_name
from aif_stream.errors import PublishError
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes]]

# Per partition. Larger batches compress better and cost fewer requests; 256 KiB is a quarter of the smallest
# max.message.bytes of the contracts, so that only a single record can ever be refused as too large.
BATCH_BYTES: Final = 256 * 1024
# Guards nothing but memory: whether a record fits is decided per topic (``TopicSpec.max_record_bytes``).
_MAX_REQUEST_BYTES: Final = 128 * 1024 * 1024
# Varints and lengths of one record, and of one header.
_RECORD_OVERHEAD_BYTES: Final = 32
_HEADER_OVERHEAD_BYTES: Final = 8
# Room for the key (an id of at most 256 characters of 4 bytes) and the CloudEvents headers in a record of full size.
HEADER_ROOM_BYTES: Final = 2_048
CLOSE_DEADLINE_S: Final = 30.0
ROLE_CLOSE_S: Final = 3.0  # a role that stops has 10 s in all, and has waited for the acks that matter


class RecordPosition(NamedTuple):
    """Where an acknowledged record lies. ``topic`` is the base name."""

    topic: str
    partition: int
    offset: int


class Ack:
    """The acknowledgement of one record: ``await ack`` gives its ``RecordPosition``.

    It has no deadline of its own: an idempotent producer repeats a batch until the broker takes it, so a caller
    who must not wait that long puts a timeout around it. Raises ``PublishError`` when the broker refused.
    """

    __slots__ = ("_future", "_producer", "_topic")

    def __init__(self, producer: Producer, topic: str, future: asyncio.Future[Any]) -> None:
        self._producer = producer
        self._topic = topic
        self._future = future

    def __await__(self) -> Generator[Any, None, RecordPosition]:
        try:
            # Shielded: a caller's timeout must not cancel the future that the sender will set.
            found = yield from asyncio.shield(self._future).__await__()
        except KafkaError as error:
            raise self._producer.refused(self._topic, error) from error
        return RecordPosition(self._topic, found.partition, found.offset)

    def done(self) -> bool:
        """True when awaiting it returns (or raises) at once."""
        return self._future.done()


class Producer:
    """``async with Producer(settings, "nearline") as producer: ack = await producer.send(…); await ack``.

    Within one producer, records of one key keep their order and none is written twice by a retry. ``topics``
    named here are checked at the start (``TopicError`` when one is missing).
    """

    def __init__(
        self,
        settings: Settings,
        client_id: str,
        *,
        linger_ms: int = 0,
        topics: Sequence[str] = (),
        compression: Literal["lz4", "snappy", "zstd"] | None = None,
        close_deadline_s: float = CLOSE_DEADLINE_S,
    ) -> None:
        """``compression``: of records that the setting's does not suit; the setting "none" holds for them too.
        ``close_deadline_s``: how long the end of the context waits for records that are queued."""
        self._settings = settings
        chosen = compression if compression and settings.compression != "none" else settings.compression
        self._compression = None if chosen == "none" else chosen
        self._client_id = client_id
        self._linger_ms = linger_ms
        self._topics = tuple(topics)
        self._limits = {name: spec.max_record_bytes for name, spec in load_topics(contracts_dir(settings)).items()}
        self._inner: AIOKafkaProducer | None = None
        self._broken = False
        self.close_deadline_s = close_deadline_s
        self._reopening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await require_topics(self._settings, self._topics)
        self._inner = await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            await _close(inner, self.close_deadline_s)

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, *, partition: int | None = None
    ) -> Ack:
        """Queue one record; returns when it is queued (waits while its partition's buffer is full: back-pressure).

        Keys are placed by murmur2 as Java does; without a key and ``partition``, anywhere. Raises ``PublishError``
        when the record is larger than the topic's contract, or cannot be queued because Kafka stays away;
        ``BusUnavailable`` when a new producer was needed and could not be opened.
        """
        self.check_size(topic, key, value, headers)
        name = topic_name(self._settings, topic)
        while True:
            inner = await self._current()
            try:
                return Ack(self, topic, await inner.send(name, value, key, partition, None, headers))
            except ProducerClosed:
                continue  # another task has opened a new one meanwhile, or ``_current`` says that we are closed
            except KafkaError as error:
                raise self.refused(topic, error) from error

    async def flush(self, timeout_s: float = 60.0) -> None:
        """Return when every queued record is acknowledged or refused (ask the acks which).

        Raises ``PublishError`` when the broker does not answer in time; the records stay queued.
        """
        if self._inner is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._inner.flush()
        except TimeoutError:
            raise PublishError(
                f"Kafka at {self._settings.kafka_bootstrap} acknowledged nothing for {timeout_s:g} s",
                mend="records stay queued; check the brokers",
            ) from None

    async def partitions_of(self, topic: str) -> int:
        """How many partitions the topic has now. Raises ``BusUnavailable``."""
        inner = await self._current()
        with kafka_errors(self._settings, f"reading partitions of {topic}"):
            return len(await inner.partitions_for(topic_name(self._settings, topic)))

    async def create_batch(self) -> Any:
        """An empty batch for ``submit`` (bus/bulk.py); full at ``BATCH_BYTES``."""
        return (await self._current()).create_batch()

    async def submit(self, topic: str, partition: int, batch: Any) -> asyncio.Future[Any]:
        """Queue a batch; waits while another of that partition is queued. The future is its acknowledgement.

        Raises ``PublishError`` when it cannot be queued because Kafka stays away.
        """
        batch.close()
        name = topic_name(self._settings, topic)
        while True:
            inner = await self._current()
            try:
                future: asyncio.Future[Any] = await inner.send_batch(batch, name, partition=partition)
            except ProducerClosed:
                continue
            except KafkaError as error:
                raise self.refused(topic, error) from error
            return future

    def republishable_bytes(self, topic: str) -> int:
        """The most that key and value of a record may have, so that it can be published again under headers of ours."""
        return self._limits[topic] - HEADER_ROOM_BYTES

    def check_size(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Raise ``PublishError`` when a record is beyond the topic's contract, whatever compression would do."""
        limit = self._limits.get(topic)
        # Nearly every record is small: the exact sum is for those that might not be.
        if limit is None or len(value or b"") + len(key or b"") < limit // 2:
            return
        size = record_bytes(key, value, headers)
        if size > limit:
            raise PublishError(
                f"a record of {size} bytes is too large for {topic}, which takes {limit}",
                mend="make it smaller, or raise max.message.bytes in the topic's contract and apply it",
            )

    def refused(self, topic: str, error: KafkaError) -> PublishError:
        """The error for the caller; a refusal for good makes the next ``send`` begin with a new producer.

        A batch that was refused has used up its sequence numbers: the broker then answers all later ones of that
        producer with OutOfOrderSequenceNumber, for ever (Java's client starts a new epoch, aiokafka does not).
        """
        if not error.retriable:
            self._broken = True
        mend = "publish it again; nothing after it is lost"
        if isinstance(error, AUTHORIZATION_ERRORS):
            mend = rights_mend(self._settings)
        return PublishError(
            f"Kafka at {self._settings.kafka_bootstrap} did not take a record for {topic}: {describe(error)}", mend=mend
        )

    async def _open(self) -> AIOKafkaProducer:
        inner = AIOKafkaProducer(
            client_id=self._client_id,
            enable_idempotence=True,
            acks="all",
            # zstd is the setting's default: aiokafka asks lz4 for level 9, 7.4 ms of the event loop per 250 kB of lines
            # and 5.1 ms per 230 kB of rows, against 0.9 and 0.2 ms.
            compression_type=self._compression,
            max_batch_size=BATCH_BYTES,
            max_request_size=_MAX_REQUEST_BYTES,
            linger_ms=self._linger_ms,
            **kafka_kwargs(self._settings),
        )
        try:
            with kafka_errors(self._settings, "opening a producer"):
                await inner.start()
        except BaseException:
            await inner.stop()
            raise
        return inner

    async def _current(self) -> AIOKafkaProducer:
        inner = self._inner
        return await self._reopen() if inner is None or self._broken else inner

    async def _reopen(self) -> AIOKafkaProducer:
        async with self._reopening:
            if self._inner is None:
                raise PublishError("the producer is closed", mend="use it inside its `async with`")
            if self._broken:
                log.warning(kv("producer.reopened", client=self._client_id))
                await _close(self._inner, CLOSE_DEADLINE_S)
                self._inner = await self._open()
                self._broken = False
            return self._inner


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Bytes of a record before compression, counted from above."""
    size = _RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"")
    # Four bytes per character of a name at most; a header of somebody else's may have no value.
    return size + sum(_HEADER_OVERHEAD_BYTES + 4 * len(name) + len(data or b"") for name, data in headers)


async def _close(inner: AIOKafkaProducer, deadline_s: float) -> None:
    """Flush and close; past the deadline close without the flush (queued records fail with ``PublishError``)."""
    try:
        async with asyncio.timeout(deadline_s):
            await inner.stop()
    except TimeoutError:
        log.warning(kv("producer.closed_unflushed", deadline_s=deadline_s))
        # stop() was cancelled in its flush and will not run again: end its two parts ourselves.
        await inner._sender.close()
        await inner.client.close()
