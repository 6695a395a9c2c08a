"""``/metrics`` of several processes behind one port: all of them, each series with its ``process``.

A scrape of the shared port reaches any one of them, and counters that jump between processes are worse than none.
So the process that is asked asks the others at their own addresses and puts the texts together. Nothing is added up:
Prometheus does that rightly itself (``sum without (process)``), and the restart of one process must not look like a
reset of all. An own address answers for its process alone: that is what service discovery lists.

prometheus_client's multi-process mode was the alternative: every count goes through a memory-mapped file, gauges need
a rule each, and callbacks (``set_function``) are gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

import aiohttp
from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import Response

from aif_stream.settings import Settings
from aif_stream.telemetry import kv
from aif_stream.web import metrics_response

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 2.0  # a scrape has ten seconds; who does not answer in two is left out, and ``up`` says so
_UP: Final = "aif_serve_process_up"


class AllMetrics:
    """``async with AllMetrics(settings) as metrics``: ``metrics.answer`` is the handler of ``/metrics``."""

    def __init__(self, settings: Settings) -> None:
        self._ports = [int(port) for port in settings.serve_worker_ports.split(",") if port]
        self._host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.own = int(settings.serve_worker or 0)
        self._http: aiohttp.ClientSession | None = None

    @property
    def own_port(self) -> int:
        """Of this process alone; 0 where it is the only one."""
        return self._ports[self.own - 1] if self._ports else 0

    async def __aenter__(self) -> Self:
        if self._ports:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE_S))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def answer(self, request: Request) -> Response:
        """Everybody's on the shared port, else this process's own."""
        asked = (request.scope.get("server") or ("", 0))[1]
        if not self._ports or asked == self.own_port:
            return metrics_response(generate_latest())
        numbers = range(1, len(self._ports) + 1)
        texts = await asyncio.gather(*(self._of(number) for number in numbers))
        return metrics_response(merged(dict(zip(map(str, numbers), texts, strict=True))).encode())

    async def _of(self, number: int) -> str | None:
        if number == self.own or self._http is None:
            return generate_latest().decode()
        try:
            async with self._http.get(f"http://{self._host}:{self._ports[number - 1]}/metrics") as reply:
                return await reply.text() if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning(kv("metrics.missing", process=number, problem=str(error) or type(error).__name__))
            return None


def merged(texts: dict[str, str | None]) -> str:
    """Texts by process as one: a family's head once, then everybody's samples with ``process``. None: not there."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, text in texts.items():
        for family, head, lines in _families(text or ""):
            heads.setdefault(family, head)
            samples.setdefault(family, []).extend(_labelled(line, process) for line in lines)
    lines = [line for family in samples for line in (*heads[family], *samples[family])]
    up = [f'{_UP}{{process="{process}"}} {int(text is not None)}' for process, text in texts.items()]
    return "\n".join([*lines, f"# HELP {_UP} 1 for a process that told its metrics", f"# TYPE {_UP} gauge", *up, ""])


def _families(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, HELP and TYPE lines, samples): a HELP line begins the next family."""
    family, head, lines = "", list[str](), list[str]()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            if family:
                yield family, head, lines
            family, head, lines = line.split(" ", 3)[2], [line], []
        elif line.startswith("#"):
            head.append(line)
        elif line:
            lines.append(line)
    if family:
        yield family, head, lines


def _labelled(line: str, process: str) -> str:
    """``name{a="b"} 1`` -> ``name{process="2",a="b"} 1``. A name has neither brace nor blank."""
    brace, blank = line.find("{"), line.find(" ")
    label = f'process="{process}"'
    if 0 <= brace < blank:
        return f"{line[: brace + 1]}{label},{line[brace + 1 :]}"
    return f"{line[:blank]}{{{label}}}{line[blank:]}"
