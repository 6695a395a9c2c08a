"""The plan of ``aif topics``: creates, alters, and refuses what would lose data or order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aif_stream.bus.admin import Plan, compare
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES, N2O_ROWS, TopicSpec, load_topics
from aif_stream.bus.wire import ClusterInfo, TopicInfo
from aif_stream.settings import Settings

SPECS = load_topics()
SETTINGS = Settings(topic_prefix="p.")


def planned(base: str, *, partitions: int | None = None, copies: int = 3, shorten: bool = False, **config: str) -> Plan:
    """The plan for one topic that is on the broker as its contract says, but for what is named."""
    spec = SPECS[base]
    name = f"p.{base}"
    info = TopicInfo(name, "id", partitions or spec.partitions, copies, True)
    has = spec.kafka_config(copies) | {key.replace("_", "."): value for key, value in config.items()}
    return compare(SETTINGS, {base: spec}, ClusterInfo("c", 3, 1, {name: info}), {name: has}, shorten=shorten)


def refused(plan: Plan) -> str:
    assert not plan.create
    (refusal,) = plan.refused
    assert refusal.mend
    return refusal.problem


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_a_topic_as_its_contract_says_needs_nothing(spec: TopicSpec) -> None:
    assert planned(spec.name).empty


def test_missing_topics_are_created_with_prefix_configuration_and_as_many_copies_as_brokers() -> None:
    plan = compare(SETTINGS, SPECS, ClusterInfo("c", 1, 1, {}), {})
    assert {creation.topic for creation in plan.create} == {f"p.{base}" for base in SPECS}
    creation = next(c for c in plan.create if c.topic == "p.aif.item-updates")
    assert (creation.partitions, creation.replication) == (8, 1)
    assert creation.config["cleanup.policy"] == "compact"
    assert creation.config["min.insync.replicas"] == "1"
    assert "fewer copies" in plan.notes[0]


def test_a_setting_that_differs_is_altered_and_no_other_is_touched() -> None:
    plan = planned(BEHAVIORS, message_timestamp_type="CreateTime", segment_bytes="123")
    assert not plan.refused
    (alteration,) = plan.alter
    assert alteration.config == {"message.timestamp.type": ("CreateTime", "LogAppendTime")}


def test_partitions_of_a_topic_with_keys_are_never_raised() -> None:
    assert "would move keys" in refused(planned(ITEM_UPDATES, partitions=4))


def test_partitions_of_a_topic_without_keys_are_raised() -> None:
    (alteration,) = planned(N2O_ROWS, partitions=2).alter
    assert alteration.partitions == (2, 4)


@pytest.mark.parametrize("base", [ITEM_UPDATES, N2O_ROWS])
def test_partitions_are_never_lowered(base: str) -> None:
    assert "cannot take partitions away" in refused(planned(base, partitions=99))


def test_the_number_of_copies_is_not_changed() -> None:
    assert "1 copies, the contract says 3" in refused(planned(BEHAVIORS, copies=1))
    assert planned(BEHAVIORS, copies=4).empty


def test_compact_to_delete_and_back_are_refused_with_the_times_that_go_with_them() -> None:
    plan = planned(BEHAVIORS, cleanup_policy="compact", retention_ms="1")
    assert "last state of quiet keys" in refused(plan)
    assert not plan.alter
    assert "all but the last record" in refused(planned(ITEM_UPDATES, cleanup_policy="delete"))


def test_compact_and_delete_together_become_compact_alone() -> None:
    (alteration,) = planned(ITEM_UPDATES, cleanup_policy="compact,delete").alter
    assert alteration.config == {"cleanup.policy": ("compact,delete", "compact")}


@pytest.mark.parametrize("now", ["604800001", "-1"])
def test_keeping_less_is_refused_unless_it_is_meant(now: str) -> None:
    assert "deletes sooner" in refused(planned(BEHAVIORS, retention_ms=now)).replace("the broker delete ", "deletes ")
    plan = planned(BEHAVIORS, retention_ms=now, shorten=True)
    assert not plan.refused
    assert plan.alter[0].config == {"retention.ms": (now, "604800000")}


def test_keeping_more_is_altered() -> None:
    plan = planned(ITEM_UPDATES, delete_retention_ms="1000", min_compaction_lag_ms="0")
    assert not plan.refused
    assert set(plan.alter[0].config) == {"delete.retention.ms", "min.compaction.lag.ms"}


def test_a_broker_that_tells_no_configuration_is_compared_by_shape() -> None:
    name = f"p.{BEHAVIORS}"
    cluster = ClusterInfo("c", 1, 1, {name: TopicInfo(name, None, 4, 1, True)})
    plan = compare(SETTINGS, {BEHAVIORS: SPECS[BEHAVIORS]}, cluster, {})
    assert "would move keys" in refused(plan)
    assert not plan.alter
    assert any("does not tell configurations" in note for note in plan.notes)


def test_a_topic_of_another_prefix_is_not_ours() -> None:
    cluster = ClusterInfo("c", 1, 1, {BEHAVIORS: TopicInfo(BEHAVIORS, None, 1, 1, True)})
    plan = compare(SETTINGS, {BEHAVIORS: replace(SPECS[BEHAVIORS])}, cluster, {})
    assert [creation.topic for creation in plan.create] == [f"p.{BEHAVIORS}"]
