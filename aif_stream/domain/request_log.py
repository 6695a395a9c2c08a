"""The request log: what was asked and answered, as one record of ``aif.requests`` and as one line of an export.

    u32 LE length of the head · head (JSON) · candidates

Candidates that are numbers travel in the narrowest of u16, u32, u64: 10,000 take 20-80 KB and a microsecond each way;
others travel as a JSON array of their ids. Kafka compresses whole batches, so nothing is compressed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec
import numpy as np

from aif_stream.domain.candidates import id_of
from aif_stream.domain.ids import HASHED_BIT, Keys
from aif_stream.domain.request import RankAnswer, RankedItem, RankRequest
from aif_stream.errors import BadEvent

REQUEST_EVENT: Final = "aif.request.answered"
Block = Literal["u16", "u32", "u64", "ids", "none"]
_WIDTHS: Final[dict[Block, str]] = {"u16": "<u2", "u32": "<u4", "u64": "<u8"}
_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One request with its answer. ``keys``: candidates u64, in parts, in the order of scoring; ``names``: ids of
    the hashed keys among them (and maybe more)."""

    request: RankRequest
    answer: RankAnswer
    received_ms: int
    keys: Sequence[Keys]
    names: Mapping[int, str]


class LoggedRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The head of a record, and with ``candidates`` the line of an export (contract: request).

    ``coverage``, ``freshness`` and ``timings_ms`` are the answer's, not read here: a record outlives their changes.
    """

    request_id: str
    user_id: str
    received_ms: int
    k: int
    model_version: str
    named: bool
    items: list[RankedItem]
    coverage: Any
    freshness: Any
    degraded: list[str] = []
    timings_ms: Any
    deadline_ms: float | None = None
    context: dict[str, Any] = {}
    redacted: list[str] = []
    block: Block = "none"
    candidates: list[str] | None = None


_HEAD: Final = msgspec.json.Decoder(LoggedRequest)
_IDS: Final = msgspec.json.Decoder(list[str])
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
    block, body = _pack(done)
    context, hidden = redact(request.context, redacted) if request.context else ({}, [])
    head = LoggedRequest(
        request_id=answer.request_id,
        user_id=request.user,
        received_ms=done.received_ms,
        k=request.k,
        model_version=answer.model_version,
        named=request.candidates is not None,
        items=answer.items,
        coverage=answer.coverage,
        freshness=answer.freshness,
        degraded=answer.degraded,
        timings_ms=answer.timings_ms,
        deadline_ms=request.deadline_ms,
        context=context,
        redacted=hidden,
        block=block,
    )
    data = _ENCODER.encode(head)
    if _LENGTH_BYTES + len(data) + len(body) > limit_bytes:
        data, body = _ENCODER.encode(msgspec.structs.replace(head, block="none")), b""
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data + body


def _pack(done: AnsweredRequest) -> tuple[Block, bytes]:
    keys = np.concatenate(done.keys) if done.keys else np.empty(0, np.uint64)
    most = int(keys.max()) if keys.size else 0
    if most >= HASHED_BIT:
        names = dict(done.names)
        return "ids", _ENCODER.encode([id_of(key, names) for key in keys.tolist()])
    block: Block = "u16" if most < 1 << 16 else "u32" if most < 1 << 32 else "u64"
    return block, keys.astype(_WIDTHS[block]).tobytes()


def decode_logged(value: bytes) -> LoggedRequest:
    """A record with its candidates as ids (None when they were left out). Raises ``BadEvent``."""
    start = _LENGTH_BYTES + int.from_bytes(value[:_LENGTH_BYTES], "little")
    try:
        head = _HEAD.decode(value[_LENGTH_BYTES:start])
        if head.block == "none":
            return head
        if head.block == "ids":
            ids = _IDS.decode(value[start:])
        else:
            ids = [str(key) for key in np.frombuffer(value, _WIDTHS[head.block], offset=start).tolist()]
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise BadEvent("unreadable", f"not a record of the request log: {error}") from None
    return msgspec.structs.replace(head, candidates=ids)


def to_line(logged: LoggedRequest) -> bytes:
    """One line of an export, without its end: the contract's request line and what the log has beyond it."""
    return _ENCODER.encode(msgspec.structs.replace(logged, block="none"))
