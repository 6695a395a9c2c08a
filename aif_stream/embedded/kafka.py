"""Apache Kafka on loopback: one node or three, combined broker and controller (KRaft), for tests and drills.

``python -m aif_stream.embedded.kafka --nodes 1 --dir DIR`` runs one by itself: the first line of its output is
``bootstrap HOST:PORT[,…]``, then it serves until SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from aif_stream.embedded.jars import KafkaJars, missing_tools
from aif_stream.embedded.kafka_files import ClusterLayout, NodeFiles
from aif_stream.embedded.process import PortTaken, ServerProcess, exchange, run_tool
from aif_stream.errors import AifError, EmbeddedError

__all__ = ["KafkaCluster", "KafkaJars", "main", "missing_tools"]

_START_DEADLINE_S = 120.0  # 2 s for one node, 5 s for three (two cores); several times that beside a test run
_STOP_DEADLINE_S = 40.0  # a controlled shutdown moves leaders first, and retries when the controller is gone
_FORMAT_DEADLINE_S = 60.0  # 1.6 s when idle
# Metadata v2 for no topic: size, key 3, version 2, correlation id, client id, empty array (Kafka protocol guide).
_READ_METADATA = struct.pack(">ihhih8si", 22, 3, 2, 0, 8, b"embedded", 0)
_WATCH_S = 0.5  # how soon the command notices that a node ended by itself


class KafkaCluster:
    """One node or three of Apache Kafka in ``directory``, as child processes.

    Ports are free ones, chosen at the first start and kept in the directory: a cluster entered again on the same
    directory has its data, ports and ids back. ``settings`` go into every node's ``server.properties`` (defaults:
    :func:`aif_stream.embedded.kafka_files.default_settings`), their listeners beside the cluster's own; ``heap`` is the
    JVM's -Xmx. Leaving the context stops the nodes in order. Raises EmbeddedError, with the end of the node's log, when
    one does not start.

    Three nodes keep acknowledging (acks=all) with one of them gone; two gone end the quorum.
    """

    def __init__(
        self,
        nodes: Literal[1, 3],
        jars: KafkaJars,
        directory: Path,
        *,
        settings: Mapping[str, str] | None = None,
        heap: str = "512m",
    ) -> None:
        self.directory = directory.resolve()
        self._count = nodes
        self._jars = jars
        self._settings = dict(settings or {})
        self._heap = heap
        self._layout: ClusterLayout | None = None
        self._servers: dict[int, ServerProcess] = {}

    @property
    def bootstrap(self) -> str:
        """``host:port`` of every node, comma-separated; stays the same over stops and starts."""
        return self._entered().bootstrap

    @property
    def node_ids(self) -> range:
        """1 … number of nodes; also the broker ids that clients see."""
        return self._entered().node_ids

    async def __aenter__(self) -> Self:
        missing = await missing_tools(maven=False)
        if missing:
            raise EmbeddedError(
                f"Kafka cannot run here: {missing}", mend="install Java, or use the embedded broker (`aif up`)"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        known = ClusterLayout.load(self.directory, self._count)
        try:
            try:
                await self._open(known or ClusterLayout.fresh(self._count), format_storage=known is None)
            except PortTaken:
                if known is not None:
                    raise  # its clients know the ports
                await self._open(ClusterLayout.fresh(self._count), format_storage=True)
        except BaseException:
            await self._kill_all()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await asyncio.gather(*(server.stop(_STOP_DEADLINE_S) for server in self._servers.values()))
        finally:
            await self._kill_all()

    async def start(self, node: int) -> None:
        """Starts a stopped or killed node; returns when it answers and its own metadata lists it.

        After kill -9 that takes the rest of the broker session (9 s): the controller refuses the newcomer until then.
        """
        self._server(node).spawn()
        await self._wait_ready(node, {node})

    async def stop(self, node: int) -> None:
        """Ends a node in order (SIGTERM, controlled shutdown)."""
        await self._server(node).stop(_STOP_DEADLINE_S)

    async def kill9(self, node: int) -> None:
        """SIGKILL."""
        await self._server(node).kill9()

    def running(self, node: int) -> bool:
        return self._server(node).running

    def log(self, node: int) -> Path:
        """The node's own log; several starts are appended to it."""
        return self._server(node).log

    async def _open(self, layout: ClusterLayout, *, format_storage: bool) -> None:
        await self._kill_all()
        self._layout = layout
        self._servers = {}
        for node in layout.node_ids:
            files = self._files(node)
            if format_storage:
                shutil.rmtree(files.directory, ignore_errors=True)  # of a start that failed
            files.write(node, layout, self._settings)
            self._servers[node] = ServerProcess(
                f"Kafka node {node} (port {layout.ports[node - 1].broker})",
                self._java(files, "kafka.Kafka", str(files.properties)),
                directory=files.directory,
                log=files.log,
            )
        if format_storage:
            await asyncio.gather(*(self._format(node, layout.cluster_id) for node in layout.node_ids))
        for server in self._servers.values():
            server.spawn()
        everybody = set(layout.node_ids)
        try:
            async with asyncio.TaskGroup() as group:
                for node in layout.node_ids:
                    group.create_task(self._wait_ready(node, everybody))
        except ExceptionGroup as failures:  # one reason is enough; the others were cancelled by it
            raise failures.exceptions[0] from None
        layout.save(self.directory)

    async def _format(self, node: int, cluster_id: str) -> None:
        files = self._files(node)
        command = self._java(files, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(files.properties))
        await run_tool(
            command, directory=files.directory, deadline_s=_FORMAT_DEADLINE_S, mend=f"read {files.properties}"
        )

    def _java(self, files: NodeFiles, main_class: str, *arguments: str) -> list[str]:
        return [
            "java",
            f"-Xmx{self._heap}",
            "-XX:+UseSerialGC",  # steadier beside a test run on two cores than G1's threads
            "-XX:TieredStopAtLevel=1",  # the quick compiler only: three nodes are up after 5 s instead of 12
            f"-Dlog4j2.configurationFile={files.logging}",
            "-cp",
            self._jars.classpath,
            main_class,
            *arguments,
        ]

    async def _wait_ready(self, node: int, expected: set[int]) -> None:
        layout = self._entered()

        async def lists_expected() -> bool:
            reply = await exchange(layout.ports[node - 1].broker, _READ_METADATA, _read_frame)
            cluster_id, brokers = _cluster_and_brokers(reply) if reply else ("", set[int]())
            return cluster_id == layout.cluster_id and expected <= brokers

        await self._server(node).wait_ready(lists_expected, _START_DEADLINE_S)

    def _files(self, node: int) -> NodeFiles:
        return NodeFiles(self.directory / f"node-{node}")

    def _server(self, node: int) -> ServerProcess:
        self._entered()
        if node not in self._servers:
            raise EmbeddedError(f"there is no Kafka node {node}", mend=f"name one of {sorted(self._servers)}")
        return self._servers[node]

    def _entered(self) -> ClusterLayout:
        if self._layout is None:
            raise EmbeddedError("the Kafka cluster was never started", mend="enter its `async with` first")
        return self._layout

    async def _kill_all(self) -> None:
        await asyncio.gather(*(server.kill9() for server in self._servers.values()))


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


def _cluster_and_brokers(reply: bytes) -> tuple[str, set[int]]:
    """Of a Metadata v2 response: correlation id; per broker id, host, port, rack (may be null); cluster id."""
    ids = set()
    (count,), at = struct.unpack_from(">i", reply, 4), 8
    for _ in range(count):
        (node, host_bytes), at = struct.unpack_from(">ih", reply, at), at + 6
        at += host_bytes + 4
        (rack_bytes,), at = struct.unpack_from(">h", reply, at), at + 2
        at += max(0, rack_bytes)
        ids.add(node)
    (id_bytes,), at = struct.unpack_from(">h", reply, at), at + 2
    return reply[at : at + max(0, id_bytes)].decode(), ids


async def _serve(options: argparse.Namespace) -> None:
    jars = (
        KafkaJars.from_home(options.kafka_home)
        if options.kafka_home
        else await KafkaJars.fetch(pom=options.pom, cache=options.cache)
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with KafkaCluster(options.nodes, jars, options.dir, heap=options.heap) as cluster:
        sys.stdout.write(f"bootstrap {cluster.bootstrap}\n")
        sys.stdout.flush()
        while not stopped.is_set():
            dead = [node for node in cluster.node_ids if not cluster.running(node)]
            if dead:
                raise EmbeddedError(f"Kafka node {dead[0]} ended by itself", mend=f"read {cluster.log(dead[0])}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), _WATCH_S)


def main() -> int:
    """Exit code 0 after a stop by signal, 1 when Kafka cannot run."""
    parser = argparse.ArgumentParser(prog="python -m aif_stream.embedded.kafka", description=__doc__)
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    parser.add_argument("--dir", type=Path, required=True, help="data, logs and ports; the next start finds them again")
    parser.add_argument("--heap", default="512m", help="each node's -Xmx (default %(default)s)")
    parser.add_argument("--pom", type=Path, help="default: deploy/kafka/pom.xml of this checkout")
    parser.add_argument("--cache", type=Path, help="where the jars go (default ~/.cache/aif_stream/kafka)")
    parser.add_argument("--kafka-home", type=Path, help="an unpacked Apache Kafka, instead of Maven")
    try:
        asyncio.run(_serve(parser.parse_args()))
    except AifError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
