"""Cutting the beginning off a partition (DeleteRecords), as `aif dlq purge` does with handled letters."""

from __future__ import annotations

from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion, NoError, for_code
from aiokafka.protocol.admin import DeleteRecordsRequest

from aif_stream.bus.connection import REQUEST_DEADLINE_S, kafka_errors, open_client
from aif_stream.bus.topics import topic_name
from aif_stream.errors import BusUnavailable, TopicError
from aif_stream.settings import Settings


async def delete_before(settings: Settings, topic: str, partition: int, offset: int) -> int:
    """Delete every record below ``offset``; returns the new beginning. Repeatable.

    Raises ``BusUnavailable``; ``TopicError`` when the broker refuses or (the embedded one) cannot.
    """
    name = topic_name(settings, topic)
    request = DeleteRecordsRequest([(name, [(partition, offset)])], int(REQUEST_DEADLINE_S * 1000))
    doing = f"deleting records of {name}"
    try:
        async with open_client(settings) as client:
            with kafka_errors(settings, doing):
                await client.force_metadata_update()
                await client._wait_on_metadata(name)
                leader = client.cluster.leader_for_partition(TopicPartition(name, partition))
                response = await client.send(leader, request)
    except BusUnavailable as error:
        if isinstance(error.__cause__, IncompatibleBrokerVersion):
            raise TopicError(
                f"{doing}: this broker cannot delete records",
                mend="on the embedded broker handled letters stay until it ends; `aif dlq ls` does not show them",
            ) from None
        raise
    _, partitions, *_ = response.topics[0]
    _, beginning, code, *_ = partitions[0]
    kind = for_code(code)
    if kind is not NoError:
        raise TopicError(f"{doing}: {kind.__name__}", mend="allow this user Delete on the topic")
    return int(beginning)
