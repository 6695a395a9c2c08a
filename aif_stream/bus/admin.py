"""``aif topics``: compare the contracts with the broker, create and alter, refuse what would lose data or order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, NoError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.admin import CreatePartitionsRequest, CreateTopicsRequest, DescribeConfigsRequest

from aif_stream.bus.connection import REQUEST_DEADLINE_S, ask_cluster, kafka_errors, open_client
from aif_stream.bus.diagnosis import AUTHORIZATION_ERRORS
from aif_stream.bus.topics import TopicSpec, topic_name
from aif_stream.bus.wire import TOPIC_RESOURCE, ClusterInfo, IncrementalAlterConfigs, TopicInfo
from aif_stream.clock import monotonic_s
from aif_stream.errors import BusUnavailable, TopicError
from aif_stream.settings import Settings

# Settings whose lowering makes the broker delete, or compact away, what it would have kept.
_KEEPERS: Final = (
    "retention.ms",
    "retention.bytes",
    "delete.retention.ms",
    "min.compaction.lag.ms",
)


@dataclass(frozen=True, slots=True)
class Creation:
    """A topic that the broker lacks."""

    topic: str
    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Alteration:
    """A topic whose settings differ: ``config`` name -> (now, contract); ``partitions`` (now, contract) or None."""

    topic: str
    config: Mapping[str, tuple[str, str]]
    partitions: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A difference that ``apply`` will not mend, because data or order would be lost."""

    topic: str
    problem: str
    mend: str


@dataclass(slots=True)
class Plan:
    """What ``apply`` would do. ``notes`` are remarks without consequence (fewer brokers than copies, …)."""

    create: list[Creation] = field(default_factory=list)
    alter: list[Alteration] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.create or self.alter or self.refused)


@dataclass(frozen=True, slots=True)
class Described:
    """One topic of the contracts as the broker has it; ``config`` is None where the broker cannot tell."""

    topic: str
    partitions: int
    replication: int
    cleanup: str
    config: Mapping[str, str] | None


async def plan(settings: Settings, specs: Mapping[str, TopicSpec], *, shorten: bool = False) -> Plan:
    """Compare without changing anything. ``shorten`` allows what makes the broker delete sooner.

    Raises ``BusUnavailable``.
    """
    async with open_client(settings) as client:
        return await _plan(settings, client, specs, shorten)


async def apply(settings: Settings, specs: Mapping[str, TopicSpec], *, shorten: bool = False) -> Plan:
    """Carry out the plan and return it (its refusals are left as they are). Repeatable; deletes nothing.

    Raises ``BusUnavailable``, and ``TopicError`` naming the topic when the broker refuses a change.
    """
    async with open_client(settings) as client:
        found = await _plan(settings, client, specs, shorten)
        for creation in found.create:
            await _create(settings, client, creation)
        for alteration in found.alter:
            await _alter(settings, client, alteration)
        await _until_known(settings, client, [creation.topic for creation in found.create])
    return found


async def describe_topics(settings: Settings, specs: Mapping[str, TopicSpec]) -> list[Described]:
    """Those of the contracts that the broker has. Raises ``BusUnavailable``."""
    async with open_client(settings) as client:
        cluster = await ask_cluster(settings, client)
        configs = await _configs(settings, client, _existing(settings, specs, cluster))
    described = []
    for name in _existing(settings, specs, cluster):
        info, config = cluster.topics[name], configs.get(name)
        cleanup = config.get("cleanup.policy", "unknown") if config is not None else "unknown"
        described.append(Described(name, info.partitions, info.replication, cleanup, config))
    return described


def compare(
    settings: Settings,
    specs: Mapping[str, TopicSpec],
    cluster: ClusterInfo,
    configs: Mapping[str, Mapping[str, str]],
    *,
    shorten: bool = False,
) -> Plan:
    """The plan, from what the broker said. A topic without configs (the broker cannot tell) is compared by shape."""
    found = Plan()
    short = silent = False
    for spec in specs.values():
        name = topic_name(settings, spec.name)
        copies = min(spec.replication, max(1, cluster.brokers))
        short |= copies < spec.replication
        info = cluster.topics.get(name)
        if info is None:
            found.create.append(Creation(name, spec.partitions, copies, spec.kafka_config(copies)))
            continue
        partitions = _compare_shape(found, name, spec, info, copies)
        config = configs.get(name)
        silent |= config is None
        differs = _compare_config(found, name, spec.kafka_config(info.replication), config or {}, shorten=shorten)
        if differs or partitions:
            found.alter.append(Alteration(name, differs, partitions))
    if short:
        found.notes.append(f"fewer copies than the contracts say: the cluster has {cluster.brokers} broker(s)")
    if silent:
        found.notes.append("this broker does not tell configurations: only partitions were compared")
    return found


def _compare_shape(found: Plan, name: str, spec: TopicSpec, info: TopicInfo, copies: int) -> tuple[int, int] | None:
    """Partitions and copies; returns (now, contract) when partitions may be added."""
    if info.replication < copies:
        found.refused.append(
            Refusal(
                name,
                f"has {info.replication} copies, the contract says {copies}",
                "move replicas with kafka-reassign-partitions",
            )
        )
    if info.partitions == spec.partitions:
        return None
    if info.partitions > spec.partitions:
        problem = f"has {info.partitions} partitions, the contract {spec.partitions}: Kafka cannot take partitions away"
        found.refused.append(Refusal(name, problem, "raise the number in the contract, or make a new topic"))
        return None
    if spec.key:
        problem = f"{info.partitions} to {spec.partitions} partitions would move keys: order and compaction would break"
        found.refused.append(Refusal(name, problem, "make a new topic and republish into it"))
        return None
    return info.partitions, spec.partitions


def _compare_config(
    found: Plan, name: str, wanted: Mapping[str, str], config: Mapping[str, str], *, shorten: bool
) -> dict[str, tuple[str, str]]:
    """name -> (now, contract) of the settings that may be altered; what may not goes to ``found.refused``."""
    differs = {key: (config[key], value) for key, value in wanted.items() if config.get(key, value) != value}
    now, contract = differs.get("cleanup.policy", ("", ""))
    if contract and (contract == "delete" or "compact" not in now.split(",")):
        loss = "the last state of quiet keys" if contract == "delete" else "all but the last record of each key"
        mend = "make a new topic and republish into it"
        found.refused.append(Refusal(name, f"cleanup {now} to {contract} would drop {loss}", mend))
        # The times below mean something else under the policy that stays.
        return {key: pair for key, pair in differs.items() if key not in ("cleanup.policy", *_KEEPERS)}
    for key in _KEEPERS:
        if key in differs and _lower(*differs[key]) and not shorten:
            now, contract = differs.pop(key)
            problem = f"{key} {now} to {contract} makes the broker delete sooner"
            found.refused.append(Refusal(name, problem, "say --shorten when that is meant"))
    return differs


def _lower(now: str, contract: str) -> bool:
    """-1 is "for ever"."""
    before, after = (float(text) if text.lstrip("-").isdigit() else 0.0 for text in (now, contract))
    return (after if after >= 0 else float("inf")) < (before if before >= 0 else float("inf"))


def _existing(settings: Settings, specs: Mapping[str, TopicSpec], cluster: ClusterInfo) -> list[str]:
    names = (topic_name(settings, base) for base in specs)
    return [name for name in names if name in cluster.topics]


async def _plan(settings: Settings, client: AIOKafkaClient, specs: Mapping[str, TopicSpec], shorten: bool) -> Plan:
    cluster = await ask_cluster(settings, client)
    configs = await _configs(settings, client, _existing(settings, specs, cluster))
    return compare(settings, specs, cluster, configs, shorten=shorten)


async def _ask(settings: Settings, client: AIOKafkaClient, doing: str, request: Any) -> Any:
    """One question to the controller (in KRaft any broker answers for it)."""
    with kafka_errors(settings, doing):
        async with asyncio.timeout(REQUEST_DEADLINE_S):
            if client.cluster.controller is None:
                await client.force_metadata_update()
            controller = client.cluster.controller
            return await client.send(controller.nodeId if controller else client.get_random_node(), request)


async def _configs(settings: Settings, client: AIOKafkaClient, names: list[str]) -> dict[str, dict[str, str]]:
    """Effective configuration by topic; {} from a broker that does not answer such questions (the embedded one)."""
    if not names:
        return {}
    request = DescribeConfigsRequest([(TOPIC_RESOURCE, name, None) for name in names], False)
    try:
        response = await _ask(settings, client, "reading configurations", request)
    except BusUnavailable as error:
        if isinstance(error.__cause__, IncompatibleBrokerVersion):
            return {}
        raise
    found = {}
    for code, message, _kind, name, entries in response.resources:
        _check(code, message, f"reading the configuration of {name}")
        found[name] = {entry[0]: entry[1] or "" for entry in entries}
    return found


async def _create(settings: Settings, client: AIOKafkaClient, creation: Creation) -> None:
    name, config = creation.topic, list(creation.config.items())
    # No explicit replica placement: the broker spreads them.
    shape: tuple[Any, ...] = (name, creation.partitions, creation.replication, [], config)
    request = CreateTopicsRequest([shape], int(REQUEST_DEADLINE_S * 1000), False)
    doing = f"creating {creation.topic}"
    for _name, code, *message in (await _send_change(settings, client, doing, request)).topic_errors:
        if for_code(code) is not TopicAlreadyExistsError:  # somebody applied beside us: the next plan compares it
            _check(code, message[0] if message else None, doing)


async def _alter(settings: Settings, client: AIOKafkaClient, alteration: Alteration) -> None:
    doing = f"altering {alteration.topic}"
    if alteration.config:
        request = IncrementalAlterConfigs(alteration.topic, {key: new for key, (_, new) in alteration.config.items()})
        for code, message, *_ in (await _send_change(settings, client, doing, request)).responses:
            _check(code, message, doing)
    if alteration.partitions:
        shape = (alteration.topic, (alteration.partitions[1], None))
        grow = CreatePartitionsRequest([shape], int(REQUEST_DEADLINE_S * 1000), False)
        for _name, code, message in (await _send_change(settings, client, doing, grow)).topic_errors:
            _check(code, message, doing)


async def _send_change(settings: Settings, client: AIOKafkaClient, doing: str, request: Any) -> Any:
    try:
        return await _ask(settings, client, doing, request)
    except BusUnavailable as error:
        if isinstance(error.__cause__, IncompatibleBrokerVersion):
            raise TopicError(
                f"{doing}: this broker takes no such change", mend="use Apache Kafka 2.4 or later"
            ) from None
        raise


def _check(code: int, message: str | None, doing: str) -> None:
    kind = for_code(code)
    if kind is not NoError:
        mend = ""
        if issubclass(kind, AUTHORIZATION_ERRORS):
            mend = "grant this user DESCRIBE_CONFIGS, CREATE, ALTER and ALTER_CONFIGS, or ask who has them"
        raise TopicError(f"{doing}: {kind.__name__}{f': {message}' if message else ''}", mend=mend)


async def _until_known(settings: Settings, client: AIOKafkaClient, names: list[str]) -> None:
    """Wait until the new topics have a leader for every partition, so that the next client finds them."""
    end_s = monotonic_s() + REQUEST_DEADLINE_S
    while names:
        topics = (await ask_cluster(settings, client)).topics
        if all(name in topics and topics[name].ready for name in names):
            return
        if monotonic_s() > end_s:
            raise TopicError(f"{', '.join(names)}: created, but without leaders yet", mend="look at the brokers' logs")
        await asyncio.sleep(0.05)
