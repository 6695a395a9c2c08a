"""Values of options that more than one verb takes, and foreign text as a terminal may have it."""

from __future__ import annotations

import math
from typing import Any, Final

import click

from aif_stream.clock import now_ms
from aif_stream.errors import BadInput

# C0 and C1 but for line feed and tab: an escape in a foreign record must not move the reader's cursor.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (9, 10)}


class Finite(click.FloatRange):
    """A float range without nan and infinity: no comparison with nan is ever true, so a limit of nan bounds nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class Since(click.ParamType):
    """A time as ``parse_time`` takes it → ms."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from aif_stream.replay.lines import parse_time

        try:
            return parse_time(value, now_ms())
        except BadInput as problem:
            self.fail(str(problem), param, ctx)


def plain(text: str) -> str:
    """Text of somebody else's with its control characters spelled out."""
    return text.translate(_CONTROLS)
