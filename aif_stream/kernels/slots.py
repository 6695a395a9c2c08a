"""Key -> slot: an open-addressing hash table of unsigned 64-bit keys.

The join's first step: 10,000 candidate keys become rows of an arena. One writer, many readers,
no lock between them (the reasons are at the head of slots.c).
"""

import threading
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from aif_stream.kernels.native import Level, address, choose

Keys = NDArray[np.uint64]
Slots = NDArray[np.int32]
Entries = NDArray[np.void]

_T = TypeVar("_T", bound=np.generic)

ABSENT = -1
_GONE = -2  # removed: keeps its key, so that probe chains stay whole
_ENTRY = np.dtype([("key", "=u8"), ("slot", "=i4"), ("unused", "=i4")])
_MAX_LOAD = 0.6  # linear probing: about 1.8 probes for a hit, 3.6 for a miss at this load
_NEW_LOAD = 0.45  # after a rebuild, so that the next one is at least 0.15 x capacity entries away
_MIN_CAPACITY = 64
_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


class _Table(NamedTuple):
    """What a reader needs, swapped as one reference; the array owns the memory."""

    entries: Entries
    address: int
    mask: int


class SlotTable:
    """uint64 key -> int32 slot >= 0. Every key is legal, 0 included.

    Thread rule: `lookup` may run in any number of threads beside one writing call (writers wait
    for each other). A lookup during a write gives, per key, the old slot, the new one or ABSENT
    for a key being added or removed: never another key's slot. Growth builds a new table and
    swaps the reference; a running lookup ends on the old one.
    Memory: 16 bytes x capacity, 27..53 bytes per key, the old table too while it grows.
    """

    def __init__(self, expected: int = 0, *, level: Level | None = None) -> None:
        """`expected` keys fit without growth. `level` forces the C code or its numpy twin."""
        self._native, _ = choose(level)
        self._writing = threading.Lock()
        self._counts = np.zeros(2, np.int64)  # used (removed ones too), live
        self._table = _empty_table(expected, _MAX_LOAD)

    def __len__(self) -> int:
        return int(self._counts[1])

    @property
    def capacity(self) -> int:
        return self._table.mask + 1

    @property
    def nbytes(self) -> int:
        return self._table.entries.nbytes

    def place(self) -> _Table | None:
        """The table as C code of this room reads it, valid as long as the caller keeps it; None on numpy."""
        return None if self._native is None else self._table

    def lookup(self, keys: Keys, out: Slots | None = None) -> Slots:
        """keys (B) -> slots (B), ABSENT (-1) where unknown; into `out` if given (contiguous)."""
        keys = _checked(keys, np.uint64, "keys")
        slots = np.empty(keys.shape, np.int32) if out is None else _output(out, keys.shape)
        table = self._table  # one reference for the whole call: see the thread rule
        if self._native is None:
            slots[...] = _lookup_numpy(table.entries, keys)
        else:
            self._native.slots_lookup(table.address, table.mask, address(keys), keys.size, address(slots))
        return slots

    def assign(self, keys: Keys, slots: Slots) -> Slots:
        """Sets each key's slot, in order (a key named twice ends at its last slot). Returns the
        slot that each step replaced, ABSENT for a new key. ValueError for a negative slot."""
        keys, slots = _checked(keys, np.uint64, "keys"), _checked(slots, np.int32, "slots")
        if keys.shape != slots.shape:
            raise ValueError(f"{keys.size} keys with {slots.size} slots")
        if slots.size and slots.min() < 0:
            raise ValueError(f"slot {slots.min()} is negative")
        previous = np.empty(keys.shape, np.int32)
        done = 0
        with self._writing:
            while True:
                done += self._assign_some(keys[done:], slots[done:], previous[done:])
                if done == keys.size:
                    return previous
                self._rebuild()

    def remove(self, keys: Keys) -> Slots:
        """Forgets the keys; returns the slots that they had, ABSENT where unknown."""
        keys = _checked(keys, np.uint64, "keys")
        previous = np.empty(keys.shape, np.int32)
        with self._writing:
            table = self._table
            if self._native is None:
                previous[...] = _remove_numpy(table.entries, keys, self._counts)
            else:
                self._native.slots_remove(
                    *(table.address, table.mask, address(keys), keys.size),
                    *(address(previous), address(self._counts)),
                )
        return previous

    def items(self) -> tuple[Keys, Slots]:
        """All keys (N) and their slots (N), in no order."""
        with self._writing:
            live = self._table.entries[self._table.entries["slot"] >= 0]
        return live["key"].copy(), live["slot"].copy()

    def _assign_some(self, keys: Keys, slots: Slots, previous: Slots) -> int:
        """As many as the table takes; how many that were."""
        table = self._table
        max_used = int(self.capacity * _MAX_LOAD)
        if self._native is None:
            return _assign_numpy(table.entries, max_used, (keys, slots), previous, self._counts)
        return self._native.slots_assign(
            *(table.address, table.mask, max_used, address(keys), address(slots)),
            *(keys.size, address(previous), address(self._counts)),
        )

    def _rebuild(self) -> None:
        """A new table without the removed entries, larger where needed; swapped when complete."""
        old, new = self._table, _empty_table(len(self) + 1, _NEW_LOAD)
        if self._native is None:
            _rebuild_numpy(old.entries, new.entries)
        else:
            self._native.slots_rebuild(old.address, old.mask, new.address, new.mask)
        self._counts[0] = self._counts[1]
        self._table = new


def _empty_table(keys: int, load: float) -> _Table:
    """The smallest table that holds `keys` at no more than `load`."""
    capacity = _MIN_CAPACITY
    while int(capacity * load) < keys:
        capacity *= 2
    # All bits set: every slot is ABSENT.
    entries = np.full(capacity * 2, np.iinfo(np.uint64).max, np.uint64).view(_ENTRY)
    return _Table(entries, address(entries), capacity - 1)


def _checked(array: NDArray[_T], dtype: type[_T], name: str) -> NDArray[_T]:
    if array.ndim != 1 or array.dtype != dtype:
        raise TypeError(f"{name} must be one row of {dtype.__name__}, not {array.dtype}{array.shape}")
    return np.ascontiguousarray(array)


def _output(out: Slots, shape: tuple[int, ...]) -> Slots:
    if out.shape != shape or out.dtype != np.int32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise TypeError(f"out must be writeable, contiguous int32{shape}, not {out.dtype}{out.shape}")
    return out


def _mix_numpy(keys: Keys) -> Keys:
    """The hash of slots.c."""
    mixed = (keys ^ (keys >> _HALF)) * _MIX
    return mixed ^ (mixed >> _HALF)


def _find_numpy(entries: Entries, keys: Keys) -> tuple[NDArray[np.intp], Slots]:
    """Each key's entry, or the empty one where it would go, and the slot seen there."""
    mask = np.uint64(entries.size - 1)
    at = (_mix_numpy(keys) & mask).astype(np.intp)
    found = np.empty(keys.shape, np.int32)
    open_ = np.arange(keys.size)
    while open_.size:
        slot = entries["slot"][at[open_]]  # slot before key, as in slots.c
        found[open_] = slot
        goes_on = (slot != ABSENT) & (entries["key"][at[open_]] != keys[open_])
        open_ = open_[goes_on]
        at[open_] = (at[open_] + 1) & (entries.size - 1)
    return at, found


def _lookup_numpy(entries: Entries, keys: Keys) -> Slots:
    return np.maximum(_find_numpy(entries, keys)[1], np.int32(ABSENT))


def _assign_numpy(
    entries: Entries, max_used: int, batch: tuple[Keys, Slots], previous: Slots, counts: NDArray[np.int64]
) -> int:
    """Twin of aif_slots_assign; `previous` is filled for the keys done."""
    keys, slots = batch
    seen = _find_numpy(entries, keys)[1]
    _, first = np.unique(keys, return_index=True)
    new = np.zeros(keys.size, np.bool_)
    new[first] = seen[first] == ABSENT
    room = max_used - int(counts[0])
    done = int(np.searchsorted(np.cumsum(new), room, side="right"))
    order = np.argsort(keys[:done], kind="stable")
    by_key = keys[order]
    again = by_key[1:] == by_key[:-1]
    previous[:done] = np.maximum(seen[:done], ABSENT)
    previous[order[1:][again]] = slots[order[:-1][again]]
    last = order[np.append(~again, np.True_)] if done else order
    counts += (int(new[:done].sum()), int((seen[last] < 0).sum()))
    _put_numpy(entries, keys[last], slots[last])
    return done


def _put_numpy(entries: Entries, keys: Keys, slots: Slots) -> None:
    """Distinct keys. Where several meet at one empty entry, one takes it and the others go on."""
    while keys.size:
        at, seen = _find_numpy(entries, keys)
        settled = seen != ABSENT
        settled[np.unique(at, return_index=True)[1]] = True
        entries["key"][at[settled]] = keys[settled]  # before the slot: see slots.c
        entries["slot"][at[settled]] = slots[settled]
        keys, slots = keys[~settled], slots[~settled]


def _remove_numpy(entries: Entries, keys: Keys, counts: NDArray[np.int64]) -> Slots:
    at, seen = _find_numpy(entries, keys)
    _, first = np.unique(keys, return_index=True)
    previous = np.full(keys.shape, ABSENT, np.int32)
    previous[first] = np.maximum(seen[first], ABSENT)
    had = previous >= 0
    entries["slot"][at[had]] = _GONE
    counts[1] -= int(had.sum())
    return previous


def _rebuild_numpy(old: Entries, new: Entries) -> None:
    live = old[old["slot"] >= 0]
    _put_numpy(new, live["key"], live["slot"])
