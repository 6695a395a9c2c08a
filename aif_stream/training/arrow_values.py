"""Arrow arrays → labels, numbers, times and lists of them, by the array's type.

pyarrow comes with ``[train]`` and is imported when a file is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from aif_stream.training.chunk import F64, I64, numbers_of

if TYPE_CHECKING:
    import pyarrow as pa

# Above, a float stands for several whole numbers: an id could be its neighbour's.
_WHOLE_BELOW: Final = {16: 2**11, 32: 2**24, 64: 2**53}
_AS_TEXT: Final = "write it as strings or whole numbers"


class BadValueError(Exception):
    """The value at place ``at`` of an array cannot be read; ``at`` -1: none of them, because of their type."""

    def __init__(self, at: int, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.at = at
        self.hint = hint


class Lists(NamedTuple):
    """N lists: the values of all, and where those of each begin and end."""

    flat: pa.Array
    starts: I64
    ends: I64

    def row(self, at: int) -> int:
        """The list that holds the value at place ``at`` of ``flat``."""
        return int(np.searchsorted(self.starts, at, side="right")) - 1


def plain(array: pa.Array) -> pa.Array:
    """The array without dictionary, runs or extension type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    while True:
        if isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        else:
            return array


def is_string(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    known = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in known)


def lists(array: pa.Array) -> Lists:
    """An array of lists of any kind; a null list is an empty one."""
    import pyarrow.compute as pc

    counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(counts)
    return Lists(plain(array.flatten()), ends - counts, ends)


def labels(array: pa.Array) -> list[str]:
    """Strings as they are, whole numbers as decimals, booleans as 1 and 0; "" for null. Raises ``BadValueError``."""
    import pyarrow as pa

    kind, types = array.type, pa.types
    if is_string(kind):
        return _strings(array)
    if types.is_decimal(kind):
        return _whole_decimals(array)
    if types.is_floating(kind):
        array = _whole_floats(array)
    elif types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif not (types.is_integer(kind) or types.is_null(kind)):
        raise BadValueError(-1, f"is of type {kind}", _AS_TEXT)
    return ["" if value is None else str(value) for value in array.to_pylist()]


def ids(array: pa.Array) -> list[str]:
    """``labels`` of anything but booleans. Raises ``BadValueError``."""
    import pyarrow as pa

    if pa.types.is_boolean(array.type):
        raise BadValueError(-1, f"is of type {array.type}", _AS_TEXT)
    return labels(array)


def numbers(array: pa.Array) -> F64:
    """Numbers, booleans as 1 and 0, strings as text files have them; NaN for null and for text that is no number.
    Raises ``BadValueError``."""
    import pyarrow as pa

    kind, types = array.type, pa.types
    if types.is_null(kind):
        return np.full(len(array), np.nan)
    if is_string(kind):
        return numbers_of(_strings(array))
    if types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)):
        raise BadValueError(-1, f"is of type {kind}", "write it as numbers")
    # Not safe: an integer beyond 2^53 is rounded as every reader of numbers rounds it.
    values: F64 = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values


def ticks(array: pa.Array) -> tuple[F64 | I64, str]:
    """Times and their own unit ("" where the array has none): whole numbers exactly, others as ``numbers`` gives them.
    Raises ``BadValueError``."""
    import pyarrow as pa

    kind, unit, types = array.type, "", pa.types
    if types.is_timestamp(kind):
        array, unit = array.cast(pa.int64()), str(kind.unit)
    elif types.is_date(kind):
        array, unit = array.cast(pa.date64()).cast(pa.int64()), "ms"
    elif types.is_boolean(kind):
        raise BadValueError(-1, f"is of type {kind}", "write it as timestamps or numbers")
    if not types.is_integer(array.type) or types.is_uint64(array.type):
        return numbers(array), unit
    if array.null_count:
        raise BadValueError(null_at(array), "is empty", "correct or remove it")
    values: I64 = array.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return values, unit


def null_at(array: pa.Array) -> int:
    """The place of the first null."""
    return int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])


def _whole_floats(array: pa.Array) -> pa.Array:
    """The same as integers. Raises ``BadValueError`` for another number, or one whose neighbours are the same float."""
    import pyarrow as pa

    values, null = numbers(array), array.is_null().to_numpy(zero_copy_only=False)
    below = _WHOLE_BELOW[array.type.bit_width]
    wrong = np.flatnonzero(~null & ~((np.abs(values) < below) & (np.rint(values) == values)))
    if len(wrong):
        at = int(wrong[0])
        problem = f"is {values[at]:.17g}, not a whole number below {below:,} (beyond, a {array.type} is not exact)"
        raise BadValueError(at, problem, _AS_TEXT)
    return pa.array(np.where(null, 0, values).astype(np.int64), mask=null)


def _whole_decimals(array: pa.Array) -> list[str]:
    found = array.to_pylist()
    for at, value in enumerate(found):
        if value is not None and value != int(value):
            raise BadValueError(at, f"is {value}, not a whole number", _AS_TEXT)
    return ["" if value is None else str(int(value)) for value in found]


def _strings(array: pa.Array) -> list[str]:
    try:
        found: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        for at, value in enumerate(array):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise BadValueError(at, f"is not UTF-8: {error.reason}", "write it again as UTF-8") from None
        raise
    return ["" if value is None else value for value in found]
