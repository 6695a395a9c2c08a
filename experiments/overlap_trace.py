"""Does the user side really run beside retrieval? Two processes' own logs against the timings in the answers.

    python experiments/overlap_trace.py [--requests 200] [--out experiments/results/overlap_trace.json]

`aif serve` logs when a user side ends and how long it took, `aif retrieval` the same of a channel's answer, each by its
own reading of the machine's clock (1 ms). From those lines alone the overlap of each request is computed, and
compared with `overlap_saved` of its answer.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import orjson

LINE = re.compile(r"^(\d\d):(\d\d):(\d\d)\.(\d\d\d) DEBUG \S+ (\S+) (.*)$")
AGREE_MS = 3.0  # two stamps of 1 ms each, and the hop between the processes


@click.command()
@click.option("--requests", default=200, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/overlap_trace.json"))
def main(requests: int, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="aif-trace-") as scratch:
        home = Path(scratch)
        environ = {
            **os.environ,
            "AIF_HOME": str(home),
            "AIF_LOG_LEVEL": "DEBUG",
            "AIF_RETRIEVAL_LATENCY_MS": "10",
            "AIF_USER_CACHE_S": "0",
        }
        command = [sys.executable, "-m", "aif_stream", "up", "--items", "5000", "--users", "200", "--port", "0"]
        up = subprocess.Popen(
            [*command, "--data", str(home / "data")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
        )
        try:
            assert up.stdout is not None
            url = up.stdout.readline().decode().split()[1]
            answers = [rank(url, 1 + number % 200) for number in range(requests)]
        finally:
            up.terminate()
            up.wait(60)
        logs = {role: (home / "data" / "logs" / f"{role}.log").read_text() for role in ("serve", "retrieval")}
    result = compare(answers, logs)
    out.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    if result["agree"] < 0.95 * result["requests"]:
        sys.exit(3)


def rank(url: str, user: int) -> Any:
    request = urllib.request.Request(f"{url}/v1/rank", data=orjson.dumps({"user_id": user, "k": 10}))  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
        return orjson.loads(reply.read())


def compare(answers: list[Any], logs: dict[str, str]) -> dict[str, Any]:
    user, channels = spans(logs["serve"], "user.done"), spans(logs["retrieval"], "retrieve")
    traced, told = [], []
    for answer in answers:
        name = answer["request_id"]
        if name not in user or name not in channels:
            continue
        begin, end = max(user[name][0], channels[name][0]), min(user[name][1], channels[name][1])
        traced.append(max(0.0, end - begin))
        told.append(answer["timings_ms"]["overlap_saved"])
    apart = [abs(a - b) for a, b in zip(traced, told, strict=True)]
    return {
        "requests": len(traced),
        "agree": sum(ms <= AGREE_MS for ms in apart),
        "agree_within_ms": AGREE_MS,
        "overlap_traced_ms_p50": round(statistics.median(traced), 2),
        "overlap_told_ms_p50": round(statistics.median(told), 2),
        "difference_ms_p50": round(statistics.median(apart), 2),
        "difference_ms_max": round(max(apart), 2),
        "user_side_ms_p50": round(statistics.median(a["timings_ms"]["user"] for a in answers), 2),
        "retrieval_ms_p50": round(statistics.median(a["timings_ms"]["retrieval"] for a in answers), 2),
    }


def spans(log: str, stage: str) -> dict[str, tuple[float, float]]:
    """Request id -> (first begin, last end) in ms of the day, from lines that tell an end and its ``ms``."""
    found: dict[str, list[float]] = defaultdict(lambda: [float("inf"), float("-inf")])
    for line in log.splitlines():
        match = LINE.match(line)
        if match is None or match[5] != stage:
            continue
        hours, minutes, seconds, ms = (int(match[i]) for i in range(1, 5))
        end = ((hours * 60 + minutes) * 60 + seconds) * 1000.0 + ms
        fields = dict(part.split("=", 1) for part in match[6].split() if "=" in part)
        span = found[fields["request"]]
        span[0], span[1] = min(span[0], end - float(fields["ms"])), max(span[1], end)
    return {name: (begin, end) for name, (begin, end) in found.items()}


if __name__ == "__main__":
    main()
