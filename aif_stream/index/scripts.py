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
    "explanation_step",
    "list_version",
    "count_coverage",
)


@dataclass(frozen=True, slots=True)
class Script:
    """One script; ``load`` is the command that (re)teaches it to a server."""

    name: str
    sha: bytes
    load: bytes

    def head(self, keys: Sequence[bytes], args: int) -> bytes:
        """The EVALSHA command up to its last key; ``args`` bulk strings have to follow (see ``bulk``)."""
        body = pack("EVALSHA", self.sha, len(keys), *keys)
        return b"*%d" % (3 + len(keys) + args) + body[body.index(b"\r\n") :]

    def call(self, keys: Sequence[bytes], *args: bytes) -> bytes:
        """The whole command."""
        return pack("EVALSHA", self.sha, len(keys), *keys, *args)


@functools.cache
def script(name: str) -> Script:
    """A script of this package by name. Read once per process, at its first use."""
    source = resources.files("aif_stream.index").joinpath(f"{name}.lua").read_bytes()
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
    return Script(name, sha, pack("SCRIPT", "LOAD", source))


def load_commands() -> list[bytes]:
    """What a fresh connection sends, so that a restarted server knows every script."""
    return [script(name).load for name in NAMES]


def scripts_by_sha() -> dict[bytes, Script]:
    """For NOSCRIPT: which script a refused command named."""
    return {found.sha: found for found in map(script, NAMES)}
