"""Nothing that a request is judged by is known to it: labels shape weights alone, histories end before the request."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.model.net import Net
from aif_stream.training.batches import Tables
from aif_stream.training.dataset import Behaviors, Dataset
from aif_stream.training.loop import QUICK, Trainer
from aif_stream.training.schema import centre_content, config_for, fit_codes
from aif_stream.training.synthetic import Synthetic

WORLD = Synthetic(30, 400, 5).dataset(3000)
NET = Net(config_for(WORLD, codes=16), 0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_no_vocabulary_mean_signature_or_codeword_depends_on_labels() -> None:
    flipped = replace(WORLD, requests=replace(WORLD.requests, clicked=~WORLD.requests.clicked))
    found = []
    for data in (WORLD, flipped):
        config = config_for(data, codes=16)
        net = Net(config, 0)
        centre_content(net, data)
        fit_codes(net, data)
        found.append((config, dict(net.item_tower.named_buffers())))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() >= {"planes", "content_mean", "content_scale", "codewords"}
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name


@settings(max_examples=30, deadline=None)
@given(request=st.integers(0, len(WORLD.requests.user) - 1), seed=st.integers(0, 9))
def test_what_happens_at_or_after_a_request_changes_nothing_in_its_batch(request: int, seed: int) -> None:
    random, known = np.random.default_rng(seed), WORLD.behaviors
    later = known.time_ms >= WORLD.requests.time_ms[request]
    item = np.where(later, random.integers(0, len(WORLD.items), len(later)), known.item)
    kind = np.where(later, random.integers(1, 5, len(later)), known.kind)
    other = replace(WORLD, behaviors=Behaviors(item, known.time_ms, kind, known.start))
    batches = [Tables.build(data, NET, 256).batch(np.array([request]))[0] for data in (WORLD, other)]
    for name in ("candidates", "tiers", "kind", "age"):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name)), name
    seen = [batch.items.ids[batch.history[batch.history >= 0].numpy()] for batch in batches]
    np.testing.assert_array_equal(seen[0], seen[1])


@pytest.mark.parametrize("emptied", ["histories", "profiles", "content"])
def test_users_without_history_or_profile_and_items_without_content_are_trained_on(emptied: str) -> None:
    data: Dataset = WORLD
    if emptied == "histories":
        data = replace(data, requests=replace(data.requests, end=data.requests.begin))
    elif emptied == "profiles":
        data = replace(data, profiles=[None] * len(data.profiles))
    else:
        data = replace(data, items=[msgspec.structs.replace(item, content_vector=None) for item in data.items])
    version = Trainer(data, "v", replace(QUICK, epochs=1, impressions=1000)).run()
    assert 0 < version.metrics["test_gauc"]["value"] < 1
    assert all(torch.isfinite(value).all() for value in version.net.state_dict().values() if value.is_floating_point())
