"""The session's Kafka with every topic of the contracts under a prefix of the test's own."""

from __future__ import annotations

import pytest_asyncio

from aif_stream.bus import admin
from aif_stream.bus.topics import load_topics
from aif_stream.embedded.kafka import KafkaCluster
from aif_stream.settings import Settings


@pytest_asyncio.fixture(loop_scope="session")
async def settings(kafka_cluster: KafkaCluster, topic_prefix: str) -> Settings:
    # 6 s is the least that a broker takes by default (group.min.session.timeout.ms).
    settings = Settings(
        kafka_bootstrap=kafka_cluster.bootstrap, topic_prefix=topic_prefix, kafka_session_timeout_ms=6_000
    )
    await admin.apply(settings, load_topics())
    return settings
