from __future__ import annotations

import numpy as np
import pytest

from aif_stream.errors import BadInput
from aif_stream.retrieval.catalogue import Catalogue
from aif_stream.retrieval.channels import Channels, rank_by_popularity
from aif_stream.retrieval.neighbours import Neighbours
from aif_stream.retrieval.recent import RecentItems
from tests.unit.retrieval.test_catalogue import event, removal


def channels() -> Channels:
    """Items 0 … 9 in category even/odd, vectors around the circle; user 1 clicked 2, 4 and 1."""
    catalogue, recent = Catalogue(), RecentItems()
    angles = np.linspace(0, np.pi, 10)
    catalogue.apply_items(
        [
            event(str(i), 1, i, category="even" if i % 2 == 0 else "odd", vector=[float(np.cos(a)), float(np.sin(a))])
            for i, a in enumerate(angles)
        ]
    )
    items = np.array([2, 4, 1], np.uint64)
    recent.append(np.ones(3, np.uint64), catalogue.apply_popularity(items, np.ones(3, np.float32)))
    catalogue.apply_items([removal("8", 5, 99)])
    neighbours = Neighbours(catalogue)
    neighbours.refresh()
    made = Channels(catalogue, recent, neighbours)
    made.ranking = rank_by_popularity(catalogue)
    return made


def test_neighbours_are_close_to_recent_items_and_never_removed_ones() -> None:
    made = channels()
    assert set(made.answer("neighbours", 1, 3).keys.tolist()) == {1, 2, 4}
    assert 8 not in made.answer("neighbours", 1, 100).keys.tolist()
    assert made.answer("neighbours", 2, 5).keys.size == 0


def test_categories_share_k_by_how_often_the_user_chose_them() -> None:
    keys = channels().answer("category", 1, 6).keys.tolist()
    assert [key for key in keys if key % 2 == 0] == [2, 4, 0, 6]
    assert [key for key in keys if key % 2 == 1] == [1, 3]


def test_popular_answers_everybody_and_a_small_catalogue_whole() -> None:
    made = channels()
    assert made.answer("popular", 999, 3).keys.tolist() == [1, 2, 4]
    assert sorted(made.answer("popular", 999, 100).keys.tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, 9]


def test_an_unknown_channel_is_named() -> None:
    with pytest.raises(BadInput, match="horoscope"):
        channels().answer("horoscope", 1, 3)
