"""The socket's side of a connection to Redis: batches of commands out, their replies in order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, cast

import hiredis

from aif_stream import clock

Reply = Any
"""bytes, int, None, a list of them, or a ``hiredis.ReplyError``."""

_NOT_YET: Final = object()


class _Batch:
    __slots__ = ("done", "expected", "replies")

    def __init__(self, expected: int, done: asyncio.Future[list[Reply]]) -> None:
        self.expected = expected
        self.replies: list[Reply] = []
        self.done = done


class Link(asyncio.Protocol):
    """Feeds hiredis, completes batches in order, fails all of them on a loss."""

    def __init__(self) -> None:
        self._parser = hiredis.Reader(notEnoughData=_NOT_YET)
        self._waiting: deque[_Batch] = deque()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._leaving = False
        self.made_s = clock.monotonic_s()
        self.lost: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(str(exc) if exc else "it closed the connection")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        try:
            parser.feed(data)
            while (reply := parser.gets()) is not _NOT_YET:
                batch = self._waiting[0]
                batch.replies.append(reply)
                if len(batch.replies) == batch.expected:
                    self._waiting.popleft()
                    if not batch.done.done():
                        batch.done.set_result(batch.replies)
            self._close_if_left()
        except (hiredis.ProtocolError, IndexError) as error:
            self.fail(f"it does not speak RESP ({error})")

    async def execute(self, data: bytes, expected: int) -> list[Reply]:
        await self._writable.wait()
        if self.lost is not None or self._transport is None:
            raise ConnectionError(self.lost)
        batch = _Batch(expected, asyncio.get_running_loop().create_future())
        # From here on the replies will come and are taken off in order, also when the caller is cancelled.
        self._waiting.append(batch)
        self._transport.write(data)
        return await batch.done

    def leave(self) -> None:
        """Close as soon as the replies under way have come."""
        self._leaving = True
        self._close_if_left()

    def _close_if_left(self) -> None:
        if self._leaving and not self._waiting and self._transport is not None:
            self._transport.close()

    def fail(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
        self._writable.set()
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            done = self._waiting.popleft().done
            if not done.done():
                done.set_exception(ConnectionError(self.lost))
