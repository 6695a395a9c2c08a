from __future__ import annotations

import numpy as np
import pytest

from aif_stream.errors import BadEvent
from aif_stream.index.changelog import LIVE, ChangeHead, Stamps, decode_head, decode_rows, encode_rows, layout_name
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
