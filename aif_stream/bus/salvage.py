"""Records that aiokafka cannot parse: met without losing their neighbours, read by hand, passed over.

aiokafka 0.14 raises out of ``getmany`` where a stored batch does not parse (a header name that is not UTF-8, a broken
CRC, an unknown codec), throws away what that call had already taken from other batches and partitions, and moves past
it. So the error must not get that far: ``watch`` ends a partition's iterator quietly where parsing fails and notes the
place; the consumer then asks for that batch itself (``fetch_batch``) and reads it here (``read_batch``).

Source of the layout: https://kafka.apache.org/41/implementation/message-format/ (record batch, magic 2).
"""

from __future__ import annotations

import functools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException, LeaderNotAvailableError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.util import calc_crc32c, decode_varint

from aif_stream.bus.decompression import (
    gzip_decode,
    lz4_decode,
    opened,
    refuse_headers,
    snappy_decode,
    zstd_decode,
)
from aif_stream.clock import now_ms

UNPARSEABLE: Final = "unparseable"  # the dead letter's reason

# base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and max timestamp, producer id and
# epoch, base sequence, number of records
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_FRAMING: Final = struct.calcsize(">qi")  # base offset and length: what the length does not count
_CRC_FROM: Final = struct.calcsize(">qiibI")  # the CRC covers everything from the attributes on
_MAGIC: Final = 2
_CODEC, _LOG_APPEND_TIME, _CONTROL = 0x07, 0x08, 0x20
_DECODERS: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: bytes,
    1: gzip_decode,
    2: snappy_decode,
    3: lz4_decode,
    4: zstd_decode,
}
_FETCH_BYTES: Final = 1024 * 1024  # aiokafka's own; the broker sends a first batch that is larger whole
# More headers than any producer means, and what each takes as Python objects.
_MANY_HEADERS: Final = 100
_HEADER_OBJECT_BYTES: Final = 80
_HEADERS_BY_HAND: Final = 100_000  # of all records of one turn: 8 MB


@dataclass(frozen=True, slots=True)
class Unparseable:
    """Stands for ``first_offset`` … ``offset``, which cannot be read; a ``Record`` for the dead letters.

    ``value`` is the stored batch as it came (compressed, when it was), ``timestamp`` the time at which it was met.
    """

    topic: str
    partition: int
    first_offset: int
    offset: int
    value: bytes
    problem: str
    timestamp: int
    key: None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class Fetched(NamedTuple):
    """Stored bytes of a partition from the batch of a position on, and the offset after the partition's last record."""

    data: bytes
    end: int


@dataclass(slots=True)
class Broken:
    """Where aiokafka could not go on, and why; ``batch`` is what is being read by hand there."""

    position: int
    problem: str
    batch: StoredBatch | None = None


class Plain(NamedTuple):
    """A ``Record`` with nothing in it that nobody asks for: a third of what aiokafka's own costs to make."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Buffers(OrderedDict[TopicPartition, Any]):
    """aiokafka's fetched records by partition; each iterator ends quietly where the parsing of its bytes fails.

    The records come from here, not from aiokafka's own iterator, which passes each through five frames of Python
    (3.3 µs a record of a worker's 27, half of it saved).

    ``room``: how many bytes of decompressed batches a poll may still begin with. Batches that each keep their bound
    would add up: 500 of 30 MB in a poll of 500 records.
    """

    def __init__(self, broken: dict[TopicPartition, Broken], poll_bytes: int) -> None:
        super().__init__()
        self._broken = broken
        self._poll_bytes = poll_bytes
        self.room = poll_bytes

    def begin_poll(self) -> None:
        self.room = self._poll_bytes

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        records = getattr(result, "_partition_records", None)  # an error has none
        if records is not None:
            records._records_iterator = self._until_broken(tp, records)
            result.getall = functools.partial(_take, self, result)
        super().__setitem__(tp, result)

    def _until_broken(self, tp: TopicPartition, records: Any) -> Iterator[Plain]:
        try:
            yield from plain_records(tp, records, self._spend)
        except Exception as error:  # noqa: BLE001  # whatever parsing foreign bytes raises; ConsumerBase repairs it
            self._broken[tp] = Broken(records.next_fetch_offset, f"{type(error).__name__}: {error}")

    def _spend(self, size_bytes: int) -> None:
        self.room -= size_bytes


def plain_records(tp: TopicPartition, records: Any, spend: Callable[[int], None]) -> Iterator[Plain]:
    """The records of aiokafka's ``PartitionRecords`` from its ``next_fetch_offset`` on, which goes with them.

    ``spend`` is told how much memory a batch takes beyond its stored bytes.
    """
    topic, partition, batches = tp.topic, tp.partition, records._records
    while batches.has_next():
        batch = batches.next_batch()
        if records._check_crcs and not batch.validate_crc():
            raise CorruptRecordException("the CRC does not fit the bytes")
        if not batch.is_control_batch:
            found, data = opened(batch)
            if data is not None:
                spend(len(data))
            for record in found:
                offset = record.offset
                if offset < records.next_fetch_offset:
                    continue  # a fetch gives whole batches: these lie before the position asked for
                records.next_fetch_offset = offset + 1
                headers = record.headers
                if len(headers) > _MANY_HEADERS:
                    spend(len(headers) * _HEADER_OBJECT_BYTES)
                yield Plain(
                    topic,
                    partition,
                    offset,
                    record.timestamp,
                    record.timestamp_type,
                    record.key,
                    record.value,
                    headers,
                )
        # Behind records that compaction has removed from the batch's end, too: else it would be read for ever.
        records.next_fetch_offset = batch.next_offset


def _take(buffers: Buffers, result: Any, max_records: int | None = None) -> list[Plain]:
    """``FetchResult.getall`` without a call per record; ends early when the poll's room is spent."""
    if not result.check_assignment(result._topic_partition) or not result.has_more() or buffers.room <= 0:
        return []
    found: list[Plain] = []
    ended = True
    for record in result._partition_records._records_iterator:
        found.append(record)
        if len(found) == max_records or buffers.room <= 0:
            ended = False
            break
    result._update_position()
    if ended:
        result._partition_records = None
    return found


def watch(consumer: AIOKafkaConsumer, broken: dict[TopicPartition, Broken], poll_bytes: int) -> Buffers:
    """Have a started consumer note in ``broken`` what it cannot parse, instead of raising. Before its first poll."""
    buffers = Buffers(broken, poll_bytes)
    fetcher = consumer._fetcher
    for tp, result in fetcher._records.items():
        buffers[tp] = result
    fetcher._records = buffers
    return buffers


def is_at(consumer: AIOKafkaConsumer, tp: TopicPartition, position: int) -> bool:
    """Whether ``tp`` is the consumer's and would be read from ``position`` next."""
    subscription = consumer._subscription.subscription
    assignment = subscription.assignment if subscription is not None else None
    if assignment is None or tp not in assignment.tps:
        return False
    state = assignment.state_value(tp)
    return bool(state.has_valid_position and state.position == position)


async def fetch_batch(consumer: AIOKafkaConsumer, tp: TopicPartition, position: int) -> Fetched:
    """The stored bytes at ``position``, unparsed. Raises ``KafkaError``."""
    client = consumer._client
    leader = client.cluster.leader_for_partition(tp)
    if leader is None or leader == -1:
        raise LeaderNotAvailableError(tp)
    wanted = [(tp.topic, [(tp.partition, position, _FETCH_BYTES)])]
    response = await client.send(leader, FetchRequest(100, 1, _FETCH_BYTES, 0, wanted, rack_id=""))
    ((_, ((_, error_code, end, *_, data),)),) = response.topics
    error = for_code(error_code)
    if error_code:
        raise error(tp)
    return Fetched(bytes(data or b""), end)


class StoredBatch:
    """The first stored batch of ``fetched``, read by hand from ``position`` on, in as many turns as wanted.

    Names of headers that are not UTF-8 keep their bytes as ``\\xff`` escapes; the Java client replaces them and reads
    the record, too. What cannot be read is one ``Unparseable`` to the batch's end. ``position`` moves behind every
    record that is taken, and at last behind the batch; it stays where ``data`` is empty.
    """

    def __init__(self, tp: TopicPartition, position: int, fetched: Fetched) -> None:
        self.position = position
        self._records = self._read(tp, fetched)

    def take(self, most: int | None = None) -> tuple[list[Any], bool]:
        """The next records, ``most`` of them at most, and whether that was all."""
        records: list[Any] = []
        headers = 0
        for record in self._records:
            records.append(record)
            headers += len(record.headers)
            if len(records) == most or headers > _HEADERS_BY_HAND:
                return records, False
        return records, True

    def _read(self, tp: TopicPartition, fetched: Fetched) -> Iterator[Any]:
        data, end = fetched
        if len(data) < _FRAMING:
            return
        base, length = struct.unpack_from(">qi", data)
        batch = data[: max(_FRAMING, _FRAMING + length)]
        delta = struct.unpack_from(">i", batch, _CRC_FROM + 2)[0] if len(batch) >= _HEADER.size else 0
        behind = max(self.position, base + delta) + 1 if delta >= 0 else self.position + 1
        try:
            for record in _records(tp, batch):
                if record.offset >= self.position:
                    self.position = record.offset + 1
                    yield record
        except Exception as error:  # noqa: BLE001  # foreign bytes: any decoder's complaint is the record's problem
            first = self.position
            # The header may be what is broken: where the next batch begins is known better than how far this one goes.
            rest = data[len(batch) :]
            following = int.from_bytes(rest[:8], "big") if len(rest) >= _FRAMING else min(behind, end)
            behind = max(following, first + 1)
            problem = f"offsets {first} to {behind - 1} cannot be read: {type(error).__name__}: {error}"
            yield Unparseable(tp.topic, tp.partition, first, behind - 1, batch, problem, now_ms())
        self.position = max(behind, self.position)


def _records(tp: TopicPartition, batch: bytes) -> Iterator[Any]:
    if len(batch) < _HEADER.size:
        raise ValueError(f"a batch of {len(batch)} bytes is none")
    base, _, _, magic, crc, attributes, _, first_ms, max_ms, *_, count = _HEADER.unpack_from(batch)
    if magic != _MAGIC:
        raise ValueError(f"message format {magic} is not read")
    if crc != calc_crc32c(batch[_CRC_FROM:]):
        raise ValueError("the CRC does not fit the bytes")
    if attributes & _CONTROL:
        return
    decoder = _DECODERS.get(attributes & _CODEC)
    if decoder is None:
        raise ValueError(f"compression {attributes & _CODEC} is unknown")
    data, at = bytes(decoder(batch[_HEADER.size :])), 0
    append_time = bool(attributes & _LOG_APPEND_TIME)
    for _ in range(count):
        size, at = decode_varint(data, at)
        if size < 0 or at + size > len(data):
            raise ValueError("a record ends behind the batch's end")
        yield _record(tp, base, max_ms if append_time else None, first_ms, data[at : at + size])
        at += size


def _record(tp: TopicPartition, base: int, append_ms: int | None, first_ms: int, data: bytes) -> Plain:
    time_delta, at = decode_varint(data, 1)  # byte 0: attributes, unused
    offset_delta, at = decode_varint(data, at)
    key, at = _nullable(data, at)
    value, at = _nullable(data, at)
    count, at = decode_varint(data, at)
    refuse_headers(count)
    headers: list[tuple[str, Any]] = []
    for _ in range(count):
        name, at = _nullable(data, at)
        header_value, at = _nullable(data, at)
        headers.append(((name or b"").decode("utf-8", "backslashreplace"), header_value))
    return Plain(
        tp.topic,
        tp.partition,
        base + offset_delta,
        append_ms if append_ms is not None else first_ms + time_delta,
        int(append_ms is not None),
        key,
        value,
        tuple(headers),
    )


def _nullable(data: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(data, at)
    if size < 0:
        return None, at
    if at + size > len(data):
        raise ValueError("a field ends behind its record's end")
    return data[at : at + size], at + size
