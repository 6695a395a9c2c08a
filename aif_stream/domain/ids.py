"""Ids are strings at every edge and unsigned 64-bit keys inside.

Canonical decimals below 2**62 ("7", not "007") map to themselves; every other string maps to
``2**63 | hash62``. The two ranges do not meet, so a hashed key is recognised by its top bit, and
whoever has to answer with such an id keeps the string beside the key.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, NewType

import numpy as np
from numpy.typing import NDArray

from aif_stream.errors import BadInput

Key = NewType("Key", int)
Keys = NDArray[np.uint64]

DIRECT_LIMIT: Final = 1 << 62
HASHED_BIT: Final = 1 << 63
# Longer ids are almost surely a mistake (a URL, a JSON text) and would be copied into every row of Redis.
MAX_ID_CHARS: Final = 256
_MAX_ID_BITS: Final = 850  # 2**850 has 256 digits


def canonical_id(value: object, field: str) -> str:
    """The id as a string. JSON integers >= 0 are accepted; raises ``BadInput`` naming ``field``."""
    if isinstance(value, str):
        if not value:
            raise BadInput("an id may not be empty", field=field)
        if len(value) > MAX_ID_CHARS:
            raise BadInput(f"an id has at most {MAX_ID_CHARS} characters, this one has {len(value)}", field=field)
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"an id is a string or an integer >= 0, not {value!r:.40}", field=field)
    if value < 0:
        raise BadInput("an id may not be negative", field=field)
    if value.bit_length() > _MAX_ID_BITS:  # str() of a huge integer is slow, then refused by Python itself
        raise BadInput(f"an id has at most {MAX_ID_CHARS} characters", field=field)
    return str(value)


def key_of(text: str) -> Key:
    """The 64-bit key of an id (see the module's rule). Repeatable on every machine."""
    if text.isascii() and text.isdigit() and (text[0] != "0" or text == "0") and len(text) <= 19:
        number = int(text)
        if number < DIRECT_LIMIT:
            return Key(number)
    digest = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    return Key(HASHED_BIT | (digest & (DIRECT_LIMIT - 1)))


def is_hashed(key: int) -> bool:
    """True when the id cannot be read back from the key."""
    return key >= HASHED_BIT


def direct_id(key: int) -> str:
    """The id of a key that is not hashed."""
    if is_hashed(key):
        raise BadInput(f"key {key} is a hash: its id is kept beside it")
    return str(key)


def keys_of(ids: Iterable[str]) -> Keys:
    """Keys of many ids, u64 (B)."""
    return np.fromiter((key_of(text) for text in ids), dtype=np.uint64)


def key_bytes(key: int) -> bytes:
    """The 8-byte field name of a key in Redis (little-endian)."""
    return key.to_bytes(8, "little")
