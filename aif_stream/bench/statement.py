"""What a benchmark's JSON states besides its figures: what ran beside it, and each goal with what was seen."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

_LOOK_S: Final = 2.0
_BUSY: Final = 0.02  # of a core


def beside() -> dict[str, Any]:
    """The load, and the other programs that take more than 2 % of a core, over two seconds before the benchmark: by
    name, with their share of a core. Programs are told on Linux alone."""
    before, begin_s = _ticks(), time.monotonic()
    time.sleep(_LOOK_S)
    spent, ticks_s = time.monotonic() - begin_s, os.sysconf("SC_CLK_TCK")
    shares: dict[str, float] = {}
    for pid, (name, ticks) in _ticks().items():
        if pid != os.getpid():
            share = (ticks - before.get(pid, (name, ticks))[1]) / ticks_s / spent
            shares[name] = shares.get(name, 0.0) + share
    busy = {name: round(share, 2) for name, share in sorted(shares.items()) if share > _BUSY}
    return {"load_1min": round(os.getloadavg()[0], 2), "programs": busy}


def goal(what: str, bound: float, seen: float, *, at_least: bool) -> dict[str, Any]:
    """One goal, judged."""
    return {"goal": what, "bound": bound, "seen": round(seen, 2), "met": seen >= bound if at_least else seen <= bound}


def _ticks() -> dict[int, tuple[str, int]]:
    """Name and CPU time, in the kernel's ticks, of every process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")
        except OSError:  # it has ended
            continue
        fields = rest.split()
        found[int(stat.parent.name)] = (head.partition("(")[2], int(fields[11]) + int(fields[12]))
    return found
