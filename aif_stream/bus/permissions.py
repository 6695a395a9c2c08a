"""What this user may do on each topic, as the broker itself says (Metadata with authorised operations, KIP-430)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

from aiokafka.errors import NoError, TopicAuthorizationFailedError, for_code
from aiokafka.protocol.api import Request

from aif_stream.bus.connection import REQUEST_DEADLINE_S, kafka_errors, open_client
from aif_stream.bus.topics import topic_name
from aif_stream.bus.wire import _MetadataStruct
from aif_stream.settings import Settings

# Bits of `authorized operations` that our roles need; the numbers are those of Kafka's AclOperation.
_NEEDED: Final = {"Read": 3, "Write": 4, "Describe": 8}
_NOT_TOLD: Final = -(2**31)


class Rights(NamedTuple):
    """``denied``: what this user may not do; ``missing``: there is no such topic, or not for this user."""

    topic: str
    denied: tuple[str, ...]
    missing: bool


class _RightsRequest(Request[_MetadataStruct]):  # type: ignore[misc]  # aiokafka has no types
    """Named topics (so that a hidden one answers "denied" instead of being left out), with rights; creates none."""

    API_KEY = 3

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        return request_struct_class([(UUID(int=0), name, {}) for name in self._names], False, True, {})


async def topic_rights(settings: Settings, topics: Iterable[str]) -> list[Rights]:
    """Of each topic (base names). A broker that tells no rights denies nothing. Raises ``BusUnavailable``."""
    request = _RightsRequest(topic_name(settings, topic) for topic in topics)
    async with open_client(settings) as client:
        with kafka_errors(settings, "reading rights"):
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                response = await client.send(client.get_random_node(), request)
    found = []
    for code, name, _topic_id, _internal, _partitions, allowed, _tags in response.topics:
        kind = for_code(code)
        if kind is TopicAuthorizationFailedError:
            found.append(Rights(name, ("Describe",), True))
        elif kind is not NoError:
            found.append(Rights(name, (), True))
        else:
            told = allowed not in (_NOT_TOLD, 0)
            denied = tuple(op for op, bit in _NEEDED.items() if told and not allowed >> bit & 1)
            found.append(Rights(name, denied, False))
    return found
