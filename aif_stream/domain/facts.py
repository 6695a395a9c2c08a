"""The facts of an answer: all that its scores were made of, so that they can be recomputed minutes later.

    u32 LE length of the head · head (JSON) · history entries · their rows · rows of the items [· row of the cut]

Rows are bytes of the version's layout; only those of history entries that the version used are there.
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


@dataclass(frozen=True, slots=True)
class UserInputs:
    """What a user side was computed from: profile, the entries (n) that were used, their rows (n).

    ``newest``: the newest stored entry (1) when that is not among them (ages count from it), else empty (0).
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
    count history entries, ``row_bytes`` is the size of each row."""

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


@dataclass(frozen=True, slots=True)
class Facts:
    """``history_rows`` u8 (entries, row_bytes); ``item_rows`` u8 (items [+ 1 with a cut], row_bytes)."""

    head: FactsHead
    entries: History
    newest: History
    history_rows: bytes
    item_rows: bytes


def pack_facts(head: FactsHead, user: UserInputs, item_rows: Rows) -> bytes:
    """The stored value; ``item_rows`` in the order of ``head.items``, then the cut's."""
    data = msgspec.json.encode(head)
    return b"".join(
        (
            len(data).to_bytes(_LENGTH_BYTES, "little"),
            data,
            user.entries.tobytes(),
            user.newest.tobytes(),
            user.rows.tobytes(),
            item_rows.tobytes(),
        )
    )


_HEAD: Final = msgspec.json.Decoder(FactsHead)


def read_head(value: bytes) -> FactsHead:
    """The head alone. Raises ``BadEvent``."""
    return _split(value)[0]


def unpack_facts(value: bytes) -> Facts:
    """The reverse of ``pack_facts``. Raises ``BadEvent``."""
    head, at = _split(value)
    ends = np.cumsum(
        [
            at,
            head.entries * ENTRY_BYTES,
            head.newest * ENTRY_BYTES,
            head.entries * head.row_bytes,
            (len(head.items) + (head.cut is not None)) * head.row_bytes,
        ]
    ).tolist()
    if ends[-1] != len(value):
        raise BadEvent("unreadable", f"facts of {head.request_id} have {len(value)} bytes, their head says {ends[-1]}")
    return Facts(
        head,
        np.frombuffer(value[ends[0] : ends[1]], ENTRY),
        np.frombuffer(value[ends[1] : ends[2]], ENTRY),
        value[ends[2] : ends[3]],
        value[ends[3] :],
    )


def _split(value: bytes) -> tuple[FactsHead, int]:
    at = _LENGTH_BYTES + int.from_bytes(value[:_LENGTH_BYTES], "little")
    try:
        return _HEAD.decode(value[_LENGTH_BYTES:at]), at
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadEvent("unreadable", f"not the facts of an answer: {error}") from None
