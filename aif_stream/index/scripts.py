"""The Lua scripts: loaded from this package, named by their SHA-1, sent by EVALSHA."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

from aif_stream.index.wire import pack

NAMES: Final = (
    *("write_batch", "write_rebuilt", "mark_advance", "history_append", "profile_write", "purge_removed"),
    "count_coverage",
