"""Requests of the Kafka protocol that aiokafka 0.14 does not speak itself.

- Metadata v12: aiokafka stops at v5, topic ids begin with v10.
- IncrementalAlterConfigs v0: aiokafka has only AlterConfigs, which resets every setting that it does not name.

Source: https://kafka.apache.org/41/design/protocol/ (the message definitions).
"""

from __future__ import annotations

from io import BytesIO
from typing import NamedTuple
from uuid import UUID

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

SET = 0  # IncrementalAlterConfigs operation
TOPIC_RESOURCE = 2


class Uuid(AbstractType):  # type: ignore[misc]  # aiokafka has no types
    """16 bytes."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class TopicInfo(NamedTuple):
    """One topic. ``topic_id`` is None where the broker has none; ``ready``: every partition has a leader."""

    name: str
    topic_id: str | None
    partitions: int
    replication: int
    ready: bool


class ClusterInfo(NamedTuple):
    """Cluster id, number of brokers, controller, and topics by full name."""

    cluster_id: str
    brokers: int
    controller: int
    topics: dict[str, TopicInfo]


_BROKER = Schema(
    ("node_id", Int32), ("host", CompactString()), ("port", Int32), ("rack", CompactString()), ("tags", TaggedFields)
)
_PARTITION = Schema(
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)),
    ("offline", CompactArray(Int32)),
    ("tags", TaggedFields),
)
_TOPIC = Schema(
    ("error_code", Int16),
    ("name", CompactString()),
    ("topic_id", Uuid),
    ("is_internal", Boolean),
    ("partitions", CompactArray(_PARTITION)),
    ("authorized", Int32),
    ("tags", TaggedFields),
)


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(_BROKER)),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        ("topics", CompactArray(_TOPIC)),
        ("tags", TaggedFields),
    )

    def info(self) -> ClusterInfo:
        topics = {}
        for error, name, topic_id, _internal, partitions, _authorized, _tags in self.topics:
            copies = min((len(partition[4]) for partition in partitions), default=0)
            known = topic_id.hex if topic_id.int else None
            ready = not error and bool(partitions) and all(partition[2] >= 0 for partition in partitions)
            topics[name] = TopicInfo(name, known, len(partitions), copies, ready)
        return ClusterInfo(self.cluster_id or "", len(self.brokers), self.controller_id, topics)


class _MetadataStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(Schema(("topic_id", Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class MetadataRequest(Request[_MetadataStruct]):  # type: ignore[misc]
    """All topics of the cluster; creates none."""

    API_KEY = 3

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        return request_struct_class(None, False, False, {})


class _AlterResponse(Response):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
            ),
        ),
    )


class _AlterStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _AlterResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                (
                    "configs",
                    Array(("name", String("utf-8")), ("operation", Int8), ("value", String("utf-8"))),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class IncrementalAlterConfigs(Request[_AlterStruct]):  # type: ignore[misc]
    """Set some settings of one topic and leave the others as they are."""

    API_KEY = 44

    def __init__(self, topic: str, config: dict[str, str]) -> None:
        self._resources = [(TOPIC_RESOURCE, topic, [(name, SET, value) for name, value in config.items()])]

    def build(self, request_struct_class: type[_AlterStruct]) -> _AlterStruct:
        return request_struct_class(self._resources, False)
