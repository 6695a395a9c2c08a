from __future__ import annotations

import hiredis
import pytest

from aif_stream.errors import IndexRefused, IndexUnavailable, SettingsError
from aif_stream.index.refusals import error_of
from aif_stream.index.wire import pack, parse_address


def test_a_url_with_user_password_and_database_is_greeted_so() -> None:
    address = parse_address("redis://ada:p%40ss@example:6380/3")
    assert (address.host, address.port, address.tls, str(address)) == ("example", 6380, None, "example:6380")
    assert address.handshake() == [pack("AUTH", "ada", "p@ss"), pack("SELECT", 3)]


def test_a_password_alone_is_the_default_users() -> None:
    assert parse_address("redis://:secret@h").handshake() == [pack("AUTH", "secret")]


def test_the_defaults_are_those_of_redis() -> None:
    address = parse_address("redis://")
    assert (address.host, address.port, address.handshake()) == ("127.0.0.1", 6379, [])


def test_rediss_checks_the_servers_certificate_and_name() -> None:
    tls = parse_address("rediss://example").tls
    assert tls is not None
    assert tls.check_hostname


def test_another_node_of_a_cluster_gets_the_same_credentials() -> None:
    other = parse_address("rediss://ada:secret@h:1").at("other", 2)
    assert (str(other), other.handshake(), other.tls is not None) == ("other:2", [pack("AUTH", "ada", "secret")], True)


@pytest.mark.parametrize("url", ["http://h", "redis://h:port", "rediss://h?ssl_ca_certs=/no/such/file"])
def test_a_wrong_url_names_the_variable(url: str) -> None:
    with pytest.raises(SettingsError, match="AIF_REDIS_URL"):
        parse_address(url)


@pytest.mark.parametrize("text", ["LOADING Redis is loading", "CLUSTERDOWN The cluster is down", "BUSY script"])
def test_what_passes_by_itself_is_unavailable(text: str) -> None:
    assert isinstance(error_of(hiredis.ReplyError(text)), IndexUnavailable)


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("ERR Error running script: @user_script:1: -OOM command not allowed", "maxmemory"),
        ("READONLY You can't write against a read only replica.", "primary"),
        ("WRONGTYPE Operation against a key", "another program"),
        ("MISCONF Redis is configured to save RDB snapshots", "disk"),
        ("NOAUTH Authentication required.", "AIF_REDIS_URL"),
        ("MOVED 5 h:1", "AIF_REDIS_CLUSTER"),
    ],
)
def test_a_refusal_names_its_mend(text: str, mend: str) -> None:
    error = error_of(hiredis.ReplyError(text))
    assert isinstance(error, IndexRefused)
    assert mend in error.mend
