"""What every role that speaks HTTP answers alike: problem+json, limits, health, metrics."""

from __future__ import annotations

import http
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aif_stream.errors import (
    AifError,
    BadInput,
    BusUnavailable,
    IndexUnavailable,
    Overloaded,
    PublishError,
    TopicError,
    UpstreamError,
    VersionError,
)

PROBLEM: Final = "application/problem+json"
_STATUS_OF: Final[tuple[tuple[type[AifError], int], ...]] = (
    (BadInput, 422),
    (VersionError, 409),
    (Overloaded, 503),
    (UpstreamError, 503),
    (IndexUnavailable, 503),
    (BusUnavailable, 503),
    (PublishError, 503),
    (TopicError, 503),
)
_RETRY_AFTER_S: Final = "1"  # breakers and back-offs of this system try again within about a second
# A client that still sends when the connection closes sees a reset in place of the 413: so much is read and forgotten.
_DISCARDED_BYTES: Final = 32 * 1024 * 1024
Handler = Callable[[Request], Awaitable[Response]]


def json_response(data: object, status: int = 200, **headers: str) -> Response:
    """orjson with numpy numbers allowed."""
    body = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, "application/json")


def problem(
    status: int, detail: str, errors: list[dict[str, str]] | None = None, headers: dict[str, str] | None = None
) -> Response:
    """RFC 9457; ``errors`` names the fields."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": errors or [],
    }
    return Response(orjson.dumps(body), status, headers, PROBLEM)


def problem_of(error: AifError) -> Response:
    """The answer to one of ours: 422 with the field, 409, 503 with Retry-After, else 500."""
    status = next((code for kind, code in _STATUS_OF if isinstance(error, kind)), 500)
    if isinstance(error, BadInput):
        return problem(status, str(error), [{"field": error.field, "problem": error.problem}])
    return problem(status, str(error), headers={"retry-after": _RETRY_AFTER_S} if status == 503 else None)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body, or ``HTTPException`` 413 when it is larger than the limit (no more than that is kept)."""
    announced = request.headers.get("content-length", "0")
    too_large = announced.isdigit() and int(announced) > limit_bytes
    body, received = bytearray(), 0
    async for chunk in request.stream():
        received += len(chunk)
        too_large = too_large or received > limit_bytes
        if received > limit_bytes + _DISCARDED_BYTES:
            break
        if not too_large:
            body += chunk
    if too_large:
        raise _too_large(limit_bytes)
    return bytes(body)


def checked_json(body: bytes) -> bytes:
    """The same body; ``HTTPException`` 400 when it is not JSON at all."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from None
    return body


def _too_large(limit_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {limit_bytes} bytes", {"connection": "close"})


@dataclass(slots=True)
class Health:
    """What the probes answer. ``reasons`` are why requests should go elsewhere now; empty means ready. ``failures`` are
    what a part of the process died of: it does not recover. ``metrics`` answers ``/metrics`` where this process's own
    series are not all."""

    reasons: Callable[[], list[str]]
    facts: Callable[[], dict[str, Any]] = dict
    failures: Callable[[], list[str]] = list
    started: bool = False
    metrics: Handler = field(default_factory=lambda: _metrics)

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/livez", self._livez),
            Route("/startupz", self._startupz),
            Route("/readyz", self._readyz),
            Route("/metrics", self.metrics),
        ]

    async def _livez(self, _: Request) -> Response:
        failures = self.failures()
        if failures:
            return json_response({"status": "failed", "reasons": failures}, 503)
        return json_response({"status": "alive"})

    async def _startupz(self, _: Request) -> Response:
        if self.started:
            return json_response({"status": "started"})
        return json_response({"status": "starting", "reasons": self.reasons()}, 503)

    async def _readyz(self, _: Request) -> Response:
        reasons = self.reasons()
        status = {"status": "not ready" if reasons else "ready", "reasons": reasons, **self.facts()}
        return json_response(status, 503 if reasons else 200)


def metrics_response(text: bytes) -> Response:
    """Prometheus' text format."""
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _metrics(_: Request) -> Response:
    return metrics_response(generate_latest())


def application(routes: list[BaseRoute]) -> Starlette:
    """A starlette app whose every error is problem+json."""
    return Starlette(
        routes=routes,
        exception_handlers={HTTPException: _on_http, AifError: _on_ours, Exception: _on_bug},
    )


def straight(app: ASGIApp, path: str, handler: Handler) -> ASGIApp:
    """``app`` (of ``application``), but ``POST path`` is answered by ``handler`` without the way through routes and
    middleware, which cost 0.1 ms of a request that should take few. Errors are answered all the same."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != path or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except HTTPException as error:
            response = await _on_http(request, error)
        except AifError as error:
            response = problem_of(error)
        except Exception as error:
            await (await _on_bug(request, error))(scope, receive, send)
            raise  # uvicorn logs the trace
        await response(scope, receive, send)

    return serve


def repeating_request_id(app: ASGIApp) -> ASGIApp:
    """``app``, whose every answer has the ``x-request-id`` of its request: whoever asked can tell answers apart."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"] if scope["type"] == "http" else ()
        own = [(name, value) for name, value in headers if name == b"x-request-id"][:1]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        await app(scope, receive, send_with_id if own else send)

    return serve


async def _on_http(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return problem(error.status_code, error.detail, headers=dict(error.headers or {}))


async def _on_ours(_: Request, error: Exception) -> Response:
    if not isinstance(error, AifError):
        raise error
    return problem_of(error)


async def _on_bug(request: Request, _: Exception) -> Response:
    return problem(500, f"{request.method} {request.url.path} failed; the server's log has the trace")
