"""Redis' error replies in our words: what passes, what is refused, and the hint."""

from __future__ import annotations

import re
from typing import Any, Final

import hiredis

from aif_stream.errors import AifError, IndexDenied, IndexRefused, IndexUnavailable

_AGAIN: Final = "the command is repeated"
# The server's state forbids it: the same command succeeds later, there or on the server that the address leads to then.
_PASSING: Final = {
    "LOADING": _AGAIN,
    "MASTERDOWN": "the address leads to a replica without its primary; it is resolved again",
    "READONLY": "the address leads to a replica; it is resolved again. AIF_REDIS_URL must name the primary",
    "UNBLOCKED": "the server became a replica; the address is resolved again",
    "CLUSTERDOWN": "the slots are looked up again; redis-cli --cluster check",
    "TRYAGAIN": _AGAIN,
    "BUSY": _AGAIN,
    "NOREPLICAS": "Redis waits for replicas (min-replicas-to-write); start them",
    "MISCONF": "Redis cannot write its AOF or snapshot; look at its disk and its log",
    "OOM": "raise maxmemory (with maxmemory-policy noeviction) or remove items",
}
_DENIED: Final = {
    "NOPERM": "allow this user the commands and keys of aif_stream (docs/operations.md)",
    "WRONGPASS": "correct user and password in AIF_REDIS_URL",
    "NOAUTH": "put user and password into AIF_REDIS_URL",
}
_REFUSED: Final = {
    "WRONGTYPE": "another program uses these keys; give aif_stream a Redis database of its own",
    "MOVED": "this is a Redis Cluster: set AIF_REDIS_CLUSTER=true",
    "CROSSSLOT": "this is a Redis Cluster: set AIF_REDIS_CLUSTER=true",
}
_HINTS: Final = _PASSING | _DENIED | _REFUSED
_KNOWN: Final = re.compile(r"\b(" + "|".join(_HINTS) + r")\b")
# Not the server (any more) that takes our writes, or not one that knows this connection's user. OOM and MISCONF are
# left out: such a server still answers reads, and another connection to it changes nothing.
_ELSEWHERE: Final = re.compile(r"\b(READONLY|LOADING|MASTERDOWN|UNBLOCKED|CLUSTERDOWN|NOREPLICAS|NOAUTH)\b")


def error_of(reply: hiredis.ReplyError, where: str = "Redis") -> AifError:
    """A reply error as ``IndexUnavailable`` (passing), ``IndexDenied`` or ``IndexRefused``, with its hint."""
    text = str(reply)
    known = _KNOWN.search(text)
    kind, hint = (known.group(1), _HINTS[known.group(1)]) if known else ("", "")
    if kind in _PASSING:
        return IndexUnavailable(f"{where} is not ready: {text}", mend=hint)
    return (IndexDenied if kind in _DENIED else IndexRefused)(f"{where} refused: {text}", mend=hint)


def leads_elsewhere(reply: hiredis.ReplyError) -> bool:
    """Whether the address may lead to another server by now: resolve it, or learn the slots, again."""
    return _ELSEWHERE.search(str(reply)) is not None


def checked(replies: list[Any]) -> list[Any]:
    """The same replies; raises the first error among them."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise error_of(reply)
    return replies
