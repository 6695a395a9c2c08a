"""HTTP of explanations: ask, look, follow (SSE, WebSocket), cancel. Errors are problem+json, as elsewhere."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any, Final

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.explanations import (
    FINAL,
    Action,
    ExplanationRequest,
    ExplanationTask,
    Reply,
    State,
    Told,
    deadline_after,
)
from aif_stream.domain.facts import FactsHead, read_head
from aif_stream.domain.request import decode_as
from aif_stream.errors import BadInput, IndexRefused, IndexUnavailable
from aif_stream.index.explanations import START, ExplanationStore, StoredEvent, StoredExplanation
from aif_stream.online.explanation_feed import ExplanationFeed
from aif_stream.online.explanation_work import ExplanationWork
from aif_stream.online.facts_keeper import FactsKeeper
from aif_stream.online.flood import Flood
from aif_stream.settings import Settings
from aif_stream.telemetry import EXPLANATIONS, kv
from aif_stream.web import checked_json, problem, read_body

log = logging.getLogger(__name__)

_FACTS_WAIT_S: Final = 0.5  # facts on their way are there in a few ms; those of another server are looked for so long
_LOOK_S: Final = 0.05
_RETRY_AFTER: Final = "1"
_DONE, _GOING_AWAY, _REFUSED, _FAILED = 1000, 1001, 1008, 1011  # close codes
_EVENT_ID: Final = re.compile(r"\d{1,20}(-\d{1,20})?")
_BODY_BYTES: Final = 64 * 1024
_REQUEST: Final = msgspec.json.Decoder(ExplanationRequest)
_PLAIN: Final = frozenset({"kind", "state", "run", "attempt", "at_ms"})


class Explanations:
    """The routes. ``retired(version)``: whether no worker can load it any more."""

    def __init__(
        self,
        settings: Settings,
        store: ExplanationStore,
        *,
        work: ExplanationWork,
        feed: ExplanationFeed,
        keeper: FactsKeeper,
        retired: Callable[[str], bool],
    ) -> None:
        self._settings = settings
        self._store = store
        self._work = work
        self._feed = feed
        self._keeper = keeper
        self._retired = retired
        self._flood = Flood(settings.explain_client_rate)
        self._page = resources.files("aif_stream.online").joinpath("page/explain.html").read_text("utf-8")

    def routes(self) -> list[BaseRoute]:
        one = "/v1/explanations/{name}"
        return [
            Route("/v1/explanations", self._ask, methods=["POST"]),
            Route(one, self._look, methods=["GET"]),
            Route(one, self._cancel, methods=["DELETE"]),
            Route(f"{one}/events", self._events, methods=["GET"]),
            WebSocketRoute(f"{one}/ws", self._socket),
            Route("/explain", self._show, methods=["GET"]),
        ]

    async def _ask(self, request: Request) -> Response:
        wait_s = self._flood.wait_s(request.client.host if request.client else "")
        if wait_s:
            after = str(max(1, round(wait_s)))
            return problem(429, "too many explanations are asked for from this address", headers={"retry-after": after})
        asked = decode_as(_REQUEST, checked_json(await read_body(request, _BODY_BYTES)))
        item, found = asked.item, await self._facts(asked.request_id)
        if isinstance(found, Response):
            return found
        score = next((each.score for each in found.items if each.item_id == item), None)
        if score is None:
            raise BadInput(f"item {item!r:.80} is not in the answer to request {asked.request_id}", field="item_id")
        if self._retired(found.version):
            return problem(409, f"version {found.version} gave that score and is retired: nobody can recompute it")
        name = self._keeper.ids.of(asked.request_id, item, asked.method, found.issued_ms or found.answered_ms)
        answer = await self._work.start(_task(self._settings, name, asked, found), score)
        return Response(
            orjson.dumps({"explanation_id": name, "state": answer.state, "joined": answer.reply is Reply.JOINED}),
            202,
            {"location": f"/v1/explanations/{name}", "retry-after": _RETRY_AFTER},
            "application/json",
        )

    async def _facts(self, request_id: str) -> FactsHead | Response:
        """The facts' head, waiting for facts on their way; or the answer that says why there are none."""
        end_s = monotonic_s() + _FACTS_WAIT_S
        try:
            async with asyncio.timeout(_FACTS_WAIT_S):
                await self._keeper.settled(request_id)
        except TimeoutError:
            pass
        while True:
            value, known = await self._store.facts(request_id)
            if value is not None:
                return read_head(value)
            if known:
                kept_s = self._settings.explain_facts_s
                return problem(
                    410, f"the facts of request {request_id} have expired: they are kept {kept_s:g} s at most"
                )
            if monotonic_s() > end_s:
                break
            await asyncio.sleep(_LOOK_S)
        return problem(
            404,
            f"no facts of request {request_id!r}: it is unknown here, or was not asked with `explain`",
            [{"field": "request_id", "problem": "no such request with facts"}],
        )

    async def _look(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = await self._recorded(name)
        if found is None:
            return _unknown(name)
        headers = {} if found.state in FINAL else {"retry-after": _RETRY_AFTER}
        return Response(_json(found), 200, headers, "application/json")

    async def _recorded(self, name: str) -> StoredExplanation | None:
        """The explanation, waiting a moment for a record that another server is about to write: what it is of is known
        from then on."""
        end_s = monotonic_s() + _FACTS_WAIT_S
        while True:
            found = await self._feed.current(name)
            if found is None or found.is_recorded or found.task.request_id or found.state in FINAL:
                return found
            if monotonic_s() > end_s:
                return found
            await asyncio.sleep(_LOOK_S)

    async def _cancel(self, request: Request) -> Response:
        name, end_s = request.path_params["name"], monotonic_s() + _FACTS_WAIT_S
        while True:
            said = await self._store.tell(name, Told(Action.CANCEL), {"reason": b"cancelled by a client"})
            if said.reply is not Reply.ABSENT:
                break
            given = self._keeper.ids.without_record(name)
            if given is None:
                return _unknown(name)
            if given.state in FINAL:
                return _state_of(name, given.state)
            if monotonic_s() > end_s:
                detail = f"explanation {name} is not recorded yet: cancel it again"
                return problem(503, detail, headers={"retry-after": _RETRY_AFTER})
            await asyncio.sleep(_LOOK_S)
        self._keeper.ids.settle([name])
        if said.reply is Reply.OK:
            EXPLANATIONS.labels(state=State.CANCELLED, cache="none").inc()
        return _state_of(name, said.state)

    async def _events(self, request: Request) -> Response:
        name = request.path_params["name"]
        after = _after(request.headers.get("last-event-id", "") or request.query_params.get("last_event_id", ""))
        found = await self._feed.current(name)
        if found is None:
            return _unknown(name)
        heard = found.is_recorded or after != START
        if found.state in FINAL and heard and not await self._store.events(name, after):
            return Response(status_code=204)  # tells an EventSource that there is nothing to come back for
        return StreamingResponse(
            self._stream(name, after),
            200,
            {"cache-control": "no-store", "x-accel-buffering": "no"},
            "text/event-stream",
        )

    async def _stream(self, name: str, after: str) -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        async for event in self._feed.subscribe(name, after):
            if event is None:
                yield b": still here\n\n"
            else:
                data = orjson.dumps(_told(name, event))
                yield b"id: %s\nevent: %s\ndata: %s\n\n" % (event.id.encode(), event.kind.encode(), data)

    async def _socket(self, socket: WebSocket) -> None:
        await socket.accept()
        sending = asyncio.create_task(self._send(socket))
        leaving = asyncio.create_task(_left(socket))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, socket: WebSocket) -> None:
        """Everything that happens, then a close frame (RFC 6455, section 7.4.1)."""
        name = socket.path_params["name"]
        try:
            code, reason = await self._tell(socket, name)
        except WebSocketDisconnect:
            return
        except (IndexUnavailable, IndexRefused) as error:
            log.warning(kv("explanation.unread", explanation=name, problem=error))
            code, reason = _FAILED, "Redis does not answer: try again"
        except Exception:
            log.exception(kv("explanation.socket_failed", explanation=name))
            code, reason = _FAILED, "the server's log has the trace"
        await socket.close(code, reason)

    async def _tell(self, socket: WebSocket, name: str) -> tuple[int, str]:
        """The code to close with, and why."""
        try:
            after = _after(socket.query_params.get("last_event_id", ""))
        except BadInput:
            return _REFUSED, "last_event_id is not the id of an event"
        if await self._feed.current(name) is None:
            return _REFUSED, "no such explanation"
        async for event in self._feed.subscribe(name, after):
            told = {"kind": "heartbeat"} if event is None else {"id": event.id, **_told(name, event)}
            await socket.send_text(orjson.dumps(told).decode())
        return (_GOING_AWAY, "the server stops") if self._feed.closed else (_DONE, "")

    async def _show(self, _: Request) -> Response:
        return HTMLResponse(self._page)


async def _left(socket: WebSocket) -> None:
    """Return when the client has gone. What it sends is read, so that its close is seen, and ignored."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


def _task(settings: Settings, name: str, asked: ExplanationRequest, head: FactsHead) -> ExplanationTask:
    now = now_ms()
    return ExplanationTask(
        explanation_id=name,
        run=0,
        request_id=asked.request_id,
        item_id=asked.item,
        method=asked.method,
        priority=asked.priority,
        asked_ms=now,
        answered_ms=head.answered_ms,
        deadline_ms=deadline_after(now, asked.deadline_ms or settings.explain_deadline_ms),
    )


def _after(text: str) -> str:
    if text and not _EVENT_ID.fullmatch(text):
        raise BadInput("not the id of an event", field="Last-Event-ID")
    return text or START


def _unknown(name: str) -> Response:
    return problem(404, f"no explanation {name!r:.80}: never requested, or expired")


def _state_of(name: str, state: State | None) -> Response:
    return Response(orjson.dumps({"explanation_id": name, "state": state}), 200, {}, "application/json")


def _json(found: StoredExplanation) -> bytes:
    task = found.task
    return orjson.dumps(
        {
            "explanation_id": found.id,
            "request_id": task.request_id or None,
            "item_id": task.item_id or None,
            "state": found.state,
            "score": found.score,
            "stages": {name: orjson.Fragment(value) for name, value in found.stages.items()},
            "reason": found.reason,
            "method": task.method,
            "priority": task.priority,
            "run": task.run,
            "attempt": found.attempt,
            "cache": found.cache or "none",
            "deadline_ms": task.deadline_ms,
            "times_ms": {"asked": task.asked_ms, "answered": task.answered_ms, **found.times_ms},
        }
    )


def _told(name: str, event: StoredEvent) -> dict[str, Any]:
    """What a subscriber reads: state, run, attempt, at_ms; of a stage its name and data; else what was said."""
    fields = event.fields
    told: dict[str, Any] = {
        "explanation_id": name,
        "kind": event.kind,
        "state": event.state,
        **{field: int(fields[field]) for field in ("run", "attempt", "at_ms")},
    }
    for field, value in fields.items():
        if field.startswith("stage:"):
            told["stage"], told["data"] = field.removeprefix("stage:"), orjson.Fragment(value)
        elif field not in _PLAIN:
            told[field] = value.decode()
    return told
