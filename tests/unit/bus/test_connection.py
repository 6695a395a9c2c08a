"""Settings → client arguments; murmur2 as Java does it."""

from __future__ import annotations

import logging

import pytest
from aiokafka.partitioner import murmur2
from aiokafka.protocol.admin import SaslAuthenticateRequest_v1

from aif_stream.bus.connection import describe, kafka_errors, kafka_kwargs
from aif_stream.errors import BusUnavailable, SettingsError
from aif_stream.settings import Settings


def test_all_brokers_are_named_and_no_password_goes_to_a_plain_listener() -> None:
    kwargs = kafka_kwargs(Settings(kafka_bootstrap="a:1, b:2,", kafka_password="secret"))
    assert kwargs["bootstrap_servers"] == ["a:1", "b:2"]
    assert "secret" not in str(kwargs)


def test_sasl_over_tls_has_a_context_and_the_user() -> None:
    settings = Settings(kafka_security="SASL_SSL", kafka_username="u", kafka_password="p")
    kwargs = kafka_kwargs(settings)
    assert kwargs["ssl_context"].check_hostname
    assert (kwargs["sasl_mechanism"], kwargs["sasl_plain_username"]) == ("SCRAM-SHA-512", "u")


def test_a_certificate_that_cannot_be_read_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="AIF_KAFKA_CA_FILE"):
        kafka_kwargs(Settings(kafka_security="SSL", kafka_ca_file="/nowhere.pem"))


def test_an_error_of_the_client_says_where_and_what_to_do() -> None:
    expected = pytest.raises(BusUnavailable, match="h:1: polling failed: OSError: no route")
    with expected as caught, kafka_errors(Settings(kafka_bootstrap="h:1"), "polling"):
        raise OSError("no route")
    assert "AIF_KAFKA_BOOTSTRAP" in caught.value.mend
    assert describe(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        # org.apache.kafka.common.utils.UtilsTest.testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_hash_as_in_java(key: bytes, expected: int) -> None:
    assert murmur2(key) & 0xFFFFFFFF == expected & 0xFFFFFFFF


def test_a_sasl_password_is_not_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    kafka_kwargs(Settings(kafka_security="SASL_PLAINTEXT", kafka_username="u", kafka_password="secret"))
    log = logging.getLogger("aiokafka.conn")
    with caplog.at_level(logging.DEBUG, logger=log.name):
        for request in (SaslAuthenticateRequest_v1(b"\0u\0secret"), "another request"):
            log.debug("Request to %s:%d %d: %s", "broker", 9092, 1, request)
    assert "secret" in str(SaslAuthenticateRequest_v1(b"\0u\0secret"))
    assert "secret" not in caplog.text
    assert "another request" in caplog.text
