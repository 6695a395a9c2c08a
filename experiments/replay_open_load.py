"""Does ``aif replay`` keep its schedule at 1,000 requests/s, and does a server that stands still show?

    python experiments/replay_open_load.py [--out experiments/results/replay_open_load.json]     # about 2 minutes

1. A real ``aif up`` (300 items) is sent 60,000 requests in 60 s. It answers what it can and refuses the rest (503): the
   question is the player's, so its send error is the figure (bar: p99 <= 5 ms).
2. A small server in a process of its own that answers at once is sent 1,000 requests/s for 10 s and stopped (SIGSTOP)
   for 2 s in between: every request that was due meanwhile has to show what was left of the pause (a player that waits
   for answers would have one slow request).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson
import uvloop

from aif_stream.replay.run import Plan, replaying
from aif_stream.replay.tape import Tape

RATE, SECONDS = 1000, 60
PAUSE_S, PAUSED_RUN_S = 2.0, 10
CANDIDATES = 50

SMALL = """
import asyncio
ANSWER = b'{"model_version":"v","items":[{"item_id":"1","score":0.5}],"degraded":[]}'
REPLY = b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(ANSWER) + ANSWER
async def answer(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0]))
            writer.write(REPLY)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def tape(count: int, items: int) -> Tape:
    lines = (
        orjson.dumps(
            {
                "user_id": number % 30 + 1,
                "received_ms": number,
                "k": 10,
                "candidates": [(number * 7 + i) % items + 1 for i in range(CANDIDATES)],
            }
        )
        for number in range(count)
    )
    return Tape(lines)


async def at_a_real_server(url: str) -> dict[str, Any]:
    with tape(RATE * SECONDS, 300) as played, replaying(Plan(url, rate_per_s=RATE), played) as run:
        shape = (await run.run()).shape()
    return {
        name: shape[name] for name in ("sent", "errors", "scheduled_s", "send_error_ms", "latency_ms", "error_reasons")
    }


async def at_a_server_that_stops(url: str, pid: int) -> dict[str, Any]:
    with tape(RATE * PAUSED_RUN_S, 300) as played, replaying(Plan(url, rate_per_s=RATE), played) as run:
        playing = asyncio.create_task(run.run())
        await asyncio.sleep(4)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        os.kill(pid, signal.SIGCONT)
        outcome = await playing
    waited_s = outcome.to.latency_s
    return {
        "pause_s": PAUSE_S,
        "answered": int(outcome.to.answered.sum()),
        "slowest_s": round(float(waited_s.max()), 3),
        "due_in_the_pause": int(RATE * PAUSE_S),
        # A request due t s into the pause waits for the rest of it: half of them longer than half of it.
        "waited_longer_than_half_of_it": int((waited_s > PAUSE_S / 2).sum()),
        "send_error_ms": outcome.shape()["send_error_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/replay_open_load.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        environ = {**os.environ, "AIF_HOME": home, "OMP_NUM_THREADS": "1"}
        words = (sys.executable, "-m", "aif_stream", "up", "--items", "300", "--users", "30", "--port", "0")
        with Path(home, "log").open("wb") as log:
            up = subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=log)
        small = subprocess.Popen((sys.executable, "-c", SMALL), stdout=subprocess.PIPE)
        try:
            assert up.stdout is not None
            assert small.stdout is not None
            url = up.stdout.readline().decode().removeprefix("ready ").strip()
            assert url, Path(home, "log").read_text()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                real = runner.run(at_a_real_server(url))
                up.send_signal(signal.SIGTERM)
                up.wait(60)
                stopped = runner.run(
                    at_a_server_that_stops(f"http://127.0.0.1:{int(small.stdout.readline())}", small.pid)
                )
        finally:
            for process in (up, small):
                if process.poll() is None:
                    process.kill()
                process.wait()
    found = {"rate_per_s": RATE, "real_server": real, "server_that_stops": stopped}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    short = real["send_error_ms"]["p99"] > 5 or stopped["waited_longer_than_half_of_it"] < 0.45 * RATE * PAUSE_S
    sys.exit(3 if short else 0)


if __name__ == "__main__":
    main()
