"""Topic contracts: one ``topics/*.toml`` per topic, shipped in the wheel as ``aif_stream.contracts``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Literal, cast

from aif_stream.domain.explanations import Priority
from aif_stream.errors import TopicError
from aif_stream.settings import Settings

ITEM_UPDATES: Final = "aif.item-updates"
USER_UPDATES: Final = "aif.user-updates"
BEHAVIORS: Final = "aif.behaviors"
MODEL_UPDATES: Final = "aif.model-updates"
REBUILD_TASKS: Final = "aif.rebuild-tasks"
N2O_ROWS: Final = "aif.n2o-rows"
REQUESTS: Final = "aif.requests"
DEAD_LETTERS: Final = "aif.dead-letters"
EXPLANATIONS: Final = "aif.explanations"
EXPLANATION_REQUESTS: Final = {priority: f"aif.explanation-requests.{priority}" for priority in Priority}

_PACKAGE: Final = "aif_stream.contracts"  # pyproject.toml ships topics/ under this name

Cleanup = Literal["compact", "delete"]
# What a broker takes when a contract is silent (Kafka's default of max.message.bytes).
_DEFAULT_MESSAGE_BYTES: Final = 1_048_588
# Batch header (61 bytes), varints of one record, and what lz4 or zstd add to bytes that do not compress.
_BATCH_OVERHEAD_BYTES: Final = 4_608


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """One contract. ``key`` is empty when records carry none; ``config`` is Kafka's topic configuration.

    ``events`` name the structs of the values (bus/schemas.py); a topic without them describes its value in ``fields``.
    """

    name: str
    key: str
    partitions: int
    replication: int
    cleanup: Cleanup
    config: Mapping[str, str]
    promise: str
    events: tuple[str, ...] = ()
    removal: str = ""
    encoding: Literal["json", "binary"] = "json"
    fields: Mapping[str, str]

    @property
    def max_message_bytes(self) -> int:
        """The largest batch (compressed) that the topic takes."""
        return int(self.config.get("max.message.bytes", _DEFAULT_MESSAGE_BYTES))

    @property
    def max_record_bytes(self) -> int:
        """The largest record (key, value and headers, uncompressed) that fits whatever its bytes are."""
        return self.max_message_bytes - _BATCH_OVERHEAD_BYTES

    def kafka_config(self, replication: int) -> dict[str, str]:
        """The configuration as the broker is told it, for a topic that has ``replication`` copies.

        Writes need all copies but one (and one at least), so that any single broker may be away.
        """
        return {
            "cleanup.policy": self.cleanup,
            "min.insync.replicas": str(max(1, replication - 1)),
            **self.config,
        }


def topic_name(settings: Settings, base: str) -> str:
    """The name on the broker: prefix + base name."""
    return settings.topic_prefix + base


def contracts_dir(settings: Settings | None = None) -> Traversable:
    """Where the contracts are: ``settings.topics_dir``, else the installed package data, else the checkout."""
    if settings is not None and settings.topics_dir != Path():
        return settings.topics_dir
    checkout = Path(__file__).parents[2] / "topics"
    # A source run or an editable install: the files beside the package are the newest.
    if (checkout / f"{ITEM_UPDATES}.toml").is_file():
        return checkout
    try:
        return resources.files(_PACKAGE)
    except ModuleNotFoundError:
        raise TopicError(
            "the topic contracts are not installed", mend="install the package, or set AIF_TOPICS_DIR"
        ) from None


def load_topics(directory: Traversable | None = None) -> dict[str, TopicSpec]:
    """All contracts by name, in the order of their names.

    Raises ``TopicError`` naming the file when one cannot be read, lacks a field, or says something wrong.
    """
    source = contracts_dir() if directory is None else directory
    try:
        files = sorted((entry for entry in source.iterdir() if entry.name.endswith(".toml")), key=lambda e: e.name)
    except OSError as error:
        raise TopicError(f"no topic contracts in {source}: {error}", mend="set AIF_TOPICS_DIR") from None
    specs = [_read(entry) for entry in files]
    if not specs:
        raise TopicError(f"no topic contracts in {source}", mend="set AIF_TOPICS_DIR")
    return {spec.name: spec for spec in specs}


def partition_counts(specs: Mapping[str, TopicSpec], prefix: str = "") -> dict[str, int]:
    """Topics with ``prefix`` before their names, and their partitions: what an embedded broker is made of."""
    return {prefix + name: spec.partitions for name, spec in specs.items()}


def _read(entry: Traversable) -> TopicSpec:
    try:
        return _spec(tomllib.loads(entry.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise TopicError(f"{entry.name}: {problem}", mend="topics/aif.item-updates.toml shows the form") from None


def _spec(data: dict[str, Any]) -> TopicSpec:
    if unknown := data.keys() - {spec.name for spec in fields(TopicSpec)}:
        raise ValueError(f"unknown entries {sorted(unknown)}")
    for name in ("partitions", "replication"):
        if not isinstance(data[name], int) or data[name] < 1:
            raise ValueError(f"{name} must be a positive integer")
    if data["cleanup"] not in ("compact", "delete"):
        raise ValueError("cleanup must be compact or delete")
    if data["cleanup"] == "compact" and not data["key"]:
        raise ValueError("a compacted topic needs a key")
    config = data["config"]
    if wrong := [name for name, value in config.items() if not isinstance(value, str)]:
        raise ValueError(f"config values are strings, as Kafka writes them: {wrong}")
    if config.get("message.timestamp.type") != "LogAppendTime":
        raise ValueError("message.timestamp.type must be LogAppendTime: event time travels in ce_time alone")
    return TopicSpec(
        name=str(data["name"]),
        key=str(data["key"]),
        partitions=data["partitions"],
        replication=data["replication"],
        cleanup=cast(Cleanup, data["cleanup"]),
        config=dict(config),
        promise=" ".join(str(data["promise"]).split()),
        events=tuple(data.get("events", ())),
        removal=str(data.get("removal", "")),
        encoding="binary" if data.get("encoding") == "binary" else "json",
        fields=dict(data["fields"]),
    )
