"""The facts of an answer: all that its scores were made of, so that they can be recomputed minutes later.

    the answer's own part:  u32 LE length of the head · head (JSON) · rows of the items [· row of the cut]
    the user's part:        history entries [· the newest] · rows of the entries

The user's part (0.26 MB of 1,000 entries) is kept once for all answers that were made of it; the head names it. Rows
are bytes of the version's layout; only those of history entries that the version used are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from aif_stream.domain.events import Attribute
from aif_stream.domain.history import ENTRY, ENTRY_BYTES, History
from aif_stream.domain.row import Rows
from aif_stream.errors import BadEvent

_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class UserInputs:
    """What a user side was computed from: profile, the entries (n) that were used, their rows (n).

    ``newest``: the newest stored entry (1) when that is not among them (ages count from it), else empty (0). Compared
    by identity: a user side that serves many requests has one of them.
    """

    attributes: Mapping[str, Attribute] | None
    entries: History
    rows: Rows
    newest: History

    @property
    def nbytes(self) -> int:
        return int(self.entries.nbytes + self.rows.nbytes)


class FactItem(msgspec.Struct, frozen=True):
    """One item of the answer, or the best that was left out."""

    item_id: str
    score: float


class FactsHead(msgspec.Struct, frozen=True, kw_only=True):
    """``cut``: the best item that was not in the answer; None when nothing was left out. ``entries`` and ``newest``
    count history entries, ``row_bytes`` is the size of each row. ``user_part``: under which name the user's part is
    kept; "" for one without entries, which has none. ``issued_ms``: the time in the ids of its explanations."""

    request_id: str
    user_id: str
    version: str
    answered_ms: int
    k: int
    items: list[FactItem]
    cut: FactItem | None
    attributes: dict[str, Attribute] | None
    context: dict[str, Any]
    entries: int
    newest: int
    row_bytes: int
    user_part: str = ""
    issued_ms: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """``history_rows`` u8 (entries, row_bytes); ``item_rows`` u8 (items [+ 1 with a cut], row_bytes)."""

    head: FactsHead
    entries: History
    newest: History
    history_rows: bytes
    item_rows: bytes


def pack_facts(head: FactsHead, item_rows: Rows) -> bytes:
    """The answer's own part; ``item_rows`` in the order of ``head.items``, then the cut's."""
    data = msgspec.json.encode(head)
    return b"".join((len(data).to_bytes(_LENGTH_BYTES, "little"), data, item_rows.tobytes()))


def pack_user(user: UserInputs) -> bytes:
    """The user's part."""
    return b"".join((user.entries.tobytes(), user.newest.tobytes(), user.rows.tobytes()))


_HEAD: Final = msgspec.json.Decoder(FactsHead)


def read_head(value: bytes) -> FactsHead:
    """The head alone. Raises ``BadEvent``."""
    return _split(value)[0]


def unpack_facts(value: bytes, user: bytes) -> Facts:
    """The reverse of ``pack_facts`` and ``pack_user``. Raises ``BadEvent``."""
    head, at = _split(value)
    items = (len(head.items) + (head.cut is not None)) * head.row_bytes
    newest_at = head.entries * ENTRY_BYTES
    rows_at = newest_at + head.newest * ENTRY_BYTES
    expected = at + items + rows_at + head.entries * head.row_bytes
    if at + items != len(value) or expected != len(value) + len(user):
        found = f"{len(value)} bytes and {len(user)} of the user"
        raise BadEvent("unreadable", f"facts of {head.request_id} have {found}, their head says {expected} in all")
    return Facts(
        head,
        np.frombuffer(user[:newest_at], ENTRY),
        np.frombuffer(user[newest_at:rows_at], ENTRY),
        user[rows_at:],
        value[at:],
    )


def _split(value: bytes) -> tuple[FactsHead, int]:
    at = _LENGTH_BYTES + int.from_bytes(value[:_LENGTH_BYTES], "little")
    try:
        return _HEAD.decode(value[_LENGTH_BYTES:at]), at
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadEvent("unreadable", f"not the facts of an answer: {error}") from None
