"""What `aif doctor` can only find on Apache Kafka: settings of topics, the broker's clock, commits, rights."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.protocol.admin import CreateAclsRequest

from aif_stream.bus import admin
from aif_stream.bus.connection import open_client
from aif_stream.bus.topics import BEHAVIORS, N2O_ROWS, load_topics
from aif_stream.embedded.kafka import KafkaCluster, KafkaJars
from aif_stream.runtime import bus_health
from aif_stream.runtime.doctor import examine
from aif_stream.runtime.findings import Finding, Level
from aif_stream.settings import Settings
from tests.command import aif_json
from tests.nearline_builders import T0_MS, Stack, kafka_settings, open_stack, worker

NOBODY = {"serve_url": "http://127.0.0.1:9", "retrieval_urls": "http://127.0.0.1:9"}
# The numbers of Kafka's AclResourceType, AclOperation, AclPermissionType and PatternType.
TOPIC, GROUP, READ, WRITE, DENY, ALLOW, LITERAL = 2, 3, 3, 4, 2, 3, 3


@pytest.fixture
async def stack(kafka_cluster: KafkaCluster, redis_url: str, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with open_stack(await kafka_settings(kafka_cluster, redis_url, tmp_path, topic_prefix, **NOBODY)) as made:
        yield made


def _of(found: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in found if finding.check == check]


async def test_settings_of_topics_missing_topics_and_the_clock_are_compared(
    kafka_cluster: KafkaCluster, topic_prefix: str
) -> None:
    settings = Settings(kafka_bootstrap=kafka_cluster.bootstrap, topic_prefix=topic_prefix)
    specs = load_topics()
    specs[N2O_ROWS] = dataclasses.replace(specs[N2O_ROWS], config={**specs[N2O_ROWS].config, "retention.ms": "1000"})
    del specs[BEHAVIORS]
    await admin.apply(settings, specs)
    missing, shorter = await bus_health.check_topics(settings)
    assert (missing.level, BEHAVIORS in missing.what, missing.mend) == (Level.ERROR, True, "aif topics apply")
    assert (shorter.level, "retention.ms is 1000, not 3600000" in shorter.what) == (Level.WARNING, True)
    (clock,) = await bus_health.check_broker_clock(settings)
    # One host, one clock: what is measured is how well it can be measured.
    assert (clock.level, "nothing to compare" in clock.what) == (Level.OK, False)


async def test_an_emptied_redis_is_seen_beside_the_groups_commits(stack: Stack, tmp_path: Path) -> None:
    async with worker(stack.settings):
        await stack.publish_model(tmp_path)
        for number in range(20):
            await stack.put.item(str(number), T0_MS + number)
        await stack.has("19", T0_MS + 19)
    (well,) = _of(await examine(stack.settings), "marks")
    assert well.level is Level.OK
    await stack.redis.call("FLUSHALL")
    code, view = await aif_json(stack.settings, "doctor")
    marks = [finding for finding in view["findings"] if finding["check"] == "marks"]
    assert code == 3
    assert marks
    assert all("Redis proves nothing" in finding["what"] for finding in marks), marks


async def _rule(settings: Settings, kind: int, name: str, operation: int, permission: int) -> None:
    """Add an ACL. What has one is no longer open to everyone: the rest is denied."""
    rule = (kind, name, LITERAL, "User:ANONYMOUS", "*", operation, permission)
    async with open_client(settings) as client:
        await client.force_metadata_update()
        controller = client.cluster.controller
        response = await client.send(controller.nodeId, CreateAclsRequest(*rule))
    assert not response.creation_responses[0][0], response


async def test_what_acls_deny_is_said_as_denied(kafka_jars: KafkaJars, redis_url: str, tmp_path: Path) -> None:
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    async with KafkaCluster(1, kafka_jars, tmp_path / "kafka", settings=rules) as cluster:
        settings = await kafka_settings(cluster, redis_url, tmp_path, "", **NOBODY)
        await _rule(settings, TOPIC, N2O_ROWS, READ, ALLOW)
        await _rule(settings, TOPIC, BEHAVIORS, READ, DENY)
        await _rule(settings, GROUP, "aif.nearline", READ, DENY)
        denied: dict[str, str] = {}
        async with asyncio.timeout(30):
            while len(denied) < 2:  # the authorizer follows its log
                denied = {f.what.split(":")[0]: f.what for f in await bus_health.check_rights(settings) if f.mend}
        assert "denied Write" in denied[N2O_ROWS]
        assert "denied Describe" in denied[BEHAVIORS]
        found = await examine(settings)
    assert {f.level for f in _of(found, "permissions")} == {Level.ERROR}
    assert any("denied:" in f.what and "aif.nearline" in f.what for f in _of(found, "marks")), _of(found, "marks")
