"""Where a role listens for HTTP, and how it stops cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from aif_stream.errors import AifError, SettingsError
from aif_stream.telemetry import kv
from aif_stream.web import Health, application

log = logging.getLogger(__name__)

_GRACE_S: Final = 5  # a request has a deadline of seconds; what is still open after this is cut
_MESSAGE_BYTES: Final = 64 * 1024  # of a WebSocket; clients have nothing to say that the server reads
_EVERY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers (the role owns them) and with an event for "listening"."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.servers = []
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop_listening()
        await super().shutdown(sockets)

    def stop_listening(self) -> None:
        """Take the sockets out of the loop before anybody closes them. uvicorn closes them first: the loop then keeps
        their numbers in its selector, and the next socket with such a number fails with ENOENT."""
        for server in self.servers:
            server.close()


def bind(host: str, port: int, *, shared: bool = False, listen: bool = True) -> socket.socket:
    """A listening socket; port 0 takes a free one. ``shared``: several processes may listen there, the kernel deals
    the connections out. ``listen`` False: the address is only reserved.

    Raises ``SettingsError`` when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where it sees the protocol's number, and accepted sockets inherit it:
    # with 0 (as socket.create_server leaves it) an answer of several segments waited 40 ms for the client's ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind((host, port))
        if listen:
            bound.listen(1024)
    except OSError as error:
        bound.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}", mend="choose another port") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """``http://127.0.0.1:8080``, where others reach it: a socket bound to every address says the host's own."""
    host, port = bound.getsockname()[:2]
    if host in _EVERY_ADDRESS:
        host = _own_address()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _own_address() -> str:
    """What this host's name means to itself: in a container the address in its network."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


async def serve_http(
    app: ASGIApp, bound: socket.socket, stop: asyncio.Event, *more: socket.socket, sockets: bool = False
) -> None:
    """Serve until ``stop``, then stop taking, let open requests end (5 s at most) and close the socket (and ``more``,
    other addresses of the same application). ``sockets``: WebSockets too."""
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="websockets-sansio" if sockets else "none",
        ws_max_size=_MESSAGE_BYTES,
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _Server(config)
    waiting = asyncio.create_task(stop.wait())
    running = asyncio.create_task(server.serve(sockets=[bound, *more]))
    try:
        await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await running
    finally:
        for task in (waiting, running):
            task.cancel()
        await asyncio.gather(waiting, running, return_exceptions=True)
        server.stop_listening()
        for each in (bound, *more):
            each.close()
        log.info(kv("http.stopped"))


@contextlib.asynccontextmanager
async def health_served(health: Health, host: str, port: int) -> AsyncIterator[str]:
    """/metrics, /livez, /startupz and /readyz of a role without HTTP of its own, while the body runs; their address."""
    bound, ended = bind(host, port), asyncio.Event()
    serving = asyncio.create_task(serve_http(application(health.routes()), bound, ended))
    try:
        yield address_of(bound)
    finally:
        ended.set()
        await serving


def first_cause(error: BaseException) -> BaseException:
    """The first error of a group of groups; any other error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextlib.contextmanager
def first_of_group() -> Iterator[None]:
    """A TaskGroup's ``ExceptionGroup`` becomes its first error of ours, which the command line can print."""
    try:
        yield
    except BaseExceptionGroup as group:
        found = first_cause(group)
        if isinstance(found, AifError):
            raise found from None
        raise
