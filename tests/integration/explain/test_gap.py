"""The gap of a running system: nobody works, then somebody does, as ``aif lag`` reports it."""

from __future__ import annotations

from aif_stream.freshness.peers import Peers
from aif_stream.freshness.report import ExplanationGap
from aif_stream.freshness.watch import Watcher
from aif_stream.index.connection import open_redis
from aif_stream.index.leases import EXPLAIN, LeaseBook
from tests.integration.explain.conftest import IDS, Stack, worker
from tests.stack import eventually


async def test_what_is_asked_for_waits_is_worked_off_and_says_how_many_would_close_it(stack: Stack) -> None:
    answer = await stack.client.rank("ann", candidates=IDS, k=10, explain=True)
    async with Peers(stack.settings) as peers, Watcher(stack.settings, peers) as watcher:

        async def low(waiting: int) -> ExplanationGap | None:
            gap = (await watcher.look()).explanations
            if gap is None or gap.priorities[2].waiting != waiting or gap.priorities[2].oldest_s is None:
                return None  # not there yet, or a busy broker did not show the oldest in time
            return gap

        await watcher.look()
        names = [
            (await stack.ask(answer["request_id"], item["item_id"], priority="low"))["explanation_id"]
            for item in answer["items"]
        ]
        gap = await eventually(lambda: low(10), what="ten wait")
        assert (gap.workers, gap.workers_needed) == (0, None)
        assert gap.priorities[0].waiting == 0
        oldest_s = gap.priorities[2].oldest_s
        assert oldest_s is not None
        assert 0.0 <= oldest_s < 60.0
        async with worker(stack.settings) as opened, open_redis(stack.settings) as redis:
            leases = LeaseBook(redis)
            for name in names:
                assert (await stack.ended(name))["state"] == "complete"
            gap = await eventually(lambda: low(0), what="their offsets are committed")
            assert opened.pace.done >= 10

            async def one_worker() -> ExplanationGap | None:
                await leases.put(EXPLAIN, "one", opened.pace.facts())
                gap = (await watcher.look()).explanations
                return gap if gap is not None and gap.workers == 1 else None

            gap = await eventually(one_worker, what="the worker is seen")
            assert gap.priorities[2].seen == 10
            assert (gap.priorities[2].p99_s or 0.0) >= oldest_s
            await leases.drop(EXPLAIN, "one")
