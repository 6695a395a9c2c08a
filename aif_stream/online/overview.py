"""What the dashboard shows, as a stream: this server's own figures and the monitor's, once a second (SSE).

Nothing is asked of the monitor while nobody looks. A reader that is slow misses seconds, never the newest one: each
takes what is there when its turn comes. Without a monitor its part is null and ``problem`` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from importlib import resources
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from aif_stream.clock import monotonic_s, now_ms
from aif_stream.domain.freshness import RecentLags
from aif_stream.errors import AifError
from aif_stream.index.connection import Redis
from aif_stream.index.leases import MONITOR, LeaseBook

EVERY_S: Final = 1.0
_PATIENCE_S: Final = 2.0
_LOOK_FOR_MONITOR_S: Final = 5.0
# Of the histogram of the last minute's updates, seconds: where an update usually is, and the places where it hurts.
EDGES_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Overview:
    """``async with Overview(…) as overview``: ``routes()`` are the page and its stream. ``end()`` before the server
    stops: open streams would hold it."""

    def __init__(self, redis: Redis, recent: Callable[[], RecentLags | None]) -> None:
        """``recent()``: lags of the mirror that answers. ``view``, what ``/v1/status`` says, is set by its owner."""
        self._redis = redis
        self.view: Callable[[], dict[str, Any]] = dict
        self._recent = recent
        self._ended = asyncio.Event()
        self._monitor = ""
        self._looked_s = float("-inf")
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE_S))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        await self._http.close()

    def end(self) -> None:
        """Every stream ends now."""
        self._ended.set()

    def routes(self) -> list[BaseRoute]:
        return [Route("/", self._page), Route("/v1/overview", self._once), Route("/v1/overview/events", self._events)]

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(page(), headers={"content-security-policy": _POLICY})

    async def _once(self, request: Request) -> Response:
        return Response(orjson.dumps(await self._now(0), option=_NUMPY), media_type="application/json")

    async def _events(self, _: Request) -> Response:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._stream(), media_type="text/event-stream", headers=headers)

    async def _stream(self) -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        since_ms = 0
        while not self._ended.is_set():
            begun_s = monotonic_s()
            now = await self._now(since_ms)
            history = (now["monitor"] or {}).get("history")
            since_ms = history[-1][0] if history else since_ms
            yield b"event: now\ndata: " + orjson.dumps(now, option=_NUMPY) + b"\n\n"
            try:
                async with asyncio.timeout(max(0.0, EVERY_S - (monotonic_s() - begun_s))):
                    await self._ended.wait()
            except TimeoutError:
                continue

    async def _now(self, since_ms: int) -> dict[str, Any]:
        recent = self._recent()
        counts = None if recent is None else recent.histogram(EDGES_S, monotonic_s())
        monitor, problem = await self._of_monitor(since_ms)
        return {
            "at_ms": now_ms(),
            "server": self.view(),
            "freshness": {"edges_s": EDGES_S, "counts": counts},
            "monitor": monitor,
            "problem": problem,
        }

    async def _of_monitor(self, since_ms: int) -> tuple[dict[str, Any] | None, str]:
        """(what it says, "") or (None, why not)."""
        try:
            if not self._monitor and monotonic_s() - self._looked_s > _LOOK_FOR_MONITOR_S:
                self._looked_s = monotonic_s()
                self._monitor = await self._address()
            if not self._monitor:
                return None, "no aif monitor runs"
            async with self._http.get(f"{self._monitor}/v1/overview?since={since_ms}") as reply:
                found: Any = orjson.loads(await reply.read())
                if reply.status == 200 and isinstance(found, dict) and found.get("lag") is not None:
                    return found, ""
                return None, "the monitor has seen nothing yet"
        except (AifError, aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
            self._monitor = ""
            return None, f"the monitor does not answer: {str(error) or type(error).__name__}"

    async def _address(self) -> str:
        leases = await LeaseBook(self._redis).read(MONITOR)
        return next((lease.url for lease in leases if lease.alive and lease.url), "")


# The browser enforces it: nothing is loaded from, or told to, another host.
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY


def page() -> str:
    """The dashboard, whole: style and script are in it."""
    files = resources.files("aif_stream.online").joinpath("page")
    html, style, script = (files.joinpath(f"dashboard.{end}").read_text("utf-8") for end in ("html", "css", "js"))
    return html.replace("/* style */", style).replace("/* script */", script)
