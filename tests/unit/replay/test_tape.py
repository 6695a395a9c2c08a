"""The tape: lines become requests, in the order of their arrival."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from aif_stream.errors import BadInput
from aif_stream.replay.tape import Options, Tape


def line(**fields: Any) -> bytes:
    return orjson.dumps({"user_id": 7, "received_ms": 1_000, **fields})


def body(tape: Tape, i: int, options: Options) -> Any:
    with tape.bodies(options) as bodies:
        return orjson.loads(bodies[i])


def test_requests_are_played_in_the_order_of_their_arrival() -> None:
    with Tape([line(received_ms=t, user_id=str(t)) for t in (30, 10, 20)]) as tape:
        assert tape.received_ms.tolist() == [10, 20, 30]
        with tape.bodies(Options()) as bodies:
            assert [orjson.loads(bodies[i])["user_id"] for i in range(3)] == ["10", "20", "30"]


def test_a_request_is_sent_as_it_was_but_on_the_version_that_answers_now() -> None:
    logged = line(
        candidates=[3, "a"], k=5, deadline_ms=80, context={"page": "home"}, model_version="v1", request_id="r"
    )
    with Tape([logged]) as tape:
        context = {"page": "home"}
        wanted = {
            **{"user_id": 7, "k": 5, "candidates": [3, "a"], "deadline_ms": 80.0, "context": context},
            "replay": True,
        }
        assert body(tape, 0, Options()) == wanted
        assert body(tape, 0, Options(model_version="v2")) == {**wanted, "model_version": "v2"}


def test_candidates_that_retrieval_named_may_be_left_to_it_again_and_the_callers_own_never() -> None:
    with Tape([line(candidates=[1], named=False), line(candidates=[2], named=True)]) as tape:
        assert "candidates" not in body(tape, 0, Options(retrieve=True))
        assert body(tape, 1, Options(retrieve=True))["candidates"] == [2]
        assert body(tape, 0, Options())["candidates"] == [1]


def test_the_logged_answer_has_ids_as_strings() -> None:
    with Tape([line(items=[{"item_id": 3, "score": 0.5}]), line()]) as tape:
        logged = tape.logged(0)
        assert logged is not None
        assert [(item.item_id, item.score) for item in logged.items] == [("3", 0.5)]
        assert tape.logged(1) is None
        assert tape.answered == 1


@pytest.mark.parametrize("reason", ["deadline:score", "user", "join"])
def test_an_answer_that_fell_short_is_not_whole(reason: str) -> None:
    with Tape([line(items=[], degraded=[reason]), line(items=[], degraded=["freshness"])]) as tape:
        assert [a.whole for i in range(2) if (a := tape.logged(i)) is not None] == [False, True]


def test_a_line_that_is_no_request_is_named_with_its_number() -> None:
    with pytest.raises(BadInput, match="line 3"):
        Tape([line(), b"", b'{"user_id": 1}'])
    with pytest.raises(BadInput, match="line 1"):
        Tape([b"not json"])
    with pytest.raises(BadInput, match="no request"):
        Tape([b"\n"])
