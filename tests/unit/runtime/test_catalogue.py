"""What `aif up --data` seeds again is what it seeded first."""

from __future__ import annotations

from pathlib import Path

from aif_stream.runtime.catalogue import Catalogue, kept_end_ms


def test_behaviors_seeded_again_into_a_folder_are_the_same_ones(tmp_path: Path) -> None:
    first, again = (list(Catalogue(50, 3, kept_end_ms(tmp_path)).lines("behaviors")) for _ in range(2))
    assert first
    assert again == first
