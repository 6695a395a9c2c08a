"""Upstream calls over kept connections: what answers say, and what a caller that gives up leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from aif_stream.online.asking import Answer, AskingClient

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def asking(handler: Handler, limit_bytes: int = 1000) -> AsyncIterator[AskingClient]:
    served = set()

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        served.add(task)
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(closing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        url = f"http://127.0.0.1:{port}"
        async with AskingClient(url, path="/p", accept="a/b", limit_bytes=limit_bytes, timeout_s=30) as client:
            yield client
    finally:
        server.close()
        await asyncio.gather(*served, return_exceptions=True)


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    return head, await reader.readexactly(length)


async def test_status_body_and_media_type_come_back_and_the_connection_is_used_again() -> None:
    connections, heads = 0, []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while not reader.at_eof():
            try:
                head, body = await request_of(reader)
            except asyncio.IncompleteReadError:
                return
            heads.append(head)
            answer = b"say " + body
            writer.write(
                b"HTTP/1.1 201 Created\r\nContent-Type: Text/X; q=1\r\ncontent-length: %d\r\n\r\n" % len(answer)
            )
            writer.write(answer)

    async with asking(handler) as client, asyncio.timeout(30):
        for word in (b"one", b"two"):
            assert await client.ask(word, b"7") == Answer(201, b"say " + word, "text/x")
    assert connections == 1
    assert heads[0].startswith(b"POST /p HTTP/1.1\r\n")
    assert b"\r\naccept: a/b\r\n" in heads[0]
    assert b"\r\nx-request-id: 7\r\n" in heads[0]


async def test_an_answer_beyond_the_limit_and_an_address_where_nobody_listens_are_status_0() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n" + b"x" * 50)

    async with asking(handler, limit_bytes=49) as client, asyncio.timeout(30):
        status, why, _ = await client.ask(b"")
        assert (status, why) == (0, b"an answer of more than 49 bytes")
    async with AskingClient("http://127.0.0.1:1", path="/", accept="*/*", limit_bytes=9, timeout_s=30) as client:
        status, why, _ = await client.ask(b"")
        assert status == 0
        assert b"cannot connect" in why


async def test_a_caller_that_stops_waiting_closes_its_connection() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        asked.set()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
        closed.set()

    async with asking(handler) as client, asyncio.timeout(30):
        waiting = asyncio.create_task(client.ask(b""))
        await asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await closed.wait()
