"""States of items over time: the one that held at a moment is found, for any items and times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.events import ItemUpserted
from aif_stream.training.batches import Tables
from aif_stream.training.dataset import ItemVersions, Split
from aif_stream.training.evaluate import Served
from aif_stream.training.loop import Recipe, Trainer
from aif_stream.training.sources import open_data
from tests.precision import EPS16, assert_close, rounding_bound

TIMES = st.lists(st.integers(0, 2_000_000_000_000), min_size=1, max_size=5, unique=True).map(sorted)


@given(st.lists(TIMES, min_size=1, max_size=6), st.lists(st.integers(0, 2_000_000_000_000), min_size=1, max_size=8))
def test_the_state_at_a_time_is_the_newest_that_is_not_later(times: list[list[int]], asked: list[int]) -> None:
    states = [ItemUpserted(item_id=i, category="c") for i, own in enumerate(times) for _ in own]
    start = np.concatenate([[0], np.cumsum([len(own) for own in times])])
    versions = ItemVersions(states, np.concatenate([np.array(own) for own in times]), start)
    items = np.arange(len(asked)) % len(times)
    found = versions.at(items, np.array(asked))
    for item, time, state in zip(items.tolist(), asked, found.tolist(), strict=True):
        right = max((n for n, own in enumerate(times[item]) if own <= time), default=0)
        assert state == start[item] + right


def test_training_and_serving_read_items_as_they_were_at_each_request() -> None:
    """Joint form in batches and served split form agree where items change, and not where changes are hidden."""
    data = open_data("synthetic:users=30,items=200,impressions=2000,seed=1,updates=20")
    assert data.versions is not None
    trainer = Trainer(data, "v", Recipe(epochs=1))
    version = trainer.run()
    served = Served(version, data)
    hidden = Served(version, replace(data, versions=None))
    requests = data.requests.of(Split.TEST)[:20]
    batch, _, weight = Tables.build(data, version.net, version.config.long).batch(requests)
    with torch.inference_mode():
        joint = version.net(batch)[weight > 0].numpy()
    shown = [data.requests.item[data.requests.first[r] : data.requests.first[r + 1]] for r in requests]
    split, newest = (
        np.concatenate([ranker(int(r), items) for r, items in zip(requests, shown, strict=True)])
        for ranker in (served, hidden)
    )
    bound = rounding_bound(joint, EPS16)
    assert_close(split, joint, bound)
    assert np.abs(newest - joint).max() > 10 * bound
