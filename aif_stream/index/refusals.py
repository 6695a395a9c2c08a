"""Redis' error replies in our words: what passes, what is refused, and the mend."""

from __future__ import annotations

import re
from typing import Any, Final

import hiredis

from aif_stream.errors import AifError, IndexRefused, IndexUnavailable

_MENDS: Final = {
    "OOM": "raise maxmemory (with maxmemory-policy noeviction) or remove items",
    "READONLY": "AIF_REDIS_URL names a replica; name the primary",
    "WRONGTYPE": "another program uses these keys; give aif_stream a Redis database of its own",
    "MISCONF": "Redis cannot write its AOF or snapshot; look at its disk and its log",
    "NOPERM": "allow this user the commands and keys of aif_stream (docs/operations.md)",
    "WRONGPASS": "correct user and password in AIF_REDIS_URL",
    "NOAUTH": "put user and password into AIF_REDIS_URL",
    "NOREPLICAS": "Redis waits for replicas (min-replicas-to-write); start them",
    "MOVED": "this is a Redis Cluster: set AIF_REDIS_CLUSTER=true",
    "CROSSSLOT": "this is a Redis Cluster: set AIF_REDIS_CLUSTER=true",
}
_REFUSED: Final = re.compile(r"\b(" + "|".join(_MENDS) + r")\b")
# The server is there but cannot serve yet (loading its AOF, failing over): as if it did not answer.
_PASSING: Final = re.compile(r"\b(LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY)\b")


def error_of(reply: hiredis.ReplyError, where: str = "Redis") -> AifError:
    """A reply error as ``IndexUnavailable`` (passing) or ``IndexRefused`` (with its mend)."""
    text = str(reply)
    if _PASSING.search(text):
        return IndexUnavailable(f"{where} is not ready: {text}", mend="it is tried again")
    known = _REFUSED.search(text)
    return IndexRefused(f"{where} refused: {text}", mend=_MENDS[known.group(1)] if known else "")


def checked(replies: list[Any]) -> list[Any]:
    """The same replies; raises the first error among them."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise error_of(reply)
    return replies
