"""What the signature terms promise: the factorised sum is the dense one, tiers are a masked histogram."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from aif_stream.model.config import ModelConfig
from aif_stream.model.signature import TIER_GAIN, edge_table, signs, tier_features
from aif_stream.model.user_side import Histories, signature_matrix


def test_the_factorised_sum_is_the_dense_sum_over_the_history() -> None:
    random = np.random.default_rng(0)
    L, B, W, D = 40, 7, 64, 5
    seen, items = (random.integers(0, 256, size=(n, W // 8), dtype=np.uint8) for n in (L, B))
    content, t = random.random(L) < 0.7, random.standard_normal((L, D))
    zero = torch.zeros(1, L, dtype=torch.int64)
    sigma = torch.from_numpy(signs(seen, content)).double()[None]
    history = Histories(torch.from_numpy(t)[None], sigma, zero == 0, zero, zero, zero)
    factorised = torch.from_numpy(signs(items, np.ones(B, dtype=bool))).double() @ signature_matrix(history)[0]
    similar = 1 - np.bitwise_count(items[:, None] ^ seen[None]).sum(-1) / W  # (B, L)
    dense = ((similar - 0.5) * content) @ t / content.sum()
    np.testing.assert_allclose(factorised.numpy(), dense, atol=1e-12)


@pytest.mark.parametrize("bits", [64, 128, 256])
@pytest.mark.parametrize("tiers", [1, 2, 8, 64])
def test_tier_bounds_rise_and_put_unrelated_signatures_into_middle_tiers(bits: int, tiers: int) -> None:
    config = msgspec.structs.replace(ModelConfig(), signature_bits=bits, tiers=tiers)
    edges = edge_table(config)
    assert edges.shape == (bits + 1,)
    assert (np.diff(edges.astype(int)) >= 0).all()
    assert edges[0] == 0
    assert edges[-1] < tiers
    if tiers == 8:
        assert edges[bits // 2] == 1
        assert edges[bits] == 7


def test_tiers_leave_out_items_and_entries_without_content() -> None:
    config = ModelConfig()
    edges = edge_table(config)
    random = np.random.default_rng(1)
    items = random.integers(0, 256, size=(3, 8), dtype=np.uint8)
    features = tier_features(items, np.array([True, False, True]), items[:1], edges, config.tiers)
    assert features[0, -1] == pytest.approx(np.log1p(TIER_GAIN))
    assert not features[1].any()
    assert np.expm1(features[2]).sum() == pytest.approx(TIER_GAIN, rel=1e-5)
    assert not tier_features(items, np.ones(3, dtype=bool), items[:0], edges, config.tiers).any()
