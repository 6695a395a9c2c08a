from __future__ import annotations

import pytest

from aif_stream.domain.ids import HASHED_BIT
from aif_stream.domain.order import Order
from aif_stream.errors import IndexRefused
from aif_stream.index.item_codec import ItemWrite, StoredItem, pack_write, unpack_item


def stored_form(write: ItemWrite) -> bytes:
    return pack_write(write, now_ms=77)[12:]


def test_a_direct_key_does_not_store_its_id() -> None:
    value = stored_form(ItemWrite(7, "7", Order(5, 6), b"{}"))
    assert len(value) == 16 + 1 + 2 + 2
    assert unpack_item(7, value) == StoredItem(7, "7", Order(5, 6), False, b"{}")


def test_a_hashed_key_stores_its_id() -> None:
    key = HASHED_BIT | 5
    assert unpack_item(key, stored_form(ItemWrite(key, "Ärger", Order(5, 6), b"{}"))).id_text == "Ärger"


def test_a_removal_stores_when_it_was_written() -> None:
    found = unpack_item(7, stored_form(ItemWrite(7, "7", Order(5, 6), None)))
    assert (found.removed, found.payload, found.removed_ms) == (True, b"", 77)


@pytest.mark.parametrize("value", [b"", b"short", bytes(16) + b"\x01\x00\x00" + b"abc", bytes(17) + b"\xff\xff"])
def test_foreign_bytes_are_refused(value: bytes) -> None:
    with pytest.raises(IndexRefused, match="item 7"):
        unpack_item(7, value)
    with pytest.raises(IndexRefused):
        unpack_item(HASHED_BIT | 7, b"\0" * 19)
