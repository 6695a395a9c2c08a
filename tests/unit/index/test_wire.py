from __future__ import annotations

import hiredis
import pytest

from aif_stream.errors import IndexDenied, IndexRefused, IndexUnavailable, SettingsError
from aif_stream.index.refusals import error_of, leads_elsewhere
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


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("LOADING Redis is loading the dataset in memory", "repeated"),
        ("CLUSTERDOWN The cluster is down", "cluster check"),
        ("BUSY Redis is busy running a script", "repeated"),
        ("READONLY You can't write against a read only replica.", "primary"),
        ("ERR Error running script (call to f_1): @user_script:5: -READONLY You can't write", "primary"),
        ("MASTERDOWN Link with MASTER is down", "resolved again"),
        ("UNBLOCKED force unblock from blocking operation", "became a replica"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "repeated"),
        ("NOREPLICAS Not enough good replicas to write.", "min-replicas-to-write"),
        ("MISCONF Redis is configured to save RDB snapshots", "disk"),
        ("ERR Error running script: @user_script:1: -OOM command not allowed", "maxmemory"),
    ],
)
def test_state_of_the_server_is_unavailable_with_a_hint(text: str, mend: str) -> None:
    error = error_of(hiredis.ReplyError(text))
    assert isinstance(error, IndexUnavailable)
    assert mend in error.mend


@pytest.mark.parametrize(
    ("text", "kind", "mend"),
    [
        ("WRONGTYPE Operation against a key", IndexRefused, "another program"),
        ("MOVED 5 h:1", IndexRefused, "AIF_REDIS_CLUSTER"),
        ("NOAUTH Authentication required.", IndexDenied, "AIF_REDIS_URL"),
        ("WRONGPASS invalid username-password pair", IndexDenied, "AIF_REDIS_URL"),
        ("NOPERM this user has no permissions", IndexDenied, "allow this user"),
    ],
)
def test_a_refusal_names_its_mend(text: str, kind: type[IndexRefused], mend: str) -> None:
    error = error_of(hiredis.ReplyError(text))
    assert type(error) is kind
    assert mend in error.mend


@pytest.mark.parametrize(
    "word", ["READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED", "CLUSTERDOWN", "NOREPLICAS", "NOAUTH"]
)
def test_wrong_server_makes_the_address_resolve_again(word: str) -> None:
    assert leads_elsewhere(hiredis.ReplyError(f"{word} …"))
    assert leads_elsewhere(hiredis.ReplyError(f"ERR Error running script: @user_script:5: -{word} …"))


@pytest.mark.parametrize("text", ["OOM …", "MISCONF …", "BUSY …", "NOSCRIPT …", "WRONGTYPE …", "ERR READONLYISH"])
def test_right_server_with_trouble_keeps_its_connection(text: str) -> None:
    assert not leads_elsewhere(hiredis.ReplyError(text))
