from __future__ import annotations

import numpy as np
import pytest

from aif_stream.errors import BadEvent
from aif_stream.index.changelog import (
    LIVE,
    SUPERSEDED,
    SUPERSEDED_ENTRY,
    ChangeHead,
    Stamps,
    decode_head,
    decode_rows,
    decode_superseded,
    encode_rows,
    layout_name,
)
from tests.index_builders import LAYOUT, OTHER_LAYOUT, item, rows_for, u64


def record() -> tuple[list[tuple[str, bytes]], bytes]:
    rows = rows_for([item("1", 5), item("2", 6)])
    return encode_rows("v1", LAYOUT, u64(1, 1 << 63), rows, Stamps(1_700_000_000_001, 1_700_000_000_002))


def test_a_record_comes_back_whole() -> None:
    headers, value = record()
    head = decode_head(headers)
    assert head == ChangeHead("v1", layout_name(LAYOUT), LIVE, Stamps(1_700_000_000_001, 1_700_000_000_002))
    keys, rows = decode_rows(head, LAYOUT, value)
    assert keys.tolist() == [1, 1 << 63]
    assert np.array_equal(rows, rows_for([item("1", 5), item("2", 6)]))


def test_another_layout_is_told_before_its_bytes_are_read() -> None:
    headers, value = record()
    with pytest.raises(BadEvent) as caught:
        decode_rows(decode_head(headers), OTHER_LAYOUT, value)
    assert caught.value.reason == "layout"


def test_a_cut_record_is_unreadable() -> None:
    headers, value = record()
    with pytest.raises(BadEvent, match="whole number"):
        decode_rows(decode_head(headers), LAYOUT, value[:-1])


@pytest.mark.parametrize("name", ["ce_modelversion", "ce_layout", "ce_lane", "ce_appendedms", "ce_type"])
def test_a_missing_header_is_named(name: str) -> None:
    headers, _ = record()
    with pytest.raises(BadEvent) as caught:
        decode_head([pair for pair in headers if pair[0] != name])
    assert caught.value.field == name


def test_another_event_type_is_not_taken_for_rows() -> None:
    headers, _ = record()
    other = [(n, b"aif.item.upserted" if n == "ce_type" else v) for n, v in headers]
    with pytest.raises(BadEvent) as caught:
        decode_head(other)
    assert caught.value.field == "ce_type"


def test_updates_without_a_row_of_their_own_travel_beside_the_rows_that_came_instead() -> None:
    updates = np.array([(1, 5), (0, 6), (1, 7)], SUPERSEDED_ENTRY)
    rows = rows_for([item("1", 8), item("2", 9)])
    headers, value = encode_rows("v1", LAYOUT, u64(1, 2), rows, Stamps(1, 2), superseded=updates)
    head = decode_head(headers)
    assert decode_superseded(head, 2).tolist() == [(1, 5), (0, 6), (1, 7)]
    assert np.array_equal(decode_rows(head, LAYOUT, value)[1], rows)
    assert not decode_superseded(decode_head(record()[0]), 2).size


def test_an_update_of_a_row_that_is_not_there_or_a_cut_header_is_refused() -> None:
    updates = np.array([(2, 5)], SUPERSEDED_ENTRY)
    rows = rows_for([item("1", 8), item("2", 9)])
    head = decode_head(encode_rows("v1", LAYOUT, u64(1, 2), rows, Stamps(1, 2), superseded=updates)[0])
    for wrong in (head, head._replace(superseded=head.superseded[:-1])):
        with pytest.raises(BadEvent) as caught:
            decode_superseded(wrong, 2)
        assert caught.value.field == SUPERSEDED
