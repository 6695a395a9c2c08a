"""``aif serve`` put together: Redis, versions, retrieval client, merger, HTTP; one context, one clean stop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from aif_stream.bus.request_log import RequestLogWriter
from aif_stream.clock import monotonic_s
from aif_stream.domain.freshness import RecentLags
from aif_stream.errors import IndexUnavailable
from aif_stream.index.connection import Redis, open_redis
from aif_stream.index.explanations import ExplanationStore
from aif_stream.index.histories import HistoryStore
from aif_stream.index.keys import Buckets
from aif_stream.index.leases import SERVE, keep_lease
from aif_stream.index.store import N2OStore
from aif_stream.listening import address_of, bind, first_of_group, serve_http
from aif_stream.online.admission import Admission
from aif_stream.online.all_metrics import AllMetrics
from aif_stream.online.breaker import Breaker
from aif_stream.online.executor import ComputeThreads
from aif_stream.online.explanation_feed import ExplanationFeed
from aif_stream.online.explanation_work import ExplanationWork
from aif_stream.online.explanations import Explanations
from aif_stream.online.facts_keeper import FactsKeeper
from aif_stream.online.issued_ids import IssuedIds
from aif_stream.online.loop_lag import watch_loop
from aif_stream.online.merger import Merger
from aif_stream.online.overview import Overview
from aif_stream.online.precision import use_kernels
from aif_stream.online.publishing import ItemPublishing
from aif_stream.online.recompute import Recompute
from aif_stream.online.retrieval_client import RetrievalClient
from aif_stream.online.server import RankServer
from aif_stream.online.user_side import UserSides
from aif_stream.online.versions import ServedVersions
from aif_stream.settings import Settings
from aif_stream.telemetry import kv
from aif_stream.web import Health

log = logging.getLogger(__name__)

_RETRY_S = 1.0


@asynccontextmanager
async def serve_role(settings: Settings, stop: asyncio.Event) -> AsyncIterator[str]:
    """The role as a context: yields its address once Redis has answered and HTTP listens.

    ``/readyz`` says when requests are answered. ``stop`` (or leaving the context) stops taking requests, lets open
    ones end, then closes everything. What ends the role for good (a mirror that does not fit, a missing topic)
    is raised out of the context.
    """
    use_kernels(settings)
    async with AsyncExitStack() as stack:
        bound = bind(settings.host, settings.serve_port, shared=bool(settings.serve_worker))
        stack.callback(bound.close)
        # One of several processes behind a port has an address of its own beside it, so that its metrics can be read
        # and the watch reaches every mirror.
        metrics = await stack.enter_async_context(AllMetrics(settings))
        own = [bind(settings.host, metrics.own_port, shared=True)] if settings.serve_worker else []
        for each in own:
            stack.callback(each.close)
        address = address_of(own[0] if own else bound)
        redis, store = await _connect(settings, stack, stop)
        threads = stack.enter_context(ComputeThreads(settings.executor_threads))
        retrieval = await stack.enter_async_context(RetrievalClient(settings, threads.run))
        publishing = await stack.enter_async_context(ItemPublishing(settings))
        requests = await stack.enter_async_context(RequestLogWriter(settings))
        active = ServedVersions(settings, store, threads)
        breaker = Breaker()
        users = UserSides(settings, HistoryStore(redis, settings.history_long), threads, breaker)
        await stack.enter_async_context(users)
        admission = Admission(settings, threads.count)
        feed, facts, explanations = await _explaining(settings, stack, redis, active)
        merger = Merger(
            settings,
            pin=active.pin,
            users=users,
            retrieval=retrieval,
            recompute=Recompute(settings, store, threads, breaker),
            threads=threads,
            behind=active.behind,
            admission=admission,
            logs=requests.wants,
            answered=requests.offer,
            facts=facts,
        )
        status = _Status(settings, active, retrieval, breaker, admission, threads)
        status.health.metrics = metrics.answer
        overview = await stack.enter_async_context(Overview(redis, partial(_recent, active)))
        more = [*explanations.routes(), *overview.routes()]
        server = RankServer(settings, merger, publishing, status.health, status.view, more)
        overview.view = server.view
        ended = asyncio.Event()
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        following = tasks.create_task(active.run(), name="versions")
        serving = tasks.create_task(serve_http(server.app, bound, ended, *own, sockets=True), name="http")
        relay = tasks.create_task(_relay(stop, ended, feed, overview), name="stop")
        lease = tasks.create_task(keep_lease(settings, SERVE, partial(status.lease, address)), name="lease")
        lag = tasks.create_task(watch_loop(), name="loop-lag")
        log.info(kv("serve.listening", address=address_of(bound), own=address, join=settings.join))
        try:
            yield address_of(bound)
        finally:
            feed.close()
            ended.set()
            overview.end()
            relay.cancel()
            await asyncio.wait([serving])
            following.cancel()
            lease.cancel()
            lag.cancel()
            log.info(kv("serve.stopped", answered=server.requests.answered))


async def run_serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until ``stop``."""
    with first_of_group():
        async with serve_role(settings, stop):
            await stop.wait()


async def _explaining(
    settings: Settings, stack: AsyncExitStack, redis: Redis, active: ServedVersions
) -> tuple[ExplanationFeed, FactsKeeper, Explanations]:
    """What explanations need beside the answers: their stream, the facts that are kept, their routes."""
    explained = ExplanationStore(redis, keep_s=settings.explain_keep_s, facts_s=settings.explain_facts_s)
    work = await stack.enter_async_context(ExplanationWork(settings, explained))
    ids = await stack.enter_async_context(IssuedIds(settings, explained))
    feed = await stack.enter_async_context(ExplanationFeed(settings, explained, ids))
    facts = await stack.enter_async_context(FactsKeeper(settings, explained, work, ids))
    return feed, facts, Explanations(settings, explained, work=work, feed=feed, keeper=facts, retired=active.is_retired)


async def _connect(settings: Settings, stack: AsyncExitStack, stop: asyncio.Event) -> tuple[Redis, N2OStore]:
    """Wait for Redis: at a start nothing can be served without it (later it can)."""
    while True:
        try:
            async with AsyncExitStack() as opening:
                redis = await opening.enter_async_context(open_redis(settings))
                store = N2OStore(redis, Buckets(settings.index_buckets))
                await store.ensure_layout()
                stack.push_async_exit(opening.pop_all())
                return redis, store
        except IndexUnavailable as error:
            if stop.is_set():
                raise
            log.warning(kv("redis.unreachable", problem=error))
            await asyncio.sleep(_RETRY_S)


async def _relay(stop: asyncio.Event, ended: asyncio.Event, feed: ExplanationFeed, overview: Overview) -> None:
    await stop.wait()
    feed.close()  # streams would be open requests for ever
    overview.end()
    ended.set()


def _recent(active: ServedVersions) -> RecentLags | None:
    serving = active.serving
    return None if serving is None or serving.mirror is None else serving.mirror.recent


class _Status:
    """Health and the server's part of ``/v1/status``."""

    def __init__(
        self,
        settings: Settings,
        active: ServedVersions,
        retrieval: RetrievalClient,
        breaker: Breaker,
        admission: Admission,
        threads: ComputeThreads,
    ) -> None:
        self._admission = admission
        self._threads = threads
        self._settings = settings
        self._active = active
        self._retrieval = retrieval
        self._breaker = breaker
        self.health = Health(self._reasons, self._facts)

    def _reasons(self) -> list[str]:
        reasons = self._active.reasons()
        self.health.started = self.health.started or not reasons
        return reasons

    def _facts(self) -> dict[str, Any]:
        serving = self._active.serving
        return {
            "model_version": None if serving is None else serving.name,
            "model_versions": self._active.names,
            "versions": self._active.view(),
            "join": self._settings.join,
            "pid": os.getpid(),
            "precision": None if serving is None or serving.precision is None else asdict(serving.precision),
            "problem": self._active.problem,
        }

    def lease(self, url: str) -> dict[str, Any]:
        """What the lease says: where to ask, which versions must stay in Redis, how large the mirror is, and how
        long its threads have worked (explanations stand back for that)."""
        serving = self._active.serving
        return {
            "url": url,
            "model_version": None if serving is None else serving.name,
            "model_versions": self._active.names,
            "rows": None if serving is None or serving.mirror is None else len(serving.mirror),
            "busy_s": round(self._threads.busy_s, 3),
            "threads": self._threads.count,
        }

    def view(self) -> dict[str, Any]:
        serving, feed = self._active.serving, self._active.feed
        fed = None if serving is None else serving.fed
        mirror = None
        if fed is not None:
            mirror = {
                "rows": len(fed.mirror),
                "memory_mb": round(fed.mirror.nbytes / 2**20, 1),
                "applied_age_s": round(fed.confirmed_age_s, 3),
                "freshness": fed.mirror.recent.read(monotonic_s()),
                "positions": {str(number): offset for number, offset in feed.positions.items()},
                "problem": fed.problem,
            }
        return {
            **self._facts(),
            "reasons": self._reasons(),
            "mirror": mirror,
            "freshness_lag_ms": None if fed is None else feed.lag_ms.quantiles(),
            "in_service": self._admission.in_service,
            "in_service_limit": self._admission.limit(self._settings.deadline_ms / 1000.0),
            "shed": self._admission.shed,
            "redis": self._breaker.state,
            "retrieval": self._retrieval.states(),
        }
