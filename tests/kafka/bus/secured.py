"""A secured Apache Kafka: throw-away certificates, SASL_SSL and mutual-TLS listeners, users, ACLs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from aif_stream.bus import admin
from aif_stream.bus.topics import load_topics
from aif_stream.embedded.kafka import KafkaCluster, KafkaJars
from aif_stream.embedded.process import free_ports
from aif_stream.settings import Settings
from tests.certificates import certificates

PASSWORD = "correct-horse-battery"
PREFIX = "secured."
_READ, _WRITE, _DESCRIBE = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE
# user -> rights on topics and on groups with our prefix; "looker" may write behaviors, too; "nobody" has none at all
_RIGHTS = {
    "alice": ((_READ, _WRITE), (_READ,)),
    "plain": ((_READ, _WRITE), (_READ,)),
    "CN=mutual": ((_READ, _WRITE), (_READ,)),
    "looker": ((_DESCRIBE,), (_READ,)),
    "loner": ((_READ, _WRITE), ()),
}
_SCRAM_USERS = ("alice", "looker", "loner", "nobody")


@dataclass(frozen=True, slots=True)
class Secured:
    """The broker's listeners, and settings that fit them. The cluster's own plain listener is the administrator's."""

    directory: Path
    admin: Settings
    ports: Mapping[str, int]

    def sasl(self, user: str = "alice", *, mechanism: str = "SCRAM-SHA-512", **more: Any) -> Settings:
        settings = replace(
            self.admin,
            kafka_bootstrap=f"127.0.0.1:{self.ports['SECURE']}",
            kafka_security="SASL_SSL",
            kafka_ca_file=str(self.directory / "ca.pem"),
            kafka_sasl_mechanism=mechanism,  # type: ignore[arg-type]
            kafka_username=user,
            kafka_password=PASSWORD,
        )
        return replace(settings, **more)

    def mutual(self, **more: Any) -> Settings:
        settings = replace(
            self.admin,
            kafka_bootstrap=f"127.0.0.1:{self.ports['MUTUAL']}",
            kafka_security="SSL",
            kafka_ca_file=str(self.directory / "ca.pem"),
            kafka_cert_file=str(self.directory / "mutual.pem"),
            kafka_key_file=str(self.directory / "mutual.key"),
        )
        return replace(settings, **more)


@asynccontextmanager
async def secured_kafka(jars: KafkaJars, directory: Path) -> AsyncIterator[Secured]:
    """One node with topics, users and rights in place."""
    await certificates(directory)
    ports = dict(zip(("SECURE", "MUTUAL", "ELSEWHERE"), free_ports(3), strict=True))
    async with KafkaCluster(1, jars, directory / "kafka", settings=_server_settings(directory, ports)) as cluster:
        settings = Settings(
            kafka_bootstrap=cluster.bootstrap, topic_prefix=PREFIX, kafka_session_timeout_ms=6_000, home=directory
        )
        await admin.apply(settings, load_topics())
        await asyncio.to_thread(_users, cluster.bootstrap)
        yield Secured(directory, settings, ports)


def _server_settings(directory: Path, ports: Mapping[str, int]) -> dict[str, str]:
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    module = "org.apache.kafka.common.security"
    settings = {
        "listeners": listeners,
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "SECURE:SASL_SSL,MUTUAL:SSL,ELSEWHERE:SASL_SSL",
        "listener.name.mutual.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    for name, certificate in (("secure", "server"), ("mutual", "server"), ("elsewhere", "elsewhere")):
        listener = f"listener.name.{name}."
        settings |= {
            f"{listener}ssl.keystore.type": "PEM",
            f"{listener}ssl.keystore.location": str(directory / f"{certificate}-both.pem"),
            f"{listener}ssl.truststore.type": "PEM",
            f"{listener}ssl.truststore.location": str(directory / "ca.pem"),
        }
        if name != "mutual":
            login = f'{module}.plain.PlainLoginModule required user_plain="{PASSWORD}";'
            settings |= {
                f"{listener}sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
                f"{listener}plain.sasl.jaas.config": login,
                f"{listener}scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
            }
    return settings


def _users(bootstrap: str) -> None:
    client = AdminClient({"bootstrap.servers": bootstrap})
    scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    made = client.alter_user_scram_credentials(
        [UserScramCredentialUpsertion(user, scram, PASSWORD.encode()) for user in _SCRAM_USERS]
    )
    kinds = (ResourceType.TOPIC, ResourceType.GROUP)
    rights = [
        AclBinding(kind, PREFIX, ResourcePatternType.PREFIXED, f"User:{user}", "*", right, AclPermissionType.ALLOW)
        for user, both in _RIGHTS.items()
        for kind, some in zip(kinds, both, strict=True)
        for right in some
    ]
    rights.append(
        AclBinding(
            ResourceType.TOPIC,
            f"{PREFIX}aif.behaviors",
            ResourcePatternType.LITERAL,
            "User:looker",
            "*",
            _WRITE,
            AclPermissionType.ALLOW,
        )
    )
    for future in (*made.values(), *client.create_acls(rights).values()):
        future.result(30)
