"""The doctor's look at Redis: policy, persistence, memory now and with one version more, clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aif_stream.index.connection import Redis, check_server
from aif_stream.index.footprint import Footprint, footprint
from aif_stream.index.keys import Buckets
from aif_stream.index.server_info import ServerInfo, server_clocks, server_infos
from aif_stream.index.store import N2OStore
from aif_stream.runtime.bus_health import skew_finding
from aif_stream.runtime.findings import Finding, error, ok, warning
from aif_stream.settings import Settings

# An AOF rewrite copies every page that is written meanwhile: a Redis fuller than this may not survive one under load.
_FULL: Final = 0.8


async def check_redis(settings: Settings, redis: Redis) -> list[Finding]:
    """Policy, version, persistence, the index's layout. Raises ``IndexUnavailable``, ``IndexRefused``."""
    await N2OStore(redis, Buckets(settings.index_buckets)).ensure_layout()
    found = [
        (error if finding.fatal else warning)("redis", finding.problem, finding.mend)
        for finding in await check_server(redis)
    ]
    for info in await server_infos(redis):
        found += [error("redis", f"{info.where}: {trouble}", "look at its disk and log") for trouble in info.troubles]
        found.append(ok("redis", f"{info.where}: Redis {info.version}"))
    return found


async def check_memory(settings: Settings, redis: Redis) -> list[Finding]:
    """Memory used, and what the next model version will take. Raises ``IndexUnavailable``, ``IndexRefused``."""
    store = N2OStore(redis, Buckets(settings.index_buckets))
    sizes = [await footprint(redis, store.buckets, version) for version in sorted(await store.versions())]
    infos = await server_infos(redis)
    found = [
        warning("memory", f"{info.where}: no maxmemory: the host's memory is the limit", "set maxmemory, noeviction")
        for info in infos
        if not info.limit_bytes
    ]
    return [*found, _forecast(infos, sizes)]


def _forecast(infos: Sequence[ServerInfo], sizes: Sequence[Footprint]) -> Finding:
    used, room = sum(info.used_bytes for info in infos), sum(info.room_bytes for info in infos)
    # The next version has the rows of the largest one; its rows are taken to be as large.
    next_ = max((size.bytes for size in sizes), default=0.0)
    rows = ", ".join(f"{size.version} {size.rows:,} × {size.row_bytes:.0f} B" for size in sizes) or "no rows"
    what = f"{mib(used)} of {mib(room)} used ({rows})"
    if not room:
        return ok("memory", what)
    forecast = f"{what}; one version more: {mib(used + next_)}"
    if used + next_ > room:
        return error("memory", f"{forecast}: does not fit", "raise maxmemory, or retire a version before the next one")
    if used + next_ > _FULL * room:
        mend = "raise maxmemory: an AOF rewrite under load needs room, too"
        return warning("memory", f"{forecast}: more than {_FULL:.0%}", mend)
    return ok("memory", forecast)


async def check_redis_clock(settings: Settings, redis: Redis) -> list[Finding]:
    """Redis' clock beside ours. Raises ``IndexUnavailable``, ``IndexRefused``."""
    return [
        skew_finding(f"Redis' clock ({clock.where})", clock.ahead_ms, clock.within_ms, settings.max_ahead_ms)
        for clock in await server_clocks(redis)
    ]


def mib(count: float) -> str:
    """``1.5 GiB`` or ``12 MiB``."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
