"""Finds the C library of this room (built by setup.py, optional) and says which level can run."""

import ctypes
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aif_stream.errors import SettingsError
from aif_stream.settings import cpu_capability
from aif_stream.telemetry import kv

_ABI = 6  # tiers.c says the same; raised when a C signature changes

_pointer = ctypes.c_void_p
_i64 = ctypes.c_int64
_u64 = ctypes.c_uint64
_int = ctypes.c_int
_object = ctypes.py_object

_log = logging.getLogger(__name__)


class Level(IntEnum):
    """The ways a kernel can run, slowest first. Kernels without vector code of their own (slots,
    gather) run the same C at every level from PORTABLE up."""

    NUMPY = -1
    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2


@dataclass(frozen=True, slots=True)
class Objects:
    """Those that read Python's objects; not there where the library was built without Python's header files."""

    items_read: Callable[..., object]
    items_encode: Callable[..., object]
    vocabulary_build: Callable[..., object]
    writes_pack: Callable[..., list[bytes]]
    ids_read: Callable[..., int]
    request_body: Callable[..., tuple[int, bytes] | None]


@dataclass(frozen=True, slots=True)
class Native:
    """The C functions, arguments as in the .c files; pointers are integers. ctypes releases the GIL for each call but
    ``distinct`` and ``rank``: they take a tenth of a millisecond, and whoever gives the GIL away beside a busy thread
    waits up to the switch interval (0.5 ms in a server) to have it back. Nor for those that read Python's objects
    (``objects``)."""

    level: Level
    slots_lookup: Callable[..., object]
    slots_assign: Callable[..., int]
    slots_remove: Callable[..., object]
    slots_rebuild: Callable[..., object]
    tiers: Callable[..., object]
    gather: Callable[..., int]
    score: Callable[..., object]
    score_keys: Callable[..., object]
    score_scratch: Callable[..., int]
    distinct: Callable[..., int]
    rank: Callable[..., int]
    has_bf16: bool
    objects: Objects | None


@functools.cache
def library() -> Native | None:
    """The loaded C library, or None (with one log line) where it was not built or is older than
    this file. Loaded at the first use, never at import. ``AIF_CPU_CAPABILITY`` may lower its level, or hide it. Raises
    ``SettingsError`` for a value of it that names no level."""
    most = _capability()
    if most is Level.NUMPY:
        _log.warning(kv("kernels.on_numpy", reason="AIF_CPU_CAPABILITY=numpy", mend="unset it"))
        return None
    folder = Path(__file__).parent
    files = [folder / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((file for file in files if file.exists()), None)
    if path is None:
        _log.warning(kv("kernels.on_numpy", reason="not built", mend="install with a C compiler present"))
        return None
    try:
        loaded = _bind(ctypes.CDLL(str(path)), ctypes.PyDLL(str(path)))
    except (OSError, AttributeError) as error:
        _log.warning(kv("kernels.on_numpy", reason=str(error), file=path.name, mend="build it again"))
        return None

    return replace(loaded, level=min(loaded.level, most))


def _capability() -> Level:
    name = cpu_capability()
    try:
        return Level[name.upper()] if name else max(Level)
    except KeyError:
        levels = ", ".join(level.name.lower() for level in Level)
        raise SettingsError(f"AIF_CPU_CAPABILITY={name!r} is none of {levels}") from None


def best_level() -> Level:
    """The fastest level of this machine and build."""
    loaded = library()
    return Level.NUMPY if loaded is None else loaded.level


def has_bf16() -> bool:
    """Whether products in bfloat16 run here."""
    loaded = library()
    return loaded is not None and loaded.has_bf16 and default_level() is Level.AVX512


_forced: list[Level] = []


def default_level() -> Level:
    """The level of calls that name none: what ``use_level`` said, else the best."""
    return _forced[-1] if _forced else best_level()


def use_level(name: str) -> None:
    """Make a level by name ("auto": the best) that of calls that name none, in this process; tables that exist already
    stay as they are. ValueError where this machine lacks it."""
    level = None if name == "auto" else Level[name.upper()]
    if level is not None:
        choose(level)
    _forced[:] = [] if level is None else [level]


def choose(level: Level | None) -> tuple[Native | None, Level]:
    """The library and the level to run: ``default_level`` for None; a forced one must be available
    (ValueError). Level.NUMPY gives no library."""
    loaded = library()
    best = Level.NUMPY if loaded is None else loaded.level
    if level is None:
        level = _forced[-1] if _forced else best
    if level > best:
        raise ValueError(f"kernel level {level.name} asked for, this machine has {best.name}")
    return (None if level is Level.NUMPY else loaded), level


def address(array: NDArray[np.generic]) -> int:
    """The address of an array's first byte; the caller keeps the array alive."""
    try:  # a fifth of the time, some twenty times a request
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    except (TypeError, ValueError):  # read-only, strided, or empty
        return int(array.ctypes.data)


def _bind(lib: ctypes.CDLL, held: ctypes.PyDLL) -> Native:
    """``held``: the same library, called without giving the GIL away."""
    abi = lib.aif_abi()
    if abi != _ABI:
        raise OSError(f"library has interface {abi}, expected {_ABI}")

    def function(
        name: str, result: type[Any] | None, *arguments: type[Any], of: ctypes.CDLL = lib
    ) -> Callable[..., Any]:
        found = getattr(of, name)
        found.restype, found.argtypes = result, arguments
        bound: Callable[..., Any] = found
        return bound

    return Native(
        level=Level(lib.aif_level()),
        slots_lookup=function("aif_slots_lookup", None, _pointer, _u64, _pointer, _i64, _pointer),
        slots_assign=function(
            "aif_slots_assign",
            _i64,
            *(_pointer, _u64, _i64, _pointer, _pointer, _i64, _pointer, _pointer),
        ),
        slots_remove=function("aif_slots_remove", None, _pointer, _u64, _pointer, _i64, _pointer, _pointer),
        slots_rebuild=function("aif_slots_rebuild", None, _pointer, _u64, _pointer, _u64),
        tiers=function(
            "aif_tiers",
            None,
            *(_int, _pointer, _i64, _i64, _int, _pointer, _i64, _pointer, _int, _pointer, _pointer, _i64),
        ),
        gather=function("aif_gather", _i64, _pointer, _i64, _i64, _pointer, _i64, _pointer),
        score=function("aif_score", None, _int, _int, *[_pointer] * 3, _i64, *[_pointer] * 2),
        score_keys=function("aif_score_keys", None, _int, _int, *[_pointer] * 4, _i64, *[_pointer] * 5),
        score_scratch=function("aif_score_scratch", _i64, _pointer),
        distinct=function(
            *("aif_distinct", _i64, _pointer, _u64, _u64, _pointer, _i64, _i64, _int, _u64, _pointer, _pointer), of=held
        ),
        rank=function("aif_rank", _i64, *[_pointer] * 3, _i64, _i64, *[_pointer] * 3, of=held),
        has_bf16=bool(lib.aif_has_bf16()),
        objects=_objects(function, held) if hasattr(lib, "aif_items_read") else None,
    )


def _objects(function: Callable[..., Callable[..., Any]], held: ctypes.PyDLL) -> Objects:
    return Objects(
        items_read=function(
            "aif_items_read",
            None,
            *(_object, _object, _i64, _i64, _pointer, _pointer, _pointer, _i64, _pointer, _i64, _pointer),
            of=held,
        ),
        items_encode=function(
            "aif_items_encode",
            None,
            *(_pointer, _object, _pointer, _i64, _pointer, _pointer, _pointer, _pointer, _i64, _pointer),
            of=held,
        ),
        vocabulary_build=function("aif_vocabulary_build", None, _pointer),
        writes_pack=function("aif_writes_pack", _object, _pointer, _object, *[_pointer] * 3, of=held),
        ids_read=function("aif_ids_read", _int, _object, _pointer, of=held),
        request_body=function("aif_request_body", _object, _object, _object, _object, of=held),
    )
