"""Two Redis servers behind one address, as behind DNS or a load balancer: connections stay where they were made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import redis.asyncio

from aif_stream.embedded.redis import EmbeddedRedis
from tests.stack import eventually


@dataclass
class Address:
    """A TCP address whose new connections lead to ``target``; those that are open are left alone."""

    target: int
    port: int = 0
    made: list[int] = field(default_factory=list)  # the target of each connection so far
    open: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self.open.add(task)
        task.add_done_callback(self.open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made.append(self.target)
        try:
            upstream, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        with contextlib.suppress(OSError):
            await asyncio.gather(_pump(reader, back), _pump(upstream, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def address_of(target: int, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Address]:
    """A listening ``Address`` that leads to the server on port ``target``."""
    address = Address(target)
    server = await asyncio.start_server(address.accept, host, port)
    address.port = server.sockets[0].getsockname()[1]
    try:
        yield address
    finally:
        server.close()
        for task in list(address.open):
            task.cancel()
        await asyncio.gather(*address.open, return_exceptions=True)


@dataclass
class Pair:
    """``first`` begins as the primary, ``second`` as its replica."""

    first: EmbeddedRedis
    second: EmbeddedRedis
    address: Address

    async def ask(self, server: EmbeddedRedis, *words: str | int) -> object:
        async with redis.asyncio.from_url(server.url) as client:
            return await client.execute_command(*words)

    async def fail_over(self) -> None:
        """The replica becomes the primary; the old primary its replica, and keeps its connections."""
        await self.ask(self.second, "REPLICAOF", "NO", "ONE")
        await self.demote()

    async def hand_over(self) -> None:
        """As ``fail_over``, but no acknowledged write is lost: the old primary waits for the replica first."""
        await self.ask(self.first, "FAILOVER")

        async def handed_over() -> bool:
            return b"role:slave" in await self._replication(self.first)

        await eventually(handed_over, what="the roles are exchanged")

    async def demote(self) -> None:
        await self.ask(self.first, "REPLICAOF", "127.0.0.1", self.second.port)

    async def synced(self) -> None:
        """Wait until the second server replicates the first."""

        async def linked() -> bool:
            return b"master_link_status:up" in bytes(await self._replication(self.second))

        await eventually(linked, what="the replica is linked")

    async def _replication(self, server: EmbeddedRedis) -> bytes:
        async with redis.asyncio.from_url(server.url) as client:
            found = await client.info("replication")
        return "\n".join(f"{name}:{value}" for name, value in found.items()).encode()


@asynccontextmanager
async def redis_pair() -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(EmbeddedRedis()) for _ in range(2)]
        pair = Pair(first, second, await stack.enter_async_context(address_of(first.port)))
        await pair.ask(second, "REPLICAOF", "127.0.0.1", first.port)
        await pair.synced()
        yield pair
