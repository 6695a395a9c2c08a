"""``aif topics`` against real Kafka: the broker ends up with what the contracts say, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from aif_stream.bus import admin
from aif_stream.bus.connection import cluster_identity, open_client
from aif_stream.bus.topics import BEHAVIORS, DEAD_LETTERS, ITEM_UPDATES, N2O_ROWS, USER_UPDATES, load_topics
from aif_stream.bus.wire import IncrementalAlterConfigs
from aif_stream.settings import Settings

SPECS = load_topics()


async def test_after_apply_the_broker_has_what_the_contracts_say_and_a_second_apply_does_nothing(
    settings: Settings,
) -> None:
    assert (await admin.plan(settings, SPECS)).empty
    assert (await admin.apply(settings, SPECS)).empty
    for described in await admin.describe_topics(settings, SPECS):
        spec = SPECS[described.topic.removeprefix(settings.topic_prefix)]
        assert (described.partitions, described.replication, described.cleanup) == (spec.partitions, 1, spec.cleanup)
        assert described.config is not None
        assert {name: described.config[name] for name in spec.config} == dict(spec.config)


async def test_apply_alters_one_setting_and_leaves_what_an_operator_has_set(settings: Settings) -> None:
    name = settings.topic_prefix + BEHAVIORS
    async with open_client(settings) as client:
        controller = client.cluster.controller.nodeId
        await client.send(controller, IncrementalAlterConfigs(name, {"segment.bytes": "20971520"}))
    spec = SPECS[BEHAVIORS]
    longer = replace(spec, config={**spec.config, "retention.ms": "1209600000"})
    plan = await admin.apply(settings, {BEHAVIORS: longer})
    assert plan.alter[0].config == {"retention.ms": ("604800000", "1209600000")}
    (described,) = await admin.describe_topics(settings, {BEHAVIORS: longer})
    assert described.config is not None
    assert described.config["retention.ms"] == "1209600000"
    assert described.config["segment.bytes"] == "20971520"


async def test_apply_raises_partitions_of_the_topic_without_keys_and_refuses_the_rest(settings: Settings) -> None:
    wanted = {
        N2O_ROWS: replace(SPECS[N2O_ROWS], partitions=6),
        ITEM_UPDATES: replace(SPECS[ITEM_UPDATES], partitions=16),
        USER_UPDATES: replace(SPECS[USER_UPDATES], cleanup="delete"),
        BEHAVIORS: replace(SPECS[BEHAVIORS], cleanup="compact"),
        DEAD_LETTERS: replace(SPECS[DEAD_LETTERS], config={**SPECS[DEAD_LETTERS].config, "retention.ms": "1000"}),
    }
    plan = await admin.apply(settings, wanted)
    assert len(plan.refused) == 4
    found = {d.topic.removeprefix(settings.topic_prefix): d for d in await admin.describe_topics(settings, SPECS)}
    assert {base: (d.partitions, d.cleanup) for base, d in found.items()} == {
        base: (6 if base == N2O_ROWS else spec.partitions, spec.cleanup) for base, spec in SPECS.items()
    }
    letters = found[DEAD_LETTERS].config
    assert letters is not None
    assert letters["retention.ms"] == SPECS[DEAD_LETTERS].config["retention.ms"]


async def test_the_identity_of_a_topic_is_the_cluster_s_and_the_topic_s_own(settings: Settings) -> None:
    first, second = await cluster_identity(settings, ITEM_UPDATES), await cluster_identity(settings, BEHAVIORS)
    assert first == await cluster_identity(settings, ITEM_UPDATES)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert not first[1].startswith(settings.topic_prefix)


async def test_the_verb_creates_compares_and_describes(settings: Settings, tmp_path: Path) -> None:
    other = settings.topic_prefix + "verb."
    wanted = [spec.name for spec in SPECS.values()]
    plan = await aif(settings, other, "plan", "--json")
    assert [creation["topic"] for creation in plan["create"]] == [other + name for name in wanted]
    assert (plan["alter"], plan["refused"]) == ([], [])
    assert len((await aif(settings, other, "apply", "--json"))["create"]) == len(wanted)
    described = await aif(settings, other, "describe", "--json")
    assert [topic["topic"] for topic in described] == [other + name for name in wanted]
    assert {topic["cleanup"] for topic in described} == {"compact", "delete"}

    contracts = tmp_path / "topics"
    shutil.copytree(Path(__file__).parents[3] / "topics", contracts)
    items = contracts / "aif.item-updates.toml"
    items.write_text(items.read_text().replace("partitions = 8", "partitions = 9"))
    refused = await aif(settings, other, "apply", "--json", contracts=contracts, code=1)
    assert [refusal["topic"] for refusal in refused["refused"]] == [other + ITEM_UPDATES]
    await aif(settings, other, "plan", "--check", "--json", contracts=contracts, code=3)


async def aif(settings: Settings, prefix: str, *words: str, contracts: Path | None = None, code: int = 0) -> Any:
    environment = {
        **os.environ,
        "AIF_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "AIF_TOPIC_PREFIX": prefix,
        **({"AIF_TOPICS_DIR": str(contracts)} if contracts else {}),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aif_stream", "topics", *words),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return json.loads(out)
