"""The Faust host with parts that have no servers."""

from __future__ import annotations

import asyncio

import pytest

from aif_stream.errors import AifError, IndexUnavailable
from aif_stream.nearline.host import Host
from aif_stream.settings import Settings


class Part:
    """Runs until it is told to stop, or dies at once."""

    def __init__(self, name: str, dies_of: Exception | None = None, ends: bool = False) -> None:
        self.name = name
        self.dies_of = dies_of
        self.ends = ends
        self.drained = False

    async def run(self, stop: asyncio.Event) -> None:
        if self.dies_of is not None:
            raise self.dies_of
        if not self.ends:
            await stop.wait()
            self.drained = True


async def test_a_dead_part_stops_the_others_and_its_reason_is_raised() -> None:
    host = Host(Settings())
    other = Part("other")
    host.add(other)
    host.add(Part("items", dies_of=AifError("the items lane died")))
    with pytest.raises(AifError, match="the items lane died"):
        await asyncio.wait_for(host.run(asyncio.Event()), 20)
    assert other.drained


async def test_a_part_that_ends_unasked_is_a_failure() -> None:
    host = Host(Settings())
    host.add(Part("items", ends=True))
    with pytest.raises(AifError, match="items ended"):
        await asyncio.wait_for(host.run(asyncio.Event()), 20)


async def test_stop_drains_every_part_and_run_returns() -> None:
    host = Host(Settings())
    parts = [Part("items"), Part("users")]
    for part in parts:
        host.add(part)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    await asyncio.wait_for(host.run(stop), 20)
    assert all(part.drained for part in parts)


async def test_a_timer_survives_an_outage_and_its_bug_ends_the_worker() -> None:
    host = Host(Settings())
    calls = 0

    async def tick() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise IndexUnavailable("Redis is away")
        raise ZeroDivisionError

    host.add(Part("items"))
    host.every(0.01, "tick", tick)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(host.run(asyncio.Event()), 20)
    assert calls >= 2


async def test_faust_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", "kafka://elsewhere:1")
    monkeypatch.setenv("WEB_ENABLED", "yes")
    host = Host(Settings(kafka_bootstrap="127.0.0.1:7"))
    assert [url.port for url in host._app.conf.broker] == [7]
    assert not host._app.conf.web_enabled
