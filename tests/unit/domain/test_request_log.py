"""Records of the request log: what goes in comes out, the sample is a function of the id, secrets stay out."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.request import RankedItem
from aif_stream.domain.request_log import (
    AnsweredRequest,
    LoggedRequest,
    decode_logged,
    encode_logged,
    is_sampled,
    pack,
    redact,
    to_line,
)
from aif_stream.errors import BadEvent
from tests.request_log_builders import answered

LIMIT = 1_000_000
# A record as it was written before items travelled as numbers: candidates 5, 7 and 300 as u16, the items in the head.
FORMER = (
    b"\x43\x01\x00\x00"
    b'{"request_id":"00ff","user_id":"ann","received_ms":1700000000000,"k":100,"model_version":"v1","named":true,'
    b'"items":[{"item_id":"7","score":0.10000000149011612}],'
    b'"coverage":{"candidates":3,"scored":3,"recomputed":0,"missing":0},'
    b'"freshness":{"age_ms":{"p50":1.0,"max":2.0},"stale":0},'
    b'"timings_ms":{"total":3.0},"block":"u16"}'
    b"\x05\x00\x07\x00\x2c\x01"
)
ids = st.one_of(st.integers(0, 2**62 - 1).map(str), st.text(min_size=1, max_size=12))


def record(done: AnsweredRequest, redacted: frozenset[str] = frozenset()) -> bytes:
    return encode_logged(done, redacted, LIMIT)


def read_back(done: AnsweredRequest) -> LoggedRequest:
    return decode_logged(record(done))


@given(candidates=st.lists(ids, max_size=40))
def test_candidates_come_back_as_ids_in_their_order(candidates: list[str]) -> None:
    found = read_back(answered(candidates))
    assert found.candidates == candidates


best = st.lists(st.tuples(ids, st.floats(width=32, allow_nan=False, allow_infinity=False)), max_size=40)


@given(best=best)
def test_answered_items_come_back_to_the_last_bit(best: list[tuple[str, float]]) -> None:
    items = [RankedItem(*each) for each in best]
    assert read_back(answered([item.item_id for item in items], items=items)).items == items


def test_what_was_written_with_items_in_the_head_is_still_read() -> None:
    found = decode_logged(FORMER)
    assert found.candidates == ["5", "7", "300"]
    assert found.items == [RankedItem("7", 0.10000000149011612)]
    assert found.timings_ms == {"total": 3.0}


@given(numbers=st.lists(st.one_of(st.integers(0, 2**24), st.integers(0, 2**62 - 1)), min_size=1, max_size=40))
def test_what_was_packed_beforehand_makes_the_same_record(numbers: list[int]) -> None:
    ids = [str(number) for number in numbers]
    done = answered(ids, items=[RankedItem(each, 0.5) for each in ids])
    assert record(done._replace(packed=pack(done.keys, done.best, done.scores))) == record(done)
    assert pack(answered(["a"]).keys, [], []) is None


@pytest.mark.parametrize(
    ("most", "block", "width"),
    [(60_000, "u16", 2), (2**24 - 1, "u24", 3), (2**24 + 9_999, "u32", 4), (10**12, "u64", 8)],
)
def test_numbers_travel_in_the_narrowest_width(most: int, block: str, width: int) -> None:
    value = record(answered([str(most - i) for i in range(10_000)]))
    found = decode_logged(value)
    assert found.block == block
    assert found.candidates == [str(most - i) for i in range(10_000)]
    assert found.items == [RankedItem("7", 0.5)]
    assert 10_000 * width < len(value) < 10_000 * width + 1_000


def test_candidates_that_do_not_fit_are_left_out_and_the_rest_stays() -> None:
    found = read_back(answered(["x" * 200 + str(i) for i in range(10_000)]))
    assert found.candidates is None
    assert found.block == "none"
    assert found.items == [RankedItem("7", 0.5)]


def test_a_line_has_the_fields_of_the_contract() -> None:
    line = orjson.loads(to_line(read_back(answered(["3", "a"], k=5))))
    wanted = {"request_id": "00ff", "user_id": "ann", "candidates": ["3", "a"], "k": 5, "model_version": "v1"}
    assert wanted.items() <= line.items()
    assert line["received_ms"] == 1_700_000_000_000
    assert line["items"] == [{"item_id": "7", "score": 0.5}]
    assert "block" not in line


def test_redacted_fields_are_gone_at_any_depth_and_named() -> None:
    context = {"email": "a@b", "page": "home", "device": {"ip": "1.2.3.4", "kind": "phone"}, "seen": [{"ip": "x"}]}
    kept, hidden = redact(context, frozenset({"email", "ip"}))
    assert kept == {"page": "home", "device": {"kind": "phone"}, "seen": [{}]}
    assert hidden == ["email", "ip"]
    assert redact(context, frozenset({"*"}))[0] == {}
    value = record(answered(["1"], context=context), frozenset({"email", "ip"}))
    assert b"a@b" not in value
    assert b"1.2.3.4" not in value
    assert decode_logged(value).redacted == ["email", "ip"]


@given(name=st.text(max_size=20), rate=st.floats(0, 1))
def test_the_sample_is_a_function_of_the_id_and_grows_with_the_rate(name: str, rate: float) -> None:
    assert is_sampled(name, rate) == is_sampled(name, rate)
    assert is_sampled(name, 1.0)
    assert not is_sampled(name, 0.0)
    assert is_sampled(name, rate) <= is_sampled(name, min(1.0, rate * 2))


def test_the_sample_has_about_its_share() -> None:
    assert 850 < sum(is_sampled(f"{i:016x}", 0.1) for i in range(10_000)) < 1_150


CUT = record(answered(["7"]))[:-7]  # keys and scores that the head announces are not all there
CUT_CANDIDATES = record(answered(["70000", "7"]))[:-1]


@pytest.mark.parametrize(
    "value", [CUT, CUT_CANDIDATES, b"", b"\x05\x00\x00\x00{}", b"\xff\xff\xff\xff", b"\x02\x00\x00\x00{}rest"]
)
def test_what_is_no_record_is_refused(value: bytes) -> None:
    with pytest.raises(BadEvent):
        decode_logged(value)
