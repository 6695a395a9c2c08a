"""How every client reaches Kafka, and what the cluster says about itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ssl import SSLError
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.helpers import create_ssl_context

from aif_stream.bus.diagnosis import mend_for, rights_mend, why_refused
from aif_stream.bus.topics import topic_name
from aif_stream.bus.wire import ClusterInfo, MetadataRequest
from aif_stream.errors import BusUnavailable, SettingsError, TopicError
from aif_stream.settings import Settings

# One question to a broker: a leader election took up to 9.3 s when measured, so 20 s means that nobody answers.
REQUEST_DEADLINE_S: Final = 20.0
# Producers and consumers learn of new partitions this soon (Kafka's default is 5 min: a mirror would be blind so long).
METADATA_MAX_AGE_MS: Final = 30_000


def kafka_kwargs(settings: Settings) -> dict[str, Any]:
    """Arguments that producers, consumers and admin clients of aiokafka share: address, TLS, SASL, metadata age.

    Raises ``SettingsError`` when a certificate file cannot be used.
    """
    kwargs: dict[str, Any] = {
        "bootstrap_servers": [part.strip() for part in settings.kafka_bootstrap.split(",") if part.strip()],
        "security_protocol": settings.kafka_security,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }
    if "SSL" in settings.kafka_security:
        kwargs["ssl_context"] = _ssl_context(settings)
    if "SASL" in settings.kafka_security:
        _keep_secrets_out_of_logs()
        kwargs["sasl_mechanism"] = settings.kafka_sasl_mechanism
        kwargs["sasl_plain_username"] = settings.kafka_username
        kwargs["sasl_plain_password"] = settings.kafka_password
    return kwargs


def _keep_secrets_out_of_logs() -> None:
    """At DEBUG aiokafka logs every request, that of SASL PLAIN with the password.

    A filter of the logger: whoever set up the logging, and whatever else it says at DEBUG is still there.
    """
    logger = logging.getLogger("aiokafka.conn")
    if _without_secrets not in logger.filters:
        logger.addFilter(_without_secrets)


def _without_secrets(record: logging.LogRecord) -> bool:
    return "Sasl" not in record.getMessage()


def _ssl_context(settings: Settings) -> Any:
    try:
        return create_ssl_context(
            cafile=settings.kafka_ca_file or None,
            certfile=settings.kafka_cert_file or None,
            keyfile=settings.kafka_key_file or None,
        )
    except (OSError, SSLError) as error:
        raise SettingsError(f"AIF_KAFKA_CA_FILE, _CERT_FILE or _KEY_FILE cannot be used: {error}") from None


def describe(error: BaseException) -> str:
    """``KafkaTimeoutError: text``, without saying the name twice."""
    name, text = type(error).__name__, str(error)
    return text if name in text else f"{name}: {text}" if text else name


@contextmanager
def kafka_errors(settings: Settings, doing: str) -> Iterator[None]:
    """Errors of the client become ``BusUnavailable``, naming the brokers and what was being done."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise BusUnavailable(
            f"Kafka at {settings.kafka_bootstrap}: {doing} failed: {describe(error)}",
            mend=mend_for(settings, error),
        ) from error


@asynccontextmanager
async def open_client(settings: Settings) -> AsyncIterator[AIOKafkaClient]:
    """A bare protocol client for questions about the cluster. Raises ``BusUnavailable``."""
    kwargs = kafka_kwargs(settings)
    client = AIOKafkaClient(client_id="aif-admin", **kwargs)
    try:
        with kafka_errors(settings, "connecting"):
            try:
                async with asyncio.timeout(REQUEST_DEADLINE_S):
                    await client.bootstrap()
            except KafkaConnectionError as error:
                raise await why_refused(client.hosts, kwargs, REQUEST_DEADLINE_S) or error from None
        yield client
    finally:
        await client.close()


async def read_cluster(settings: Settings) -> ClusterInfo:
    """Cluster id, brokers and every topic with its id, partitions and replication. Creates nothing."""
    async with open_client(settings) as client:
        return await ask_cluster(settings, client)


async def ask_cluster(settings: Settings, client: AIOKafkaClient) -> ClusterInfo:
    """The same through a client that is already open."""
    with kafka_errors(settings, "reading metadata"):
        async with asyncio.timeout(REQUEST_DEADLINE_S):
            info: ClusterInfo = (await client.send(client.get_random_node(), MetadataRequest())).info()
    return info


async def cluster_identity(settings: Settings, topic: str) -> tuple[str, str]:
    """(cluster id, topic id) of the marks: both change when the log behind a name is another one.

    A broker that knows no topic ids gives the topic's name; the embedded one has a new cluster id for each start.
    """
    info = await read_cluster(settings)
    name = topic_name(settings, topic)
    _check_topics(settings, info, [topic])
    return info.cluster_id, info.topics[name].topic_id or name


async def require_topics(settings: Settings, topics: Iterable[str]) -> None:
    """Raise ``TopicError`` naming those that the broker does not have (clients would create them, wrongly)."""
    _check_topics(settings, await read_cluster(settings), topics)


def _check_topics(settings: Settings, info: ClusterInfo, topics: Iterable[str]) -> None:
    names = [topic_name(settings, topic) for topic in topics]
    if missing := [name for name in names if name not in info.topics]:
        mend = "run `aif topics apply`"
        if settings.kafka_security != "PLAINTEXT":  # topics that may not be described are not there, either
            mend += f", or {rights_mend(settings)}"
        raise TopicError(f"Kafka at {settings.kafka_bootstrap} has no topic {', '.join(missing)}", mend=mend)
