"""The files of a local Kafka cluster: who listens where, and each node's ``server.properties``."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec

from aif_stream.embedded.process import LOOPBACK, free_ports
from aif_stream.errors import EmbeddedError

_LAYOUT = "cluster.json"
# The cluster's own listeners always stay: readiness is asked of them.
_LISTENERS = ("listeners", "advertised.listeners", "listener.security.protocol.map")
_LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


class NodePorts(msgspec.Struct, frozen=True):
    broker: int
    controller: int


class ClusterLayout(msgspec.Struct, frozen=True):
    """What a directory's cluster must find again when it is started once more. Node ids count from 1."""

    cluster_id: str
    ports: tuple[NodePorts, ...]

    @classmethod
    def fresh(cls, nodes: int) -> ClusterLayout:
        ports = free_ports(2 * nodes)
        return cls(_new_id(), tuple(NodePorts(*ports[2 * n : 2 * n + 2]) for n in range(nodes)))

    @classmethod
    def load(cls, directory: Path, nodes: int) -> ClusterLayout | None:
        """None when ``directory`` holds no cluster yet. Raises EmbeddedError when it holds one of another size."""
        path = directory / _LAYOUT
        if not path.is_file():
            return None
        try:
            layout = msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.DecodeError as error:
            raise EmbeddedError(f"{path} is damaged: {error}", mend=f"remove {directory}") from error
        if len(layout.ports) != nodes:
            raise EmbeddedError(
                f"{directory} holds a cluster of {len(layout.ports)} nodes, not {nodes}", mend="use another directory"
            )
        return layout

    def save(self, directory: Path) -> None:
        """Called once the cluster has served: without the file, the next start begins anew."""
        (directory / _LAYOUT).write_bytes(msgspec.json.encode(self))

    @property
    def bootstrap(self) -> str:
        return ",".join(f"{LOOPBACK}:{ports.broker}" for ports in self.ports)

    @property
    def node_ids(self) -> range:
        return range(1, len(self.ports) + 1)


class NodeFiles(msgspec.Struct, frozen=True):
    """Where one node keeps its things."""

    directory: Path

    @property
    def properties(self) -> Path:
        return self.directory / "server.properties"

    @property
    def logging(self) -> Path:
        return self.directory / "log4j2.properties"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def write(self, node: int, layout: ClusterLayout, settings: Mapping[str, str]) -> None:
        """Writes the node's configuration; ``settings`` override the defaults below, listeners of theirs are added."""
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        own = _identity(node, layout, self.directory / "data")
        merged = {**default_settings(len(layout.ports)), **settings, **own}
        for name in _LISTENERS:
            merged[name] = ",".join(filter(None, (own[name], settings.get(name))))
        self.properties.write_text("".join(f"{name}={value}\n" for name, value in merged.items()))
        self.logging.write_text(_LOGGING)


def _identity(node: int, layout: ClusterLayout, data: Path) -> dict[str, str]:
    ports = layout.ports[node - 1]
    voters = (f"{n}@{LOOPBACK}:{layout.ports[n - 1].controller}" for n in layout.node_ids)
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "listeners": f"PLAINTEXT://{LOOPBACK}:{ports.broker},CONTROLLER://{LOOPBACK}:{ports.controller}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{ports.broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": ",".join(voters),
        "log.dirs": str(data),
    }


def default_settings(nodes: int) -> dict[str, str]:
    replicas, in_sync = str(nodes), str(max(1, nodes - 1))  # three nodes: one may be gone
    return {
        "auto.create.topics.enable": "false",  # a wrong topic name must fail, as in production
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": "8",  # the default of 50 only costs start time here
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",  # tests start one consumer and want it now
        "group.min.session.timeout.ms": "1000",  # lets a test of a killed member be short; the default is 6,000
    }


def _new_id() -> str:
    """A Kafka uuid: 16 random bytes in URL-safe base 64, never with a leading dash (it would read as an option)."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
