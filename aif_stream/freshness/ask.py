"""One report for a verb: the running monitor's (it has the past and the probe), else a look of one's own."""

from __future__ import annotations

from typing import Final

import aiohttp
import msgspec

from aif_stream.domain.freshness import Presence
from aif_stream.freshness.peers import Peers
from aif_stream.freshness.report import LagReport, ProbeFigures, decode
from aif_stream.freshness.watch import Watcher
from aif_stream.index.leases import MONITOR
from aif_stream.settings import Settings

_PATIENCE_S: Final = 4.0  # twice what the monitor may wait for a silent server


async def lag_report(settings: Settings) -> LagReport:
    """Everything, now. Raises ``BusUnavailable``, ``TopicError``."""
    async with Peers(settings) as peers:
        report = await _of_monitor(peers)
        if report is not None:
            return report
        there = any(peer.presence in (Presence.LIVE, Presence.STUCK) for peer in await peers.of(MONITOR))
        async with Watcher(settings, peers) as watcher:
            watcher.probe = lambda: ProbeFigures(problem="the monitor does not answer") if there else ProbeFigures()
            return await watcher.settled()


async def _of_monitor(peers: Peers) -> LagReport | None:
    for peer in await peers.of(MONITOR):
        if peer.presence is not Presence.LIVE:
            continue
        try:
            timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
            async with peers.session.get(f"{peer.lease.url}/v1/lag", timeout=timeout) as reply:
                if reply.status == 200:
                    return decode(await reply.read())
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError):
            continue
    return None
