"""Dead letters: a record that cannot be used is put aside whole, with where and why, before its offset is committed."""

from __future__ import annotations

import logging

from aif_stream.bus.consumer import Record
from aif_stream.bus.letters import ATTEMPTS, MAX_TRIES, OWN, REDRIVEN_FROM, TRIES_HEADERS
from aif_stream.bus.producer import Headers, Producer, RecordPosition, record_bytes
from aif_stream.bus.topics import DEAD_LETTERS, contracts_dir, load_topics
from aif_stream.domain.decoding import whole_number
from aif_stream.settings import Settings
from aif_stream.telemetry import DEAD_LETTERS as COUNTER
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

# A problem names a field and quotes some of it; more would be the record again.
_MAX_PROBLEM_BYTES = 2_048
_KEPT_KEY_BYTES = 1_024


class DeadLetters:
    """Writes to ``aif.dead-letters`` through a producer that the caller owns."""

    def __init__(self, settings: Settings, producer: Producer) -> None:
        self._producer = producer
        self._limit = load_topics(contracts_dir(settings))[DEAD_LETTERS].max_record_bytes

    async def put(self, record: Record, *, reason: str, problem: str, attempts: int = 1) -> RecordPosition:
        """Put one record aside; returns when Kafka has acknowledged it, so that the caller may commit.

        Key, value and headers stay as they are; ``aif_*`` headers are added (topics/aif.dead-letters.toml). A record
        that is too large even for the dead-letter topic is cut (``aif_truncated``): whole it is still at its
        position in the source. Repeatable: a second put makes a second letter. Raises ``PublishError``.
        """
        key, value = record.key, record.value if record.value is not None else b""
        headers: Headers = dead_letter_headers(record, reason=reason, problem=problem, attempts=attempts)
        if record_bytes(key, value, headers) > self._limit:
            key, value, headers = self._cut(key, value, headers)
        position = await (await self._producer.send(DEAD_LETTERS, key, value, headers))
        COUNTER.labels(reason=reason).inc()
        log.warning(
            kv(
                "dead_letter",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                reason=reason,
                problem=problem,
                letter=position.offset,
            )
        )
        return position

    def _cut(self, key: bytes | None, value: bytes, headers: Headers) -> tuple[bytes | None, bytes, Headers]:
        """What fits: the value's first part; without the foreign headers and most of the key if need be."""
        headers = [*headers, ("aif_truncated", b"%d" % len(value))]
        room = self._limit - record_bytes(key, b"", headers)
        if room < 0:
            headers = [pair for pair in headers if pair[0].startswith(OWN)]
            key = key[:_KEPT_KEY_BYTES] if key is not None else None
            room = self._limit - record_bytes(key, b"", headers)
        return key, value[: max(0, room)], headers


def dead_letter_headers(record: Record, *, reason: str, problem: str, attempts: int) -> list[tuple[str, bytes]]:
    """The record's own headers, then the ``aif_*`` ones.

    A record that was redriven carries how often it had been tried: those tries count, and the letter that it came from
    is named (bus/redrive.py). Such headers that are no numbers say nothing.
    """
    before = dict(record.headers)
    tried, letter = (whole_number(before.get(name), most) for name, most in TRIES_HEADERS.items())
    where: list[tuple[str, str]] = [
        ("aif_topic", record.topic),
        ("aif_partition", str(record.partition)),
        ("aif_offset", str(record.offset)),
        ("aif_timestamp", str(record.timestamp)),
        ("aif_reason", reason),
        (ATTEMPTS, str(min(attempts + (tried or 0), MAX_TRIES))),
    ]
    if record.value is None:
        where.append(("aif_null_value", "1"))
    if letter is not None:
        where.append((REDRIVEN_FROM, str(letter)))
    text = problem.encode("utf-8", "replace")[:_MAX_PROBLEM_BYTES]
    own = [(name, data) for name, data in record.headers if not name.startswith(OWN)]
    return [*own, *((name, value.encode()) for name, value in where), ("aif_problem", text)]
