"""One pipelined connection to one Redis server: bytes in, hiredis replies out.

Why not redis-py's client: per script call it spends the client's core on packing arguments, a future and a timer per
reply (8.8 µs per item written against 3.7 here, ``benchmarks/index.py``). Here a batch is one write and one future;
whole batches of several callers queue behind each other in the order of Redis, without a lock or a pool.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import parse_url

from aif_stream import clock
from aif_stream.errors import AifError, IndexUnavailable, SettingsError
from aif_stream.index.link import Link, Reply
from aif_stream.index.refusals import error_of

# An address is resolved again at most so often: a role that writes to a replica meets its refusal with every batch.
REDIAL_S: Final = 1.0
_TLS_MEND: Final = (
    "ssl_ca_certs in AIF_REDIS_URL must name the CA of Redis' certificate, which must name the URL's host"
)


def pack(*args: bytes | int | str) -> bytes:
    """One command in RESP."""
    return cast("bytes", hiredis.pack_command(cast("Any", args)))


ROLE: Final = pack("INFO", "replication")


def is_replica(reply: Reply) -> bool:
    """Whether ``ROLE``'s reply is a replica's; False for a user without the right to ask."""
    return not isinstance(reply, hiredis.ReplyError) and b"role:slave" in reply


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


class Wire:
    """A connection that is made when it is needed and made again after a loss.

    Callers learn of a loss by ``IndexUnavailable`` (their batch may or may not have been executed: everything
    the index sends is repeatable) and of a server that forgot data by the marks, never by the wire.
    """

    def __init__(self, address: Address, timeout_s: float, greeting: Sequence[bytes] = ()) -> None:
        self.address = address
        self.links = 0  # connections made so far
        self._timeout_s = timeout_s
        self._greeting = [*address.handshake(), *greeting]
        self._link: Link | None = None
        self._left: list[Link] = []
        self._connecting = asyncio.Lock()

    async def execute(self, commands: Sequence[bytes]) -> list[Reply]:
        """Send packed commands in one write; their replies in order, ``hiredis.ReplyError`` among them.

        Raises ``IndexUnavailable`` when the server cannot be reached or has not answered everything after
        ``timeout_s``, ``IndexDenied`` when it refuses the greeting (password, rights). A time-out drops the
        connection: those who queue behind it fail at once, too.
        """
        if not commands:
            return []
        link: Link | None = None
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

    def redial(self) -> None:
        """Resolve the address again for the next command; batches under way keep their connection.

        A connection younger than ``REDIAL_S`` is kept: the address has just been resolved.
        """
        link = self._link
        if link is None or link.lost is not None or clock.monotonic_s() - link.made_s < REDIAL_S:
            return
        self._link = None
        self._left = [left for left in self._left if left.lost is None] + [link]
        link.leave()

    async def _connected(self) -> Link:
        link = self._link
        if link is not None and link.lost is None:
            return link
        async with self._connecting:
            if self._link is None or self._link.lost is not None:
                self._link = await self._connect()
                self.links += 1
            return self._link

    async def _connect(self) -> Link:
        """To the first server behind the address that is a primary; without one, to the first that answers."""
        spare: list[Link] = []
        failure: Exception = OSError(f"{self.address} has no address")
        hosts = await self._hosts()
        try:
            for host in hosts:
                try:
                    async with asyncio.timeout(self._timeout_s / len(hosts)):
                        link, primary = await self._dial(host)
                except (OSError, AifError) as error:
                    failure = error
                    continue
                if primary:
                    return link
                spare.append(link)
            if not spare:
                raise failure
            return spare.pop(0)
        finally:
            for link in spare:
                link.leave()

    async def _hosts(self) -> list[str]:
        where = self.address
        if where.path is not None:
            return [where.path]
        found = await asyncio.get_running_loop().getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(info[4][0]) for info in found))

    async def _dial(self, host: str) -> tuple[Link, bool]:
        """A connection that has been greeted, and whether it leads to a primary."""
        loop, where = asyncio.get_running_loop(), self.address
        if where.path is not None:
            _, link = await loop.create_unix_connection(Link, host)
        else:
            name = where.host if where.tls is not None else None
            _, link = await loop.create_connection(Link, host, where.port, ssl=where.tls, server_hostname=name)
        try:
            *replies, role = await link.execute(b"".join([*self._greeting, ROLE]), len(self._greeting) + 1)
            for reply in replies:
                if isinstance(reply, hiredis.ReplyError):
                    raise error_of(reply, f"Redis at {where}")
        except BaseException:
            link.fail("the greeting was not answered")
            raise
        return link, not is_replica(role)

    def close(self) -> None:
        """Drop the connection; batches under way fail."""
        for link in (self._link, *self._left):
            if link is not None:
                link.fail("closed")
