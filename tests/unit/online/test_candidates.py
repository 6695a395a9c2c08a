from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.candidates import (
    MEDIA_TYPE,
    Candidates,
    decode_candidates,
    encode_candidates,
    id_of,
    keys_and_names,
)
from aif_stream.domain.ids import key_of
from aif_stream.errors import UpstreamError

IDS = st.lists(st.text(min_size=1, max_size=12) | st.integers(0, 2**64).map(str) | st.just("007"), max_size=40)


@given(IDS)
def test_ids_come_back_from_keys_and_names_through_the_binary_form(ids: list[str]) -> None:
    keys, names = keys_and_names(ids)
    assert keys.tolist() == [key_of(text) for text in ids]
    body = encode_candidates(Candidates("popular", keys, names))
    found = decode_candidates(body, MEDIA_TYPE, "popular")
    assert found.channel == "popular"
    assert [id_of(key, found.names) for key in found.keys.tolist()] == ids


@given(IDS)
def test_the_json_form_says_the_same(ids: list[str]) -> None:
    found = decode_candidates(json.dumps({"ids": ids}).encode(), "application/json; charset=utf-8", "c")
    assert [id_of(key, found.names) for key in found.keys.tolist()] == ids


@given(st.binary(max_size=200), st.sampled_from([MEDIA_TYPE, "application/json", "text/html", ""]))
def test_any_other_bytes_are_an_upstream_error_or_candidates_never_anything_else(body: bytes, kind: str) -> None:
    try:
        found = decode_candidates(body, kind, "c")
    except UpstreamError:
        return
    assert found.keys.dtype == np.uint64


@given(IDS.filter(lambda ids: len(ids) > 0), st.integers(1, 400))
def test_a_cut_answer_is_refused(ids: list[str], cut: int) -> None:
    keys, names = keys_and_names(ids)
    body = encode_candidates(Candidates("c", keys, names))
    with pytest.raises(UpstreamError):
        decode_candidates(body[: max(0, len(body) - cut)], MEDIA_TYPE, "c")


def test_a_hashed_key_without_its_name_is_refused() -> None:
    body = encode_candidates(Candidates("c", np.array([key_of("shoe")], np.uint64), {}))
    with pytest.raises(UpstreamError, match="have no name"):
        decode_candidates(body, MEDIA_TYPE, "c")
