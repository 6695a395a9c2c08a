"""OS priority of work that may wait: niceness, and what stands above niceness on Linux.

Where the kernel groups processes by session for fairness (autogroup: a desktop, a plain VM, not under systemd units or
in containers), niceness counts inside a session only: a process at 19 in a session of its own takes a whole share
beside the servers. So the group is told, too, where that concerns nobody else.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

LEAST: Final = 19
_AUTOGROUP: Final = Path("/proc/self/autogroup")


def lower(niceness: int, *, own_session: bool = False) -> None:
    """Lower this process to ``niceness`` (1 … 19; 0 changes nothing). Cannot be taken back without privileges.

    ``own_session`` leaves the session of the parent first (a helper process that no terminal talks to). The group's
    share is lowered when this process leads its session: else it would be the neighbours' share as well.
    """
    if niceness <= 0:
        return
    os.nice(niceness)
    if own_session:
        with suppress(PermissionError):  # it leads a process group already
            os.setsid()
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # another kernel, or no such grouping
            _AUTOGROUP.write_text(str(niceness))
