"""The player: sends every request when it is due, whatever the answers do, and writes down what happened.

Latency counts from the moment a request was due, not from when it was sent, so a server that stands still shows in
every request of that time (no coordinated omission). How well the player itself kept to the schedule is its send error.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from aif_stream.clock import monotonic_s
from aif_stream.errors import AifError, UpstreamError
from aif_stream.http_client import CONNECTIONS, HttpClient
from aif_stream.replay.tape import ANSWER, Answer, Bodies

# Between "go" and the first request: both clients are connected, the collector is off.
_LEAD_S: Final = 0.05
# uvloop's timers count whole ms and round, so a sleep may end early: a request is never sent before it is due, and no
# core is burnt for the rest of a ms.
_TICK_S: Final = 0.001
# Requests that are due at once are sent in one turn of the loop, but answers get theirs after so many.
_BURST: Final = 16
_PROGRESS_S: Final = 0.25
_WRITE_BYTES: Final = 1 << 20
_OPEN_FILES: Final = 4096
# The interpreter hands over to another thread (the progress bar) after 5 ms by default: as much as the send error may
# be in all.
_SWITCH_S: Final = 0.0005


@dataclass(slots=True)
class Recording:
    """What one server did with n requests. ``send_error_s``, ``latency_s`` f64 (n); ``status`` (n): HTTP, 0 for none.

    ``latency_s`` is inf for a request that was not answered with 200. ``errors``: reason -> how often.
    """

    url: str
    send_error_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    status: NDArray[np.int16]
    waited: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    _at: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    _size: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    _file: int = -1

    @property
    def answered(self) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.status == 200
        return mask

    def answer(self, i: int) -> Answer | None:
        """The i-th answer; None when there is none."""
        if self.status[i] != 200:
            return None
        try:
            return ANSWER.decode(os.pread(self._file, int(self._size[i]), int(self._at[i])))
        except msgspec.MsgspecError:
            raise UpstreamError(
                f"{self.url} answered request {i} with no ranking", mend="is it an aif serve?"
            ) from None


class Recorder:
    """Fills a ``Recording``; bodies go to a file in large writes. The recording's answers live as long as this."""

    def __init__(self, url: str, due_s: NDArray[np.float64], on_end: Callable[[bool], None]) -> None:
        n = due_s.size
        self._out = tempfile.TemporaryFile(prefix="aif-answers-")  # noqa: SIM115  # closed by the context
        self._buffer = bytearray()
        self._end = 0
        self._due: list[float] = due_s.tolist()
        self._on_end = on_end
        self.begin_s = 0.0
        self.recording = Recording(
            url,
            np.zeros(n),
            np.full(n, np.inf),
            np.zeros(n, np.int16),
            _at=np.zeros(n, np.int64),
            _size=np.zeros(n, np.int64),
            _file=self._out.fileno(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()

    def sent(self, i: int, now_s: float) -> None:
        """The player has taken up request i."""
        self.recording.send_error_s[i] = now_s - self.begin_s - self._due[i]

    def ended(self, i: int, status: int, body: bytes, _media_type: str = "") -> None:
        """An answer, or a failure (status 0) with its reason."""
        now_s = monotonic_s()
        found = self.recording
        found.status[i] = status
        if status == 200:
            found.latency_s[i] = now_s - self.begin_s - self._due[i]
            found._at[i], found._size[i] = self._end, len(body)
            self._end += len(body)
            self._buffer += body
            if len(self._buffer) >= _WRITE_BYTES:
                self.flush()
        else:
            found.errors[_reason(status, body)] += 1
        self._on_end(status == 200)

    def flush(self) -> None:
        self._out.write(self._buffer)
        self._out.flush()
        self._buffer.clear()


class _Problem(msgspec.Struct):
    detail: str = ""


def _reason(status: int, body: bytes) -> str:
    if status == 0:
        return body.decode(errors="replace")
    try:
        return f"HTTP {status}: {msgspec.json.decode(body, type=_Problem).detail}"
    except msgspec.MsgspecError:
        return f"HTTP {status}"


@dataclass(frozen=True, slots=True)
class Side:
    """One server and what it is sent."""

    url: str
    bodies: Bodies
    recorder: Recorder


async def play(
    due_s: NDArray[np.float64],
    sides: list[Side],
    *,
    timeout_s: float,
    connections: int = CONNECTIONS,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Send every request to every side when it is due; return when all have ended. Fills the sides' recorders.

    ``due_s`` (n) ascending, seconds after the beginning. With two sides they take turns in being the first.
    Raises ``UpstreamError`` when a server cannot be reached at the beginning, or gave no answer at all.
    """
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                HttpClient(side.url, side.recorder.ended, timeout_s=timeout_s, connections=connections)
            )
            for side in sides
        ]
        telling = asyncio.create_task(_tell(on_progress), name="replay-progress")
        stack.callback(telling.cancel)
        with _undisturbed():
            await _send_all(due_s, list(zip(sides, clients, strict=True)))
            for client in clients:
                await client.finish()
    for side, client in zip(sides, clients, strict=True):
        side.recorder.flush()
        side.recorder.recording.waited = client.waited
    on_progress()


async def _send_all(due_s: NDArray[np.float64], pairs: list[tuple[Side, HttpClient]]) -> None:
    begin_s = monotonic_s() + _LEAD_S
    for side, _ in pairs:
        side.recorder.begin_s = begin_s
    burst = 0
    for i, due in enumerate(due_s.tolist()):
        waited = False
        while (wait_s := begin_s + due - monotonic_s()) > 0:
            await asyncio.sleep(max(wait_s, _TICK_S))
            waited = True
        if waited:
            burst = 0
        elif burst >= _BURST:
            await asyncio.sleep(0)
            burst = 0
        burst += 1
        for side, client in pairs if i % 2 == 0 else reversed(pairs):
            body = side.bodies[i]
            side.recorder.sent(i, monotonic_s())
            client.submit(i, body, begin_s + due)


async def _tell(on_progress: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_S)
        on_progress()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection (a full one takes tens of ms), quick thread switches, files enough for the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    switch_s, collecting = sys.getswitchinterval(), gc.isenabled()
    gc.collect()
    gc.disable()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(switch_s)
        if collecting:
            gc.enable()


def nothing_answered(recording: Recording) -> AifError | None:
    """The error to raise when a server gave not one answer."""
    if recording.answered.any():
        return None
    reason, times = recording.errors.most_common(1)[0]
    return UpstreamError(f"{recording.url} answered none of {recording.status.size} requests: {times} x {reason}")
