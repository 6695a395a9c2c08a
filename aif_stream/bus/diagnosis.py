"""Why Kafka turned us away, and the next step for whoever reads that."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from ssl import SSLCertVerificationError, SSLError
from typing import Any, Final

from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)

from aif_stream.settings import Settings

_BAD_LOGIN: Final = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
AUTHORIZATION_ERRORS: Final = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
)
_CONNECTION_ARGUMENTS: Final = (
    "ssl_context",
    "security_protocol",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
)


def mend_for(settings: Settings, error: BaseException | type[BaseException]) -> str:
    """The next step after this error of the client; never holds a secret."""
    kind = error if isinstance(error, type) else type(error)
    if issubclass(kind, SSLCertVerificationError):
        return (
            "AIF_KAFKA_CA_FILE must hold the CA of the brokers' certificates, and AIF_KAFKA_BOOTSTRAP name the "
            "brokers as their certificates do"
        )
    if issubclass(kind, _BAD_LOGIN):
        return (
            "correct AIF_KAFKA_USERNAME, AIF_KAFKA_PASSWORD or AIF_KAFKA_SASL_MECHANISM "
            f"(now {settings.kafka_sasl_mechanism})"
        )
    if issubclass(kind, AUTHORIZATION_ERRORS):
        return rights_mend(settings)
    mend = f"check that the brokers run and AIF_KAFKA_BOOTSTRAP names one of their {settings.kafka_security} listeners"
    if settings.kafka_security == "SSL" and not settings.kafka_cert_file:
        mend += "; one that asks for client certificates needs AIF_KAFKA_CERT_FILE and _KEY_FILE"
    return mend


def is_refusal(error: BaseException) -> bool:
    """Whether this says that somebody must change a setting or a right, not that Kafka is away. ``error``: ours."""
    cause = error.__cause__
    return isinstance(cause, (SSLError, *_BAD_LOGIN, *AUTHORIZATION_ERRORS))


def rights_mend(settings: Settings) -> str:
    """Which ACLs to grant, and to whom."""
    who = f"user {settings.kafka_username}" if "SASL" in settings.kafka_security else "this client"
    prefix = f"{settings.topic_prefix}aif."
    return f"grant {who} READ, WRITE and DESCRIBE on topics {prefix}* and READ on its groups (`aif doctor` shows which)"


async def why_refused(
    hosts: Sequence[tuple[str, int, Any]], kwargs: Mapping[str, Any], deadline_s: float
) -> Exception | None:
    """Connect once more to each of ``hosts``; what the first one that refuses says, None when one lets us in.

    aiokafka's bootstrap writes the reason to its log and raises "unable to bootstrap".
    """
    known = {name: kwargs[name] for name in _CONNECTION_ARGUMENTS if name in kwargs}
    for host, port, _ in hosts:
        try:
            async with asyncio.timeout(deadline_s):
                connection = await create_conn(host, port, client_id="aif-admin", **known)
        except (KafkaError, OSError, TimeoutError) as error:
            return error
        connection.close()
    return None
