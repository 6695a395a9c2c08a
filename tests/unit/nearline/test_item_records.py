"""Item updates in columns: the compiled way gives what the careful way gives, and refuses what it is not sure of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.bus.events import NEARLINE_SOURCE, event_headers, winner_headers
from aif_stream.bus.salvage import Plain
from aif_stream.domain.events import EventType
from aif_stream.domain.order import Order
from aif_stream.kernels.native import Level, best_level
from aif_stream.model.config import Field, ModelConfig
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.item_records import ItemRecords, newest_records, read_records, writes_of
from aif_stream.nearline.newest import coalesce
from aif_stream.nearline.work import Taken

NOW_MS = 1_700_000_000_000
LIMIT = 2_000
compiled = pytest.mark.skipif(best_level() is Level.NUMPY, reason="no compiled kernels")
MODEL = ModelVersion.init(
    ModelConfig(
        content_width=2,
        categories=("shoes", "Hüte", "x"),
        item_fields=(
            Field("brand", "label", ("a", "Ä", "", "12")),
            Field("tags", "labels", ("a", "b", "12")),
            Field("price", "number", mean=2.0, scale=3.0),
        ),
    ),
    seed=1,
    name="v",
)

texts = st.sampled_from(["a", "b", "Ä", "", "12", 'q"', "\n", "x" * 300, "\ud800"])
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
attribute = texts | numbers | st.lists(texts, max_size=3) | st.none() | st.booleans()
vectors = st.none() | st.lists(numbers | st.floats(-9, 9).map(lambda x: round(x, 4)), max_size=3)
lines = st.fixed_dictionaries(
    {
        "item_id": st.sampled_from(
            ["7", "0", "007", "9" * 19, str(2**62), str(2**62 - 1), "ä", "", 7, -1, 2**62, 10**19, 7.0, 1e3, True]
        )
    },
    optional={
        "category": st.sampled_from(["shoes", "Hüte", "", 5, None, "other"]),
        "attributes": st.dictionaries(st.sampled_from(["brand", "tags", "price", "else", "Ä"]), attribute),
        "content_vector": vectors,
        "event_time_ms": st.sampled_from([None, 0, 5, -1, 1.5, 10**15]),
        "title": st.recursive(attribute, lambda some: st.lists(some, max_size=2), max_leaves=4),
    },
)
good = st.fixed_dictionaries(
    {
        "item_id": st.sampled_from(["7", "0", "8", str(2**62 - 1), 7, 0, 10**18 - 1]),
        "category": st.sampled_from(["shoes", "Hüte", "other", 5, 0]),
        "attributes": st.fixed_dictionaries(
            {},
            optional={
                "brand": st.sampled_from(["a", "Ä", "", "12", "?", 12, ["a"]]),
                "tags": st.lists(st.sampled_from(["a", "b", "?"]), max_size=3) | st.sampled_from(["a", 12]),
                "price": st.sampled_from([1, 2.5, -0.0, 1e22, 1e300, 0.1, 123456.789, "cheap"]),
                "else": attribute,
            },
        ),
        "content_vector": st.none() | st.lists(st.floats(-9, 9), min_size=1, max_size=3),
    }
)
UPSERT = event_headers(EventType.ITEM_UPSERTED, "1", "shop", NOW_MS)
ODD = [None, b"", b"{}", b"[1]", b'{"item_id":"7","category":"x"} ', b'{"item_id":"7","category":"x","item_id":"8"}']
headers = st.sampled_from(
    [
        event_headers(EventType.ITEM_UPSERTED, "1", "shop", NOW_MS),
        event_headers(EventType.ITEM_UPSERTED, "1", "shop", NOW_MS - 86_400_000 * 400),
        event_headers(EventType.ITEM_UPSERTED, "1", "shop", NOW_MS + 86_400_000),
        event_headers(EventType.ITEM_REMOVED, "1", "shop", NOW_MS),
        winner_headers(EventType.ITEM_UPSERTED, "1", NEARLINE_SOURCE, Order(NOW_MS, 1)),
        [("ce_time", b"2023-11-14T23:13:20+01:00"), *event_headers(EventType.ITEM_UPSERTED, "1", "s", 5)[:4]],
        [*event_headers(EventType.ITEM_UPSERTED, "1", "shop", 5), ("ce_time", b"2024-02-29T00:00:00.001Z")],
        [
            (n, b"2023-02-29T00:00:00.001Z" if n == "ce_time" else v)
            for n, v in event_headers(EventType.ITEM_UPSERTED, "1", "s", 5)
        ],
        [],
    ]
)


@st.composite
def records(draw: st.DrawFn) -> Plain:
    line = draw(good | lines)
    value: bytes | None = json.dumps(line, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        value = draw(
            st.sampled_from(
                [None, b"", b"{}", b'{"item_id":"7","category":"x"} ', b'{"item_id":"7","item_id":"8"}', b"[1]"]
            )
        )
    elif value is not None and draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(value) - 1))
        value = value[:at] + draw(st.sampled_from([b"", b"\xff", b" ", b",", b'"', b"\\u0041"])) + value[at + 1 :]
    key = str(line["item_id"]).encode("utf-8", "surrogatepass") if draw(st.integers(0, 9)) else b"other"
    ours = draw(headers) if draw(st.booleans()) else UPSERT
    return Plain("aif.item-updates", 0, draw(st.integers(0, 9)), NOW_MS, 1, key, value, ours)


def _read(some: Sequence[Any], level: Level | None) -> tuple[ItemRecords, list[Any]]:
    return read_records(some, 300_000, LIMIT, level=level)


def _rows(read: ItemRecords) -> dict[int, bytes]:
    """Row of each upsert by its place, from columns where they give one."""
    found: dict[int, bytes] = {}
    plain = np.array([i for i in range(len(read)) if i not in read.events], dtype=np.int64)
    if read.columns is not None and len(plain):
        (rows, _), done = MODEL.item_rows_of(
            read.columns, read.sources[plain], read.times[plain], read.offsets[plain], 5
        )
        found |= {int(i): row.tobytes() for i, row in zip(plain[done], rows, strict=True)}
    for i in range(len(read)):
        if i not in found and read.payload(i) is not None:
            at = slice(i, i + 1)
            found[i] = MODEL.item_rows([read.item(i)], read.times[at], read.offsets[at], 5).rows[0].tobytes()
    return found


@compiled
@settings(max_examples=60, deadline=None)
@given(st.lists(records(), max_size=8))
def test_the_compiled_way_gives_what_the_careful_way_gives(some: list[Plain]) -> None:
    ours, poison = _read(some, Level.PORTABLE)
    plain, refused = _read(some, Level.NUMPY)
    assert [(p.record, p.reason, p.problem) for p in poison] == [(p.record, p.reason, p.problem) for p in refused]
    assert list(ours.records) == list(plain.records)
    for name in ("keys", "times", "offsets", "own", "appended_ms", "again"):
        assert getattr(ours, name).tolist() == getattr(plain, name).tolist()
    every = np.arange(len(ours))
    one, other = writes_of(ours, every), writes_of(plain, every)
    assert (one.payloads, one.names) == (other.payloads, other.names)
    assert [ours.id_text(i) for i in range(len(ours))] == [plain.id_text(i) for i in range(len(plain))]
    assert _rows(ours) == _rows(plain)


@compiled
@pytest.mark.parametrize(("item_id", "category"), [("7", "shoes"), (7, 12)])
def test_usual_updates_are_read_in_c(item_id: str | int, category: str | int) -> None:
    line: dict[str, Any] = {"item_id": item_id, "category": category}
    line["attributes"] = {"brand": "Ä", "tags": ["a", "b"], "price": 1.25}
    line |= {"content_vector": [0.5, -1.75], "title": 'über "alles"\n', "stock": {"a": [1, None, True]}}
    value = json.dumps(line, ensure_ascii=False).encode()
    record = Plain("t", 0, 4, NOW_MS, 1, b"7", value, UPSERT)
    read, _ = _read([record] * 3, None)
    assert not read.events
    assert read.times.tolist() == [NOW_MS] * 3


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), max_size=12))
def test_the_newest_of_each_item_is_what_coalescing_one_by_one_finds(some: list[Plain]) -> None:
    read, _ = _read(some, Level.NUMPY)
    found = newest_records(read)
    expected = coalesce([Taken(record, read.events[at]) for at, record in enumerate(read.records)])
    assert len(found.chosen) == len(expected)
    by_id = {held.taken.event.id_text: held for held in expected}
    for group, (chosen, last) in enumerate(zip(found.chosen.tolist(), found.last.tolist(), strict=True)):
        held = by_id[read.id_text(chosen)]
        assert read.events[chosen] is held.taken.event
        assert read.events[last] is held.last.event
        own = [i for i in range(len(read)) if read.id_text(i) == read.id_text(chosen)]
        assert np.flatnonzero(found.owner == group).tolist() == own
        assert found.several[group] == (len(own) > 1)
