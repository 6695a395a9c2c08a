"""The Redis primary is demoted while explanations are worked out: they wait, and complete on the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import DEAD_LETTERS
from aif_stream.embedded.broker import EmbeddedBroker
from aif_stream.explain.worker import ATTEMPTS
from tests.integration.explain.conftest import IDS, serving, worker
from tests.online_builders import online_settings
from tests.redis_pair import redis_pair
from tests.stack import eventually, topics


async def test_explanations_wait_for_the_new_primary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with EmbeddedBroker(topics()) as broker, redis_pair() as pair:
        settings = online_settings(
            broker.bootstrap,
            pair.address.url,
            tmp_path,
            retrieval_urls="http://127.0.0.1:9",
            kafka_session_timeout_ms=1500,
        )
        async with serving(settings) as stack:
            answer = await stack.client.rank("ann", candidates=IDS, k=5, explain=5)
            asked = [each["explanation_id"] for each in answer["explanations"]]

            async def pending() -> bool:
                return all([(await stack.client.get(f"/v1/explanations/{name}"))[0] == 200 for name in asked])

            await eventually(pending, what="the explanations are pending")
            async with worker(settings) as explain:
                await pair.hand_over()

                async def unready() -> bool:
                    return bool(explain.reasons())

                await eventually(unready, what="the worker is not ready")
                answered = await stack.client.rank("ann", candidates=IDS, k=5)
                assert len(answered["items"]) == 5

                async def tried() -> bool:  # more often than a method that raises is tried
                    return caplog.text.count(f"explanation.again explanation={asked[0]}") > ATTEMPTS

                await eventually(tried, what="an explanation has been tried again and again")
                pair.address.target = pair.second.port
                states = [(await stack.ended(name))["state"] for name in asked]
                assert states == ["complete"] * len(asked)
                assert not explain.reasons()
        async with LogReader(settings, DEAD_LETTERS) as letters:
            assert sum((await letters.end_offsets()).values()) == 0
