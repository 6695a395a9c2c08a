from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from aif_stream.errors import BadInput, Overloaded
from aif_stream.web import Handler, application, json_response, straight


class Heard(NamedTuple):
    """One whole answer."""

    status: int
    headers: dict[str, str]
    body: Any


async def asked(app: ASGIApp, *, method: str = "POST", path: str = "/asked") -> Heard:
    """What an application answers, also where it raises after that."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    with contextlib.suppress(RuntimeError):
        await app(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Heard(sent[0]["status"], headers, sent[1]["body"])


def both(handler: Handler) -> tuple[ASGIApp, ASGIApp]:
    """``handler`` at /asked by the routes, and by the straight way; beside it another at /other."""

    async def other(_: Request) -> Response:
        return json_response("other")

    routed = application([Route("/asked", handler, methods=["POST"]), Route("/other", other, methods=["POST"])])
    return routed, straight(routed, "/asked", handler)


def raising(error: Exception) -> Handler:
    async def handler(_: Request) -> Response:
        raise error

    return handler


async def fine(_: Request) -> Response:
    return json_response("fine")


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [("POST", "/asked", 200, b'"fine"'), ("POST", "/other", 200, b'"other"'), ("GET", "/asked", 405, None)],
)
async def test_the_straight_way_answers_its_path_and_leaves_the_rest_to_the_routes(
    method: str, path: str, status: int, body: bytes | None
) -> None:
    for app in both(fine):
        heard = await asked(app, method=method, path=path)
        assert heard.status == status
        assert body is None or heard.body == body


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(413, "too large", {"connection": "close"}), 413),
        (BadInput("wrong", field="k"), 422),
        (Overloaded("full", mend="later"), 503),
        (RuntimeError("bug"), 500),  # and raised, so that the server logs it
    ],
)
async def test_an_error_on_the_straight_way_is_the_same_problem_as_by_the_routes(error: Exception, status: int) -> None:
    routed, direct = [await asked(app) for app in both(raising(error))]
    assert direct == routed
    assert direct.status == status
    assert direct.headers["content-type"] == "application/problem+json"


async def test_a_bug_on_the_straight_way_is_the_servers_to_log() -> None:
    _, direct = both(raising(ValueError("another")))
    with pytest.raises(ValueError, match="another"):
        await asked(direct)
