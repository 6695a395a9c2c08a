"""Asks the upstreams: one future per channel, a budget each, a breaker per upstream and channel."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

import orjson

from aif_stream.clock import monotonic_s
from aif_stream.domain.candidates import MEDIA_TYPE, Candidates, decode_candidates
from aif_stream.errors import UpstreamError
from aif_stream.online.asking import AskingClient
from aif_stream.online.breaker import Breaker, State
from aif_stream.settings import Settings
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)

_PATH: Final = "/v1/retrieve"
_ACCEPT: Final = f"{MEDIA_TYPE}, application/json;q=0.5"
# 20,000 keys with an id of 256 characters each; what is longer is no answer of candidates.
_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
# Each ask has its own deadline, of a second at most; this ends what nobody would end.
_FORGOTTEN_S: Final = 60.0
# Packed keys are a view of the answer's bytes (6 µs for 10,000), cheaper than a thread (50 µs); ids by
# name in the header, or as JSON, take milliseconds.
_SMALL_HEADER_BYTES: Final = 4096
Offload = Callable[[Callable[[], Candidates], float], Awaitable[Candidates]]


class RetrievalClient:
    """``async with RetrievalClient(settings, offload)``; ``offload(work, due_s)`` runs the decoding off the event loop.

    Upstreams are replicas of each other: they take turns, and one that fails is followed by the next.
    """

    def __init__(self, settings: Settings, offload: Offload) -> None:
        self.channels = tuple(part.strip() for part in settings.retrieval_channels.split(",") if part.strip())
        self._urls = [part.strip().rstrip("/") for part in settings.retrieval_urls.split(",") if part.strip()]
        self._offload = offload
        self._breakers = {(url, channel): Breaker() for url in self._urls for channel in self.channels}
        self._fair_s = settings.retrieval_budget_ms / 2000.0
        self._turns = itertools.count()
        self._clients: dict[str, AskingClient] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for url in self._urls:
            client = AskingClient(
                url, path=_PATH, accept=_ACCEPT, limit_bytes=_MAX_ANSWER_BYTES, timeout_s=_FORGOTTEN_S
            )
            self._clients[url] = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clients.clear()
        await self._stack.aclose()

    def states(self) -> dict[str, State]:
        """Breaker states by ``url channel``."""
        return {f"{url} {channel}": breaker.state for (url, channel), breaker in self._breakers.items()}

    async def ask(self, request_id: str, user_id: str, channel: str, k: int, budget_s: float) -> Candidates:
        """At most k candidates of a channel within the budget. Raises ``UpstreamError``, never later than that.

        ``request_id`` and channel travel as ``x-request-id``: the answer has to be that of this very request
        (``http_connection``), and both processes' logs can be laid side by side.
        """
        due_s = monotonic_s() + budget_s
        body = orjson.dumps({"user_id": user_id, "channel": channel, "k": k})
        turn = next(self._turns)
        problem = f"no upstream of {channel} may be asked now"
        for i in range(len(self._urls)):
            url = self._urls[(turn + i) % len(self._urls)]
            breaker = self._breakers[url, channel]
            left_s = due_s - monotonic_s()
            if left_s <= 0 or not breaker.allows():
                continue
            try:
                async with asyncio.timeout(left_s):
                    candidates = await self._ask_one(url, body, channel, request_id, due_s)
            except (UpstreamError, TimeoutError) as error:
                # A client's own tight deadline is no fault of the upstream.
                if not isinstance(error, TimeoutError) or left_s >= self._fair_s:
                    breaker.failed()
                why = f"no answer within {left_s * 1000:.0f} ms" if isinstance(error, TimeoutError) else str(error)
                problem = f"{url} channel {channel}: {why or type(error).__name__}"
                log.warning(kv("retrieval.failed", upstream=url, channel=channel, error=why, state=breaker.state))
            else:
                breaker.succeeded()
                return candidates
        raise UpstreamError(problem, mend="check aif retrieval and AIF_RETRIEVAL_URLS")

    async def _ask_one(self, url: str, body: bytes, channel: str, request_id: str, due_s: float) -> Candidates:
        client = self._clients.get(url)
        if client is None:
            raise UpstreamError("the retrieval client is closed", mend="use it inside its `async with`")
        status, data, media_type = await client.ask(body, f"{request_id}-{channel}".encode())
        if status == 0:
            raise UpstreamError(data.decode(errors="replace"))
        if status != 200:
            raise UpstreamError(f"HTTP {status}: {data[:300].decode(errors='replace')}")
        if media_type == MEDIA_TYPE and int.from_bytes(data[:4], "little") <= _SMALL_HEADER_BYTES:
            return decode_candidates(data, media_type, channel)
        return await self._offload(lambda: decode_candidates(data, media_type, channel), due_s)
