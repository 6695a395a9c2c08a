"""HTTP of ``aif serve``: limits first, then types, then the merger; every error is problem+json."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from aif_stream.bus.lines import split_lines
from aif_stream.domain.request import RankAnswer, RankRequest, decode_request
from aif_stream.errors import AifError, BadInput, BusUnavailable
from aif_stream.online.openapi import PublishReport, document
from aif_stream.online.status import RequestLog
from aif_stream.settings import Settings
from aif_stream.telemetry import RANK_REPLAYED, kv
from aif_stream.web import Health, application, json_response, problem_of, read_body, straight

log = logging.getLogger(__name__)

# An unreachable broker: the client should hear of it before its own patience ends.
_PUBLISH_S: Final = 15.0
# Requests without candidates are decoded in microseconds, and only then is their deadline known (and the watch's own
# request told from others); 10,000 ids take a millisecond, which a refusal should not cost.
_LARGE_BODY_BYTES: Final = 4096
_NDJSON: Final = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
_ENCODER: Final = msgspec.json.Encoder()


class Ranks(Protocol):
    """What answers a request (the merger). ``check_room`` raises ``Overloaded`` before there is anything to decode."""

    def check_room(self) -> None: ...

    async def rank(self, request: RankRequest) -> RankAnswer: ...


class Publishes(Protocol):
    """What takes item lines: acknowledged by Kafka when it returns. A ``single`` wrong one raises ``BadInput``."""

    async def items(self, lines: list[bytes], *, single: bool) -> PublishReport: ...


class RankServer:
    """The application. ``view()`` is what ``/v1/status`` adds to the counts of requests; ``more``: other routes."""

    def __init__(
        self,
        settings: Settings,
        ranks: Ranks,
        publishes: Publishes,
        health: Health,
        view: Callable[[], dict[str, Any]],
        more: Sequence[BaseRoute] = (),
    ) -> None:
        self._settings = settings
        self._ranks = ranks
        self._publishes = publishes
        self._view = view
        self.requests = RequestLog()
        routed = application(
            [
                Route("/v1/rank", self._rank, methods=["POST"]),
                Route("/v1/events/items", self._items, methods=["POST"]),
                Route("/v1/status", self._status),
                Route("/openapi.json", self._openapi),
                *health.routes(),
                *more,
            ]
        )
        self.app = straight(routed, "/v1/rank", self._rank)

    async def _rank(self, request: Request) -> Response:
        asked: RankRequest | None = None
        try:
            announced = request.headers.get("content-length", "")
            if announced.isdigit() and int(announced) > _LARGE_BODY_BYTES:
                self._ranks.check_room()
            asked = _decoded(await read_body(request, self._settings.max_body_bytes))
            check_limits(asked, self._settings)
            answer = await self._ranks.rank(asked)
        except AifError as error:
            reply = problem_of(error)
            if _counts(asked, reply.status_code):
                self.requests.status(reply.status_code)
            return reply
        except HTTPException as error:
            self.requests.status(error.status_code)
            raise
        if _counts(asked, 200):
            self.requests.answer(answer)
            _log(answer)
        return Response(_ENCODER.encode(answer), media_type="application/json")

    async def _items(self, request: Request) -> Response:
        body = await read_body(request, self._settings.max_body_bytes)
        lines, single = _lines_of(body, request.headers.get("content-type", ""))
        try:
            async with asyncio.timeout(_PUBLISH_S):
                report = await self._publishes.items(lines, single=single)
        except TimeoutError:
            raise BusUnavailable(
                f"Kafka acknowledged not all of {len(lines)} events within {_PUBLISH_S:g} s",
                mend="send them again: an event may be seen twice",
            ) from None
        return Response(_ENCODER.encode(report), 202, media_type="application/json")

    async def _status(self, _: Request) -> Response:
        return json_response(self.view())

    def view(self) -> dict[str, Any]:
        """What ``/v1/status`` says."""
        return {**self._view(), "requests": self.requests.view()}

    async def _openapi(self, _: Request) -> Response:
        return json_response(document())


def _counts(request: RankRequest | None, status: int) -> bool:
    """Whether a request is one of the traffic: the watch's own is not, and one that is replayed is counted apart."""
    if request is None:
        return True
    if request.replay:
        RANK_REPLAYED.labels(status=str(status)).inc()
    return not (request.is_probe or request.replay)


def check_limits(request: RankRequest, settings: Settings) -> None:
    """Raise ``BadInput`` naming the field that passes a limit of the settings."""
    if request.k > settings.max_k:
        raise BadInput(f"at most {settings.max_k} (AIF_MAX_K), got {request.k}", field="k")
    if request.candidates is not None and len(request.candidates) > settings.max_candidates:
        count = len(request.candidates)
        raise BadInput(f"at most {settings.max_candidates} (AIF_MAX_CANDIDATES), got {count}", field="candidates")
    if request.deadline_ms is not None and request.deadline_ms > settings.max_deadline_ms:
        raise BadInput(f"at most {settings.max_deadline_ms:g} ms (AIF_MAX_DEADLINE_MS)", field="deadline_ms")
    if not isinstance(request.explain, bool) and request.explain < 0:
        raise BadInput("a number of items >= 0, or true", field="explain")
    if not isinstance(request.explain, bool) and request.explain > settings.explain_max:
        raise BadInput(f"at most {settings.explain_max} (AIF_EXPLAIN_MAX), got {request.explain}", field="explain")


def _decoded(body: bytes) -> RankRequest:
    try:
        return decode_request(body)
    except BadInput as error:
        if not error.field and error.problem.startswith("the body is not JSON"):
            raise HTTPException(400, error.problem) from None
        raise


def _lines_of(body: bytes, content_type: str) -> tuple[list[bytes], bool]:
    """One event per entry, and whether the body was one single object."""
    if content_type.partition(";")[0].strip().lower() in _NDJSON:
        return split_lines(body), False
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
        if body.lstrip().startswith(b"["):
            return [bytes(entry) for entry in msgspec.json.decode(body, type=list[msgspec.Raw])], False
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from None
    return [body], True


def _log(answer: RankAnswer) -> None:
    if not log.isEnabledFor(logging.INFO):
        return
    times, coverage = answer.timings_ms, answer.coverage
    log.info(
        kv(
            "rank",
            request=answer.request_id,
            version=answer.model_version,
            candidates=coverage.candidates,
            scored=coverage.scored,
            user_ms=times.user,
            retrieval_ms=times.retrieval,
            join_ms=times.join,
            score_ms=times.score,
            total_ms=times.total,
            degraded=",".join(answer.degraded) or "-",
        )
    )
