"""A child process never outlasts its deadline, and its failure says why."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from aif_stream.embedded import process
from aif_stream.embedded.process import PortTaken, ServerProcess, free_ports, run_tool
from aif_stream.errors import EmbeddedError
from tests.stack import eventually


def shell(directory: Path, script: str) -> ServerProcess:
    return ServerProcess("server", ["/bin/sh", "-c", script], directory=directory, log=directory / "log")


async def never() -> bool:
    return False


async def test_a_child_does_not_outlive_an_owner_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from aif_stream.embedded import process
from aif_stream.embedded.process import ServerProcess
server = ServerProcess("child", ["sleep", "600"], directory=Path({str(tmp_path)!r}), log=Path("{tmp_path}/log"))
server.spawn()
print(server.pid, flush=True)
time.sleep(600)
"""
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    stat = Path(f"/proc/{int(await owner.stdout.readline())}/stat")
    owner.kill()
    await owner.wait()

    async def gone() -> bool:
        try:
            state = (await asyncio.to_thread(stat.read_text)).rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state == "Z"  # a container's first process need not wait for the orphans that it gets

    await eventually(gone, what="the child is gone")


async def test_a_child_that_ends_early_is_reported_with_what_this_start_wrote(tmp_path: Path) -> None:
    server = shell(tmp_path, "echo the disk is full; exit 3")
    server.log.write_text("older start: Address already in use\n")
    server.spawn()
    with pytest.raises(
        EmbeddedError, match=r"(?s)ended before it was ready \(exit code 3\).*the disk is full"
    ) as caught:
        await server.wait_ready(never, 60)
    assert not isinstance(caught.value, PortTaken)


async def test_a_taken_port_is_told_apart(tmp_path: Path) -> None:
    server = shell(tmp_path, "echo 'bind: Address already in use'; exit 1")
    server.spawn()
    with pytest.raises(PortTaken, match="choose another port"):
        await server.wait_ready(never, 60)


async def test_a_child_that_is_never_ready_is_dead_after_the_deadline(tmp_path: Path) -> None:
    server = shell(tmp_path, "sleep 600")
    server.spawn()
    with pytest.raises(EmbeddedError, match="was not ready after 0 s"):
        await server.wait_ready(never, 0.2)
    assert not server.running


async def test_a_cancelled_start_leaves_no_child(tmp_path: Path) -> None:
    server = shell(tmp_path, "sleep 600")
    server.spawn()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(server.wait_ready(never, 60), 0.2)
    assert not server.running


async def stubborn(directory: Path) -> ServerProcess:
    """A running child that ignores SIGTERM."""
    server = shell(directory, "trap '' TERM; echo up; while :; do sleep 600; done")
    server.spawn()

    async def up() -> bool:
        return "up" in server.log.read_text()

    await server.wait_ready(up, 60)
    return server


async def test_child_that_ignores_sigterm_is_killed_and_told_of(tmp_path: Path) -> None:
    server = await stubborn(tmp_path)
    assert await server.stop(0.2) == "server did not stop within 0.2 s and was killed"
    assert not server.running


async def test_child_that_outlives_sigkill_hides_no_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host a killed process is there for some time yet: here, longer than it is waited for."""
    monkeypatch.setattr(process, "_KILL_DEADLINE_S", 0.0)
    first, second = await stubborn(tmp_path), shell(tmp_path, "sleep 600")
    assert "did not stop within 0 s" in await first.stop(0.0)
    second.spawn()
    with pytest.raises(EmbeddedError, match="was not ready after 0 s"):
        await second.wait_ready(never, 0.0)

    async def gone() -> bool:
        return not first.running and not second.running

    await eventually(gone, what="both have ended")


async def test_child_that_fails_while_it_stops_is_told_of(tmp_path: Path) -> None:
    server = shell(tmp_path, "trap 'echo error: the disk is full; exit 1' TERM; echo up; sleep 600 & wait")
    server.spawn()

    async def up() -> bool:
        return "up" in server.log.read_text()

    await server.wait_ready(up, 60)
    assert await server.stop(60) == "server did not stop in order (exit code 1): error: the disk is full"


async def test_child_that_stops_in_order_is_not_told_of(tmp_path: Path) -> None:
    server = shell(tmp_path, "sleep 600")
    assert await server.stop(60) == ""
    server.spawn()
    assert await server.stop(60) == ""
    assert server.how_ended == "SIGTERM"


async def test_kill9_takes_the_children_of_the_child_along(tmp_path: Path) -> None:
    server = shell(tmp_path, "sleep 600 & echo $!; wait")
    server.spawn()

    async def grandchild() -> int | None:
        return int(server.log.read_text() or 0) or None

    stat = Path("/proc") / str(await eventually(grandchild, what="the grandchild's pid in the log")) / "stat"
    await server.kill9()

    async def gone() -> bool:
        return not stat.exists() or stat.read_text().split()[2] == "Z"

    await eventually(gone, what="the grandchild's end")


async def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    server = ServerProcess("server", [tmp_path / "missing"], directory=tmp_path, log=tmp_path / "log")
    with pytest.raises(EmbeddedError, match="missing cannot be started"):
        server.spawn()
    with pytest.raises(EmbeddedError, match=r"missing cannot be started: .* → install it"):
        await run_tool([tmp_path / "missing"], directory=tmp_path, deadline_s=60, mend="install it")


async def test_a_tool_that_hangs_is_ended_at_its_deadline(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="was not done after 0 s → try later"):
        await run_tool(["/bin/sleep", "600"], directory=tmp_path, deadline_s=0.2, mend="try later")


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as each:
            each.bind(("127.0.0.1", port))
