"""What a retrieval upstream answers: keys of candidates, best first, and the ids of hashed keys.

application/x-aif-keys   u32 LE header length · header (JSON) · count u64 LE keys
application/json         {"ids": [id, …]}, for upstreams that do not speak the binary form
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from aif_stream.domain.events import Id
from aif_stream.domain.ids import HASHED_BIT, Keys, canonical_id, direct_id, is_hashed, key_of
from aif_stream.errors import BadInput, UpstreamError

MEDIA_TYPE: Final = "application/x-aif-keys"
_LENGTH_BYTES: Final = 4
# Longest id list that int() turns into numbers below DIRECT_LIMIT without looking at each: 10**18 < 2**62.
_SURELY_DIRECT_CHARS: Final = 18


@dataclass(frozen=True, slots=True)
class Candidates:
    """Keys (B) u64, best first; ``names`` has the id of each hashed key among them (and may have more)."""

    channel: str
    keys: Keys
    names: dict[int, str] = field(default_factory=dict)


class _Header(msgspec.Struct):
    channel: str
    count: int
    names: dict[str, str] = {}


class _Listing(msgspec.Struct):
    ids: list[Id]


_HEADER: Final = msgspec.json.Decoder(_Header)
_LISTING: Final = msgspec.json.Decoder(_Listing)


def encode_candidates(candidates: Candidates) -> bytes:
    """The binary form."""
    names = {f"{key:x}": text for key, text in candidates.names.items()}
    header = msgspec.json.encode(_Header(candidates.channel, int(candidates.keys.size), names))
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + candidates.keys.astype("<u8", copy=False).tobytes()


def decode_candidates(body: bytes, media_type: str, channel: str) -> Candidates:
    """Either form. Raises ``UpstreamError`` when the body is not what its media type says."""
    kind = media_type.partition(";")[0].strip().lower()
    try:
        if kind == MEDIA_TYPE:
            return _decode_binary(body)
        if kind == "application/json":
            keys, names = keys_and_names([canonical_id(i, "ids") for i in _LISTING.decode(body).ids])
            return Candidates(channel, keys, names)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, BadInput) as error:
        raise UpstreamError(f"channel {channel}: unreadable {kind} answer of {len(body)} bytes: {error}") from None
    raise UpstreamError(f"channel {channel}: answered {kind or 'no media type'}", mend=f"answer {MEDIA_TYPE}")


def _decode_binary(body: bytes) -> Candidates:
    start = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
    if len(body) < start:
        raise ValueError("the header is cut off")
    header = _HEADER.decode(body[_LENGTH_BYTES:start])
    if header.count < 0 or len(body) - start != 8 * header.count:
        raise ValueError(f"{header.count} keys are announced, {len(body) - start} bytes follow")
    keys = np.frombuffer(body, dtype="<u8", offset=start).astype(np.uint64, copy=False)
    names = {int(key, 16): text for key, text in header.names.items()}
    unnamed = set(keys[keys >= np.uint64(HASHED_BIT)].tolist()).difference(names)
    if unnamed:
        raise ValueError(f"{len(unnamed)} hashed keys have no name")
    return Candidates(header.channel, keys, names)


def keys_and_names(ids: list[str]) -> tuple[Keys, dict[int, str]]:
    """ids (B) -> their keys (B) u64 and the ids of those that are hashed. 10,000 decimals take 1.5 ms."""
    if not ids:
        return np.empty(0, np.uint64), {}
    joined = "".join(ids)
    if joined.isascii() and joined.isdigit() and max(map(len, ids)) <= _SURELY_DIRECT_CHARS:
        keys = np.fromiter(map(int, ids), dtype=np.uint64, count=len(ids))
        if not any(text[0] == "0" and text != "0" for text in ids):
            return keys, {}
    numbers = [key_of(text) for text in ids]
    names = {int(key): text for key, text in zip(numbers, ids, strict=True) if is_hashed(key)}
    return np.array(numbers, dtype=np.uint64), names


def ids_of(keys: list[int], names: dict[int, str]) -> list[str]:
    """``id_of`` of each. 500 numbers take 30 us, one by one three times as long."""
    if not names and max(keys, default=0) < HASHED_BIT:
        return list(map(str, keys))
    return [id_of(key, names) for key in keys]


def id_of(key: int, names: dict[int, str]) -> str:
    """The id of a key: itself, or its name. ``KeyError`` for a hashed key without one."""
    return names[key] if is_hashed(key) else direct_id(key)
