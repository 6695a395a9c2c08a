"""The request log: what was asked and answered, as one record of ``aif.requests`` and as one line of an export.

    u32 LE length of the head · head (JSON) · candidates · answered items

Candidates that are numbers travel in the narrowest of u16, u24 (all low halves, then all third bytes), u32, u64: 10,000
take 20-80 KB and some microseconds each way; others travel as a JSON array of their ids. So do the answer's items:
where candidates are numbers, ``packed`` keys of the same width (u24: u32) and as many scores (f32 LE, as they were
computed) follow them, a seventh of their JSON and of its cost; else (and in records written before) they are in the
head. Kafka compresses batches, so nothing is compressed here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from aif_stream.domain.candidates import id_of
from aif_stream.domain.decoding import MAX_COUNT, UNDECODABLE, check_plain
from aif_stream.domain.events import Name, TimeMs
from aif_stream.domain.ids import HASHED_BIT, MAX_ID_CHARS, Keys
from aif_stream.domain.request import RankAnswer, RankedItem, RankRequest
from aif_stream.errors import BadEvent

REQUEST_EVENT: Final = "aif.request.answered"
Block = Literal["u16", "u24", "u32", "u64", "ids", "none"]
# Of the answered items' keys; candidates are alike but for u24.
_WIDTHS: Final[dict[Block, str]] = {"u16": "<u2", "u24": "<u4", "u32": "<u4", "u64": "<u8"}
_LETTERS: Final[dict[Block, str]] = {"u16": "H", "u24": "I", "u32": "I", "u64": "Q"}
_LIMITS: Final[tuple[tuple[Block, int], ...]] = (("u16", 1 << 16), ("u24", 1 << 24), ("u32", 1 << 32))
_SCORE: Final = np.dtype("<f4")
_NO_KEYS: Final = np.empty(0, np.uint64)
_16: Final = np.uint8(16)
_LENGTH_BYTES: Final = 4


class Packed(NamedTuple):
    """What follows the head of a record."""

    block: Block
    body: bytes


class AnsweredRequest(NamedTuple):
    """One request with its answer. ``keys``: candidates u64, in parts, in the order of scoring; ``names``: ids of
    the hashed keys among them (and maybe more). ``best`` and ``scores`` (f32 values): the answer's items once more, as
    keys and numbers. ``packed``: all of these as they are written, where somebody had them at hand."""

    request: RankRequest
    answer: RankAnswer
    received_ms: int
    keys: Sequence[Keys]
    names: Mapping[int, str]
    best: Sequence[int]
    scores: Sequence[float]
    packed: Packed | None = None


class LoggedRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The head of a record, and with ``candidates`` the line of an export (contract: request).

    ``coverage``, ``freshness`` and ``timings_ms`` are the answer's, not read here: a record outlives their changes.
    """

    request_id: Name
    user_id: Name
    received_ms: TimeMs
    k: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    model_version: str
    named: bool
    items: list[RankedItem]
    coverage: Any
    freshness: Any
    degraded: list[str] = []
    timings_ms: Any
    deadline_ms: Annotated[float, Meta(gt=0)] | None = None
    context: dict[str, Any] = {}
    redacted: list[str] = []
    block: Block = "none"
    packed: int = 0
    candidates: list[Name] | None = None


_HEAD: Final = msgspec.json.Decoder(LoggedRequest)
_IDS: Final = msgspec.json.Decoder(list[Name])
_ENCODER: Final = msgspec.json.Encoder()


def is_sampled(request_id: str, rate: float) -> bool:
    """Whether a request belongs to the sample: the same for one id everywhere; a larger rate keeps what a smaller
    one has."""
    if rate >= 1.0:
        return True
    digest = blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < rate * 2.0**64


def redact(context: Mapping[str, Any], fields: frozenset[str]) -> tuple[dict[str, Any], list[str]]:
    """The context without the named fields, at any depth, and which of them were there. ``*`` names all."""
    found: set[str] = set()
    kept = _without(context, fields, found)
    return kept, sorted(found)


def _without(value: Any, fields: frozenset[str], found: set[str]) -> Any:
    if isinstance(value, Mapping):
        hidden = value.keys() if "*" in fields else value.keys() & fields
        found.update(hidden)
        return {name: _without(inner, fields, found) for name, inner in value.items() if name not in hidden}
    if isinstance(value, list):
        return [_without(inner, fields, found) for inner in value]
    return value


def encode_logged(done: AnsweredRequest, redacted: frozenset[str], limit_bytes: int) -> bytes:
    """The value of a record, at most ``limit_bytes``: candidates that do not fit are left out (block "none")."""
    request, answer = done.request, done.answer
    block, body = done.packed or pack(done.keys, done.best, done.scores) or _named(done)
    packed = len(done.best) if block != "ids" else 0
    context, hidden = redact(request.context, redacted) if request.context else ({}, [])
    head = LoggedRequest(
        request_id=answer.request_id,
        user_id=request.user,
        received_ms=done.received_ms,
        k=request.k,
        model_version=answer.model_version,
        named=request.candidates is not None,
        items=[] if packed else answer.items,
        coverage=answer.coverage,
        freshness=answer.freshness,
        degraded=answer.degraded,
        timings_ms=answer.timings_ms,
        deadline_ms=request.deadline_ms,
        context=context,
        redacted=hidden,
        block=block,
        packed=packed,
    )
    data = _ENCODER.encode(head)
    if _LENGTH_BYTES + len(data) + len(body) > limit_bytes:
        left = msgspec.structs.replace(head, block="none", packed=0, items=answer.items)
        data, body = _ENCODER.encode(left), b""
    return b"".join((len(data).to_bytes(_LENGTH_BYTES, "little"), data, body))


def pack(keys: Sequence[Keys], best: Sequence[int], scores: Sequence[float]) -> Packed | None:
    """Candidates (parts of u64 keys) and answered items behind them; None when there are ids without a number.

    The plain twin of ``kernels.request_body``, and for answers whose body nobody has packed yet.
    """
    numbers = keys[0] if len(keys) == 1 else np.concatenate((_NO_KEYS, *keys))
    most = int(np.maximum.reduce(numbers, initial=0))
    if most >= HASHED_BIT:
        return None
    block: Block = next((block for block, limit in _LIMITS if most < limit), "u64")
    count = len(best)
    items = struct.pack(f"<{count}{_LETTERS[block]}{count}f", *best, *scores)
    if block == "u24":
        return Packed(block, numbers.astype("<u2").tobytes() + (numbers >> _16).astype(np.uint8).tobytes() + items)
    return Packed(block, numbers.astype(_WIDTHS[block]).tobytes() + items)


def _numbers(body: bytes, block: Block) -> list[int]:
    """The candidates that ``pack`` has packed. Raises ``ValueError`` when they are cut off."""
    if block != "u24":
        return list(np.frombuffer(body, _WIDTHS[block]).tolist())
    count, rest = divmod(len(body), 3)
    if rest:
        raise ValueError(f"{len(body)} bytes are no numbers of three")
    low, high = np.frombuffer(body, "<u2", count), np.frombuffer(body, np.uint8, offset=2 * count)
    return list((low + (high.astype(np.uint32) << _16)).tolist())


def _named(done: AnsweredRequest) -> Packed:
    """Candidates as ids."""
    names = dict(done.names)
    return Packed("ids", _ENCODER.encode([id_of(key, names) for part in done.keys for key in part.tolist()]))


def decode_logged(value: bytes) -> LoggedRequest:
    """A record with its candidates as ids (None when they were left out). Raises ``BadEvent``."""
    start = _LENGTH_BYTES + int.from_bytes(value[:_LENGTH_BYTES], "little")
    try:
        head = _HEAD.decode(value[_LENGTH_BYTES:start])
        if any(not 0 < len(item.item_id) <= MAX_ID_CHARS for item in head.items):
            raise ValueError("an answered item has no id")
        check_plain([head.coverage, head.freshness, head.timings_ms, head.context])
        if head.block == "none":
            return head
        candidates, items = _split(value[start:], head)
    except UNDECODABLE as error:
        raise BadEvent("unreadable", f"not a record of the request log: {error}") from None
    return msgspec.structs.replace(head, candidates=candidates, items=items, packed=0)


def _split(body: bytes, head: LoggedRequest) -> tuple[list[str], list[RankedItem]]:
    """Candidates and answered items of a record. Raises ``ValueError`` when they are not what the head says."""
    if head.block == "ids":
        return _IDS.decode(body), head.items
    width, count = np.dtype(_WIDTHS[head.block]), head.packed
    end = len(body) - count * (width.itemsize + _SCORE.itemsize)
    if count < 0 or end < 0:
        raise ValueError(f"{count} items are announced, {len(body)} bytes follow")
    candidates = [str(key) for key in _numbers(body[:end], head.block)]
    if not count:
        return candidates, head.items
    keys = np.frombuffer(body, width, count, end)
    scores = np.frombuffer(body, _SCORE, count, end + count * width.itemsize)
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    return candidates, [RankedItem(str(key), score) for key, score in zip(keys.tolist(), scores.tolist(), strict=True)]


def to_line(logged: LoggedRequest) -> bytes:
    """One line of an export, without its end: the contract's request line and what the log has beyond it."""
    return _ENCODER.encode(msgspec.structs.replace(logged, block="none"))
