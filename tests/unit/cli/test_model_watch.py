"""Rate and time to go of a rebuild, from looks at it."""

from __future__ import annotations

from typing import Any

from aif_stream.cli.model_watch import Pace


def _look(done: int, items: int) -> dict[str, Any]:
    return {"done": done, "total": 10, "items": items, "items_per_s": 0.0, "eta_s": None}


def test_rate_and_time_to_go_come_from_the_first_look_on() -> None:
    pace, looks = Pace(), [_look(2, 200), _look(2, 200), _look(6, 1_000)]
    for at_s, look in enumerate(looks):
        pace.add(float(at_s), look)
    assert [(look["items_per_s"], look["eta_s"]) for look in looks] == [(0.0, None), (0.0, None), (400.0, 2.0)]


def test_a_rebuild_that_is_begun_anew_counts_anew() -> None:
    pace = Pace()
    for at_s, look in enumerate([_look(8, 800), _look(1, 100)]):
        pace.add(float(at_s), look)
    last = _look(2, 200)
    pace.add(2.0, last)
    assert (last["items_per_s"], last["eta_s"]) == (100.0, 8.0)
