"""Records of ``aif.n2o-rows``: the rows of one batch and version that Redis has acknowledged.

CloudEvents binary mode; value: ``layout.record`` entries (key u64, row), tombstones as full rows. Updates that the
batch left out, because a newer one of their item was in it, become visible with it: header ``superseded``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.decoding import MAX_TIME_MS, fault_of, whole_number
from aif_stream.domain.envelope import BINARY, Envelope, from_headers, to_headers
from aif_stream.domain.ids import Keys
from aif_stream.domain.row import RowLayout, Rows
from aif_stream.errors import BadEvent

ROWS_WRITTEN: Final = "aif.n2o.rows-written"
SOURCE: Final = "aif.nearline"
LIVE: Final = "live"
SUPERSEDED: Final = "superseded"
SUPERSEDED_ENTRY: Final = np.dtype([("row", "<u4"), ("began_ms", "<u8")])
"""One update that never had a row: the place in the record of the row that came instead, and when its way began."""
NONE_SUPERSEDED: Final = np.empty(0, SUPERSEDED_ENTRY)


class Stamps(NamedTuple):
    """``appended_ms``: append time of the batch's oldest event; ``committed_ms``: when Redis acknowledged."""

    appended_ms: int
    committed_ms: int


class ChangeHead(NamedTuple):
    """What the headers of a record say; enough to skip the versions that one does not mirror.

    ``lane``: "live" when the rows are of events just seen; others (a rebuild, a winner published again) say
    nothing about freshness.
    """

    version: str
    layout: str
    lane: str
    stamps: Stamps
    superseded: bytes = b""


def layout_name(layout: RowLayout) -> str:
    """Widths as one word, to recognise rows of another shape."""
    widths = f"h{layout.hidden}.t{layout.width}.w{layout.bridges}.s{layout.signature_bits}"
    return widths + ".k" * layout.second_key + ".c" * layout.coded


def encode_rows(
    version: str,
    layout: RowLayout,
    keys: Keys,
    rows: Rows,
    stamps: Stamps,
    *,
    lane: str = LIVE,
    superseded: NDArray[np.void] = NONE_SUPERSEDED,
) -> tuple[list[tuple[str, bytes]], bytes]:
    """Headers and value of one record for keys u64 (n), Rows (n); ``superseded``: SUPERSEDED_ENTRY (m)."""
    records = np.empty(len(keys), dtype=layout.record)
    records["key"], records["row"] = keys, rows
    extensions = {
        "modelversion": version,
        "layout": layout_name(layout),
        "lane": lane,
        "appendedms": str(min(max(0, stamps.appended_ms), MAX_TIME_MS)),
    }
    # CloudEvents ids are unique per source; nobody looks this one up, and the time is already here.
    envelope = Envelope(ROWS_WRITTEN, f"{version}-{stamps.committed_ms}", SOURCE, stamps.committed_ms, extensions)
    headers = to_headers(envelope, BINARY)
    if superseded.size:
        headers.append((SUPERSEDED, superseded.tobytes()))
    return headers, records.tobytes()


def decode_head(headers: Sequence[tuple[str, bytes]]) -> ChangeHead:
    """Raises ``BadEvent`` when the headers are not those of a change record."""
    try:
        return _head(headers)
    except Exception as error:  # noqa: BLE001  # the edge of one record
        raise fault_of(error) from None


def _head(headers: Sequence[tuple[str, bytes]]) -> ChangeHead:
    envelope = from_headers(headers)
    if envelope.type != ROWS_WRITTEN:
        raise BadEvent("envelope", f"{envelope.type!r:.80} is no {ROWS_WRITTEN}", field="ce_type")
    try:
        names = envelope.extensions
        appended_ms = whole_number(names["appendedms"], MAX_TIME_MS)
        if appended_ms is None:
            raise BadEvent("envelope", "not ms since the epoch", field="ce_appendedms")
        stamps = Stamps(appended_ms, envelope.time_ms)
        superseded = next((value for name, value in headers if name == SUPERSEDED and value), b"")
        return ChangeHead(names["modelversion"], names["layout"], names["lane"], stamps, superseded)
    except KeyError as error:
        raise BadEvent("envelope", "header is missing", field=f"ce_{error.args[0]}") from None


def decode_rows(head: ChangeHead, layout: RowLayout, value: bytes) -> tuple[Keys, Rows]:
    """keys u64 (n), Rows (n), views of ``value``. Raises ``BadEvent`` for another layout or a cut value."""
    if head.layout != layout_name(layout):
        raise BadEvent("layout", f"rows are {head.layout:.80}, version {head.version} has {layout_name(layout)}")
    if len(value) % layout.record.itemsize:
        raise BadEvent("unreadable", f"{len(value)} bytes are no whole number of {layout.record.itemsize}-byte records")
    records = np.frombuffer(value, dtype=layout.record)
    return records["key"], records["row"]


def decode_superseded(head: ChangeHead, count: int) -> NDArray[np.void]:
    """SUPERSEDED_ENTRY (m) beside a record of ``count`` rows. Raises ``BadEvent`` for a cut or a wrong header."""
    if len(head.superseded) % SUPERSEDED_ENTRY.itemsize:
        raise BadEvent("unreadable", f"no whole number of {SUPERSEDED_ENTRY.itemsize}-byte entries", field=SUPERSEDED)
    found = np.frombuffer(head.superseded, SUPERSEDED_ENTRY)
    if found.size and int(found["row"].max()) >= count:
        raise BadEvent("unreadable", f"names a row beyond the {count} of the record", field=SUPERSEDED)
    return found
