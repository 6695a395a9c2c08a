"""One pipelined connection to one Redis server: bytes in, hiredis replies out.

Why not redis-py's client: per script call it spends the client's core on packing arguments, a future and a timer per
reply (8.8 µs per item written against 3.7 here, ``benchmarks/index.py``). Here a batch is one write and one future;
whole batches of several callers queue behind each other in the order of Redis, without a lock or a pool.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import parse_url

from aif_stream.errors import IndexUnavailable, SettingsError
from aif_stream.index.refusals import error_of

Reply = Any
"""bytes, int, None, a list of them, or a ``hiredis.ReplyError``."""

_NOT_YET: Final = object()
_TLS_MEND: Final = (
    "ssl_ca_certs in AIF_REDIS_URL must name the CA of Redis' certificate, which must name the URL's host"
)


def pack(*args: bytes | int | str) -> bytes:
    """One command in RESP."""
    return cast("bytes", hiredis.pack_command(cast("Any", args)))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and how it wants to be spoken to."""

    host: str
    port: int
    path: str | None
    username: str | None
    password: str | None
    db: int
    tls: ssl.SSLContext | None

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def at(self, host: str, port: int) -> Address:
        """The same credentials on another node of the cluster."""
        return Address(host, port, None, self.username, self.password, self.db, self.tls)

    def handshake(self) -> list[bytes]:
        """Commands that a fresh connection begins with."""
        commands = []
        if self.password is not None:
            user = [self.username] if self.username else []
            commands.append(pack("AUTH", *user, self.password))
        if self.db:
            commands.append(pack("SELECT", self.db))
        return commands


def parse_address(url: str) -> Address:
    """``redis://``, ``rediss://`` (query: ssl_ca_certs, ssl_certfile, ssl_keyfile) or ``unix://``."""
    try:
        parsed: dict[str, Any] = dict(parse_url(url))
        tls = None
        if urlsplit(url).scheme == "rediss":
            tls = ssl.create_default_context(cafile=parsed.get("ssl_ca_certs"))
            if "ssl_certfile" in parsed:
                tls.load_cert_chain(parsed["ssl_certfile"], parsed.get("ssl_keyfile"))
    except (ValueError, OSError) as error:
        raise SettingsError(f"AIF_REDIS_URL: {error}") from None
    return Address(
        host=parsed.get("host", "127.0.0.1"),
        port=parsed.get("port", 6379),
        path=parsed.get("path"),
        username=parsed.get("username"),
        password=parsed.get("password"),
        db=parsed.get("db", 0),
        tls=tls,
    )


class _Batch:
    __slots__ = ("done", "expected", "replies")

    def __init__(self, expected: int, done: asyncio.Future[list[Reply]]) -> None:
        self.expected = expected
        self.replies: list[Reply] = []
        self.done = done


class _Link(asyncio.Protocol):
    """The socket's side: feeds hiredis, completes batches in order, fails all of them on a loss."""

    def __init__(self) -> None:
        self._parser = hiredis.Reader(notEnoughData=_NOT_YET)
        self._waiting: deque[_Batch] = deque()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
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


class Wire:
    """A connection that is made when it is needed and made again after a loss.

    Callers learn of a loss by ``IndexUnavailable`` (their batch may or may not have been executed: everything
    the index sends is repeatable) and of a server that forgot data by the marks, never by the wire.
    """

    def __init__(self, address: Address, timeout_s: float, greeting: Sequence[bytes] = ()) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._greeting = [*address.handshake(), *greeting]
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()

    async def execute(self, commands: Sequence[bytes]) -> list[Reply]:
        """Send packed commands in one write; their replies in order, ``hiredis.ReplyError`` among them.

        Raises ``IndexUnavailable`` when the server cannot be reached or has not answered everything after
        ``timeout_s``, ``IndexRefused`` when it refuses the greeting (password, rights). A time-out drops the
        connection: those who queue behind it fail at once, too.
        """
        if not commands:
            return []
        link: _Link | None = None
        mend = "start Redis or correct AIF_REDIS_URL"
        try:
            async with asyncio.timeout(self._timeout_s):
                link = await self._connected()
                return await link.execute(b"".join(commands), len(commands))
        except TimeoutError:
            reason = f"no answer within {self._timeout_s:g} s"
            if link is not None:
                link.fail(reason)
        except ssl.SSLError as error:
            reason, mend = str(error), _TLS_MEND
        except OSError as error:
            reason = str(error)
        raise IndexUnavailable(f"Redis at {self.address} does not answer: {reason}", mend=mend)

    async def _connected(self) -> _Link:
        link = self._link
        if link is not None and link.lost is None:
            return link
        async with self._connecting:
            if self._link is None or self._link.lost is not None:
                self._link = await self._connect()
            return self._link

    async def _connect(self) -> _Link:
        loop, where = asyncio.get_running_loop(), self.address
        if where.path is not None:
            _, link = await loop.create_unix_connection(_Link, where.path)
        else:
            _, link = await loop.create_connection(_Link, where.host, where.port, ssl=where.tls)
        try:
            if self._greeting:
                for reply in await link.execute(b"".join(self._greeting), len(self._greeting)):
                    if isinstance(reply, hiredis.ReplyError):
                        raise error_of(reply, f"Redis at {where}")
        except BaseException:
            link.fail("the greeting was not answered")
            raise
        return link

    def close(self) -> None:
        """Drop the connection; batches under way fail."""
        if self._link is not None:
            self._link.fail("closed")
