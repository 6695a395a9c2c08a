"""A process of its own, at the lowest OS priority, that computes the rows of rebuilds.

Why not a thread: Python's lock would be held by a thread that the scheduler starves, and the live lanes would wait
for it. Rows are computed from the bytes in the store by the same code as live ones.
"""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np

from aif_stream import clock, priority
from aif_stream.domain.events import ItemUpserted, decode_item
from aif_stream.domain.order import Order
from aif_stream.domain.row import Rows, empty_rows
from aif_stream.errors import AifError, BadEvent
from aif_stream.model.artefact import load
from aif_stream.model.version import ModelVersion
from aif_stream.nearline.backoff import Backoff
from aif_stream.orphans import end_with_owner

_COMMAND: Final = (sys.executable, "-c", "from aif_stream.nearline.row_process import serve; serve()")
_SIZE_BYTES: Final = 8  # before each job and each answer: its length


class Computed(NamedTuple):
    """Rows (N) in the order of the payloads, and why some are invalid (reason -> items)."""

    rows: Rows
    problems: dict[str, int]


class RowProcess:
    """Starts its process with the first call: a worker that never rebuilds does not pay for it.

    The process has nothing to save. It is killed when the context ends or a call is cancelled, whatever it computes,
    and by the kernel when this process is.
    """

    def __init__(self) -> None:
        self._child: Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._kill()

    @property
    def pid(self) -> int | None:
        """Of the process that computes; None while there is none."""
        return None if self._child is None else self._child.pid

    async def rows(self, artefact: Path, payloads: Sequence[bytes], orders: Sequence[Order]) -> Computed:
        """Item side of N stored items under the version in ``artefact``. Raises ``ArtefactError``.

        A process that dies (the kernel's out-of-memory killer) is started again, later each time: a rebuild
        must not take the live lanes down with it.
        """
        job = _framed((artefact, list(payloads), list(orders)))
        backoff = Backoff("the rebuild process")
        async with self._turn:
            while True:
                try:
                    answer = await self._ask(job)
                except (OSError, asyncio.IncompleteReadError):
                    await backoff.pause(AifError(f"the rebuild process ended with {await self._kill()}"))
                except BaseException:
                    await self._kill()  # or its answer would be taken for the next call's
                    raise
                else:
                    backoff.done()
                    break
        if isinstance(answer, Exception):
            raise answer
        rows, problems = answer
        return Computed(rows, problems)

    async def _ask(self, job: bytes) -> Any:
        if self._child is None:
            self._child = await asyncio.create_subprocess_exec(
                *_COMMAND, stdin=PIPE, stdout=PIPE, preexec_fn=end_with_owner(signal.SIGKILL)
            )
        taken, given = self._child.stdin, self._child.stdout
        assert taken is not None  # noqa: S101 - both are pipes
        assert given is not None  # noqa: S101
        taken.write(job)
        await taken.drain()
        size = int.from_bytes(await given.readexactly(_SIZE_BYTES), "little")
        return pickle.loads(await given.readexactly(size))  # noqa: S301 - from our own child

    async def _kill(self) -> int | None:
        """End the process, if there is one; what it ended with (minus a signal's number)."""
        child, self._child = self._child, None
        if child is None:
            return None
        with suppress(ProcessLookupError):  # it ended by itself
            child.kill()
        return await child.wait()


def serve() -> None:
    """The process: jobs from stdin, answers to stdout, until stdin ends."""
    priority.lower(priority.LEAST, own_session=True)
    jobs = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does so elsewhere
    while size := jobs.read(_SIZE_BYTES):
        artefact, payloads, orders = pickle.loads(jobs.read(int.from_bytes(size, "little")))  # noqa: S301 - our parent's
        answer: object
        try:
            answer = tuple(_compute(artefact, payloads, orders))
        except Exception as error:  # noqa: BLE001 - the caller's
            answer = error
        answers.write(_framed(answer))
        answers.flush()


def _framed(content: object) -> bytes:
    data = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(_SIZE_BYTES, "little") + data


@functools.lru_cache(maxsize=2)  # the new version, and the one before while its last tasks come in
def _model(artefact: Path) -> ModelVersion:
    return load(artefact)


def _compute(artefact: Path, payloads: list[bytes], orders: list[Order]) -> Computed:
    model = _model(artefact)
    packed = np.array(orders, dtype=np.uint64).reshape(-1, 2)
    items, at = _decodable(payloads)
    rows = empty_rows(model.layout, len(payloads))
    computed_ms = clock.now_ms()
    rows["event_time_ms"], rows["offset"], rows["computed_ms"] = packed[:, 0], packed[:, 1], computed_ms
    some, problems = model.item_rows(items, packed[at, 0], packed[at, 1], computed_ms)
    rows[at] = some
    if len(at) < len(payloads):
        problems["unreadable"] += len(payloads) - len(at)
    return Computed(rows, dict(problems))


def _decodable(payloads: Sequence[bytes]) -> tuple[list[ItemUpserted], list[int]]:
    """Stored items were decoded once; a later program may be stricter. Those get an invalid row."""
    items: list[ItemUpserted] = []
    at: list[int] = []
    for i, payload in enumerate(payloads):
        try:
            items.append(decode_item(payload))
        except BadEvent:
            continue
        at.append(i)
    return items, at
