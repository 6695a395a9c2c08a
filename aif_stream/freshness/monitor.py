"""``aif monitor``: probe, sliding windows and exporter in one process, with ``GET /v1/lag`` for ``aif lag``."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aif_stream.clock import elapsed_ms, monotonic_s
from aif_stream.domain.freshness import Status
from aif_stream.errors import BadInput, BusUnavailable, Overloaded
from aif_stream.freshness.exporter import Exporter
from aif_stream.freshness.overview import History, Versions
from aif_stream.freshness.peers import Peers
from aif_stream.freshness.probe import Probe
from aif_stream.freshness.report import LagReport, encode
from aif_stream.freshness.watch import Watcher
from aif_stream.index.leases import MONITOR, NEARLINE, SERVE, keep_lease
from aif_stream.listening import address_of, bind, first_of_group, serve_http
from aif_stream.settings import Settings
from aif_stream.telemetry import kv
from aif_stream.web import Health, application, json_response

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
_RETRY_S: Final = 1.0
_ANSWER_S: Final = 10.0
_SCRAPED: Final = (SERVE, NEARLINE, "explain", MONITOR)  # retrieval knows no Redis: a static target


class Monitor:
    """What the tasks of the role share. One monitor per system: two would share the probe's item."""

    def __init__(self, settings: Settings, peers: Peers) -> None:
        self._settings = settings
        self._peers = peers
        self._watcher: Watcher | None = None
        self._statuses: dict[tuple[str, str, int], Status] = {}
        self._problem = "connecting"
        self._exporter = Exporter()
        self._history = History()
        self.versions = Versions(settings)
        self.probe = Probe(settings, peers)
        self.health = Health(self._reasons)
        self.app = application(
            [
                Route("/v1/lag", self._lag),
                Route("/v1/overview", self._overview),
                Route("/v1/targets", self._targets),
                *self.health.routes(),
            ]
        )

    async def watch(self) -> None:
        """Look every second until cancelled. Kafka away: tried again, and ``/readyz`` says so."""
        while True:
            try:
                async with Watcher(self._settings, self._peers) as watcher:
                    watcher.probe = self.probe.figures
                    self._watcher = watcher
                    while True:
                        began_s = monotonic_s()
                        self._note(await watcher.look())
                        await asyncio.sleep(max(0.0, LOOK_S - elapsed_ms(began_s) / 1000))
            except BusUnavailable as error:
                self._problem = str(error)
                log.warning(kv("watch.failed", problem=error))
            finally:
                self._watcher = None
            await asyncio.sleep(_RETRY_S)

    def _note(self, report: LagReport) -> None:
        self._problem, self.health.started = "", True
        self._exporter.show(report)
        self._history.add(report)
        for part in report.partitions:
            where = (part.group, part.topic, part.partition)
            if self._statuses.get(where, Status.OK) is not part.status:
                level = logging.INFO if part.status is Status.OK else logging.WARNING
                log.log(
                    level,
                    kv("status", group=where[0], partition=where[2], status=part.status, reason=part.reason or "-"),
                )
            self._statuses[where] = part.status

    def _reasons(self) -> list[str]:
        return [self._problem] if self._problem else []

    async def _lag(self, _: Request) -> Response:
        """A look of now; probe and windows are those of the last seconds."""
        if self._watcher is None:
            raise Overloaded(f"the monitor sees nothing: {self._problem}")
        try:
            async with asyncio.timeout(_ANSWER_S):
                report = await self._watcher.look()
        except TimeoutError:
            raise Overloaded(f"no look was done within {_ANSWER_S:g} s") from None
        return Response(encode(msgspec.structs.replace(report, by="aif monitor")), media_type="application/json")

    async def _overview(self, request: Request) -> Response:
        """For a dashboard: the last look (a second old at most), the points after ``since`` (ms), the versions."""
        since = request.query_params.get("since", "0")
        if not (since.isascii() and since.isdigit() and len(since) < 20):
            raise BadInput("ms since 1970", field="since")
        found = {
            "lag": self._history.last,
            "history": self._history.since(int(since)),
            "versions": self.versions.view(),
            "problem": self._problem,
        }
        return Response(msgspec.json.encode(found), media_type="application/json")

    async def _targets(self, _: Request) -> Response:
        """Prometheus' HTTP service discovery: every process that has a lease, at its own address."""
        found = [(role, peer) for role in _SCRAPED for peer in await self._peers.of(role) if peer.lease.url]
        return json_response(
            [
                {"targets": [urlsplit(peer.lease.url).netloc], "labels": {"role": role, "process": peer.lease.id}}
                for role, peer in found
            ]
        )


async def run_monitor(settings: Settings, stop: asyncio.Event) -> None:
    """The role until ``stop``. Raises ``SettingsError`` (port taken), ``TopicError``."""
    bound = bind(settings.host, settings.monitor_port)
    url = address_of(bound)
    with first_of_group():
        async with Peers(settings) as peers, asyncio.TaskGroup() as tasks:
            monitor = Monitor(settings, peers)
            facts: dict[str, Any] = {"url": url}
            beside = [
                tasks.create_task(monitor.watch(), name="watch"),
                tasks.create_task(monitor.probe.run(), name="probe"),
                tasks.create_task(monitor.versions.run(), name="versions"),
                tasks.create_task(keep_lease(settings, MONITOR, lambda: facts), name="lease"),
            ]
            log.info(kv("monitor.listening", address=url))
            with suppress(asyncio.CancelledError):
                await serve_http(monitor.app, bound, stop)
            for task in beside:
                task.cancel()
            figures = monitor.probe.figures()
            log.info(kv("monitor.stopped", probes=figures.seen, p50_s=figures.p50_s, p99_s=figures.p99_s))
