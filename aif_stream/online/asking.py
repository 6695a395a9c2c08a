"""Questions to an upstream and their answers, awaited one by one."""

from __future__ import annotations

import asyncio
import itertools
from typing import NamedTuple, Self

from aif_stream.clock import monotonic_s
from aif_stream.http_client import HttpClient


class Answer(NamedTuple):
    """``media_type`` without parameters, lower case."""

    status: int
    body: bytes
    media_type: str


class AskingClient(HttpClient):
    """``async with AskingClient(url, …) as client: answer = await client.ask(body)``. Entering connects to nobody."""

    def __init__(self, url: str, *, path: str, accept: str, limit_bytes: int, timeout_s: float) -> None:
        super().__init__(url, self._heard, timeout_s=timeout_s, path=path, accept=accept, limit_bytes=limit_bytes)
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Answer]] = {}

    async def __aenter__(self) -> Self:
        self._sweeping = asyncio.create_task(self._sweep(), name="http-sweep")
        return self

    async def ask(self, body: bytes, request_id: bytes = b"") -> Answer:
        """The answer of one request (``HttpClient.submit``). Status 0: there is none, and the body says why. A caller
        that stops waiting closes the connection."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self.submit(number, body, monotonic_s(), request_id)
        try:
            return await self._asked[number]
        finally:
            del self._asked[number]
            exchange = self._under_way.get(number)
            if exchange is not None:
                self.give_up(exchange, "nobody waits any more")

    def _heard(self, number: int, status: int, body: bytes, media_type: str) -> None:
        future = self._asked.get(number)
        if future is not None and not future.done():
            future.set_result(Answer(status, body, media_type))
