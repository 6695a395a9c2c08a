"""TLS, SASL and ACLs against a broker that has them: what fits works, what does not is told soon, without secrets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import pytest_asyncio

from aif_stream.bus.connection import read_cluster
from aif_stream.bus.consumer import GroupConsumer, Record
from aif_stream.bus.permissions import topic_rights
from aif_stream.bus.producer import Producer
from aif_stream.bus.publisher import EventPublisher
from aif_stream.bus.reader import LogReader
from aif_stream.bus.topics import BEHAVIORS, ITEM_UPDATES
from aif_stream.embedded.kafka import KafkaJars
from aif_stream.errors import AifError, BusUnavailable, PublishError, TopicError
from aif_stream.settings import Settings
from tests.kafka.bus.secured import PASSWORD, Secured, secured_kafka

WRONG = "wrong-secret-42"
SOON_S = 20.0  # nothing here waits for a deadline of ours; seen: below 2 s


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secured(kafka_jars: KafkaJars, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    async with secured_kafka(kafka_jars, tmp_path_factory.mktemp("secured")) as kafka:
        yield kafka


async def publish(settings: Settings) -> None:
    async with EventPublisher(settings) as publisher:
        await (await publisher.item(1, category="c"))


async def consume(settings: Settings) -> list[Record]:
    """Some records, committed."""
    async with GroupConsumer(settings, f"g-{settings.kafka_username}", [ITEM_UPDATES]) as consumer:
        while not (found := await consumer.poll(10, 100)):
            pass
        assert await consumer.commit({partition: some[-1].offset + 1 for partition, some in found.items()})
        return [record for some in found.values() for record in some]


async def read(settings: Settings) -> list[Record]:
    async with LogReader(settings, ITEM_UPDATES) as reader:
        while not (found := await reader.poll()):
            pass
        return found


async def say(settings: Settings) -> None:
    await read_cluster(settings)


EVERY_WAY: list[Callable[[Settings], Awaitable[object]]] = [publish, consume, read, say]

FITTING: dict[str, Callable[[Secured], Settings]] = {
    "scram": lambda k: k.sasl(),
    "plain": lambda k: k.sasl("plain", mechanism="PLAIN"),
    "mutual-tls": lambda k: k.mutual(),
}


@pytest.mark.parametrize("way", FITTING)
async def test_with_settings_that_fit_events_are_published_and_consumed(
    secured: Secured, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = FITTING[way](secured)
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.WARNING, logger="aiokafka"):  # as the CLI at DEBUG
        async with asyncio.timeout(SOON_S):
            await publish(settings)
            assert await consume(settings)
            assert await read(settings)
    assert PASSWORD not in caplog.text


LOGIN = "correct AIF_KAFKA_USERNAME, AIF_KAFKA_PASSWORD or AIF_KAFKA_SASL_MECHANISM"
TRUST = "AIF_KAFKA_CA_FILE must hold the CA"
MISFITS: dict[str, tuple[Callable[[Secured], Settings], str]] = {
    "password": (lambda k: k.sasl(kafka_password=WRONG), LOGIN),
    "plain password": (lambda k: k.sasl("plain", mechanism="PLAIN", kafka_password=WRONG), LOGIN),
    "no such user": (lambda k: k.sasl("mallory", kafka_password=WRONG), LOGIN),
    "mechanism": (lambda k: k.sasl(mechanism="SCRAM-SHA-256", kafka_password=WRONG), LOGIN),
    "CA": (lambda k: k.sasl(kafka_ca_file=str(k.directory / "other-ca.pem"), kafka_password=WRONG), TRUST),
    "only the system's CAs": (lambda k: k.sasl(kafka_ca_file="", kafka_password=WRONG), TRUST),
    "host": (lambda k: k.sasl(kafka_bootstrap=f"127.0.0.1:{k.ports['ELSEWHERE']}"), TRUST),
    "no TLS": (lambda k: k.sasl(kafka_security="PLAINTEXT"), "one of their PLAINTEXT listeners"),
    "TLS to a plain listener": (
        lambda k: k.sasl(kafka_bootstrap=k.admin.kafka_bootstrap, kafka_password=WRONG),
        "one of their SASL_SSL listeners",
    ),
    "no client certificate": (
        lambda k: k.mutual(kafka_cert_file="", kafka_key_file=""),
        "needs AIF_KAFKA_CERT_FILE and _KEY_FILE",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
async def test_settings_that_do_not_fit_are_told_soon_with_the_mend_and_without_secrets(
    secured: Secured, misfit: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, mend = MISFITS[misfit]
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.WARNING, logger="aiokafka"):  # as the CLI at DEBUG
        for way in EVERY_WAY:
            async with asyncio.timeout(SOON_S):
                with pytest.raises(BusUnavailable) as caught:
                    await way(make(secured))
            assert mend in caught.value.mend
            assert PASSWORD not in f"{caught.value!r} {caught.value}"
            assert WRONG not in f"{caught.value!r} {caught.value}"
    assert WRONG not in caplog.text
    assert PASSWORD not in caplog.text


async def refusal(doing: Awaitable[object]) -> AifError:
    async with asyncio.timeout(SOON_S):
        with pytest.raises(AifError) as caught:
            await doing
    return caught.value


async def test_a_missing_acl_is_told_with_the_user_and_the_rights_to_grant(secured: Secured) -> None:
    await publish(secured.sasl())
    nobody, looker, loner = (secured.sasl(user) for user in ("nobody", "looker", "loner"))

    for way in (publish, consume, read):  # topics that may not be described are not there
        error = await refusal(way(nobody))
        assert isinstance(error, TopicError)
        assert "grant user nobody" in error.mend

    for way in (consume, read):
        error = await refusal(way(looker))
        assert "TopicAuthorizationFailed" in error.what
        assert "grant user looker READ" in error.mend

    error = await refusal(publish(looker))
    assert isinstance(error, PublishError)
    assert "TopicAuthorizationFailed" in error.what
    assert "grant user looker" in error.mend

    error = await refusal(consume(loner))
    assert "GroupAuthorizationFailed" in error.what
    assert "READ on its groups" in error.mend


async def test_a_user_who_may_write_one_topic_writes_it_also_after_another_was_refused(secured: Secured) -> None:
    async with asyncio.timeout(2 * SOON_S), Producer(secured.sasl("looker"), "test") as producer:
        with pytest.raises(PublishError, match="grant user looker"):
            await (await producer.send(ITEM_UPDATES, b"1", b"{}", []))
        await (await producer.send(BEHAVIORS, b"u", b"{}", []))


async def test_the_broker_tells_each_user_s_rights(secured: Secured) -> None:
    topics = [ITEM_UPDATES, BEHAVIORS]
    assert [rights.denied for rights in await topic_rights(secured.sasl(), topics)] == [(), ()]
    looker = await topic_rights(secured.sasl("looker"), topics)
    assert [rights.denied for rights in looker] == [("Read", "Write"), ("Read",)]
    nobody = await topic_rights(secured.sasl("nobody"), topics)
    assert all(rights.missing for rights in nobody)


async def test_a_certificate_and_key_that_do_not_belong_together_name_the_settings(secured: Secured) -> None:
    crossed = replace(secured.mutual(), kafka_key_file=str(secured.directory / "server.key"))
    assert "AIF_KAFKA_CA_FILE, _CERT_FILE or _KEY_FILE" in str(await refusal(say(crossed)))
