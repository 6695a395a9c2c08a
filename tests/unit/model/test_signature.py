"""What the signature terms promise: the factorised sum is the dense one, tiers are a masked histogram."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from aif_stream.model.config import ModelConfig
from aif_stream.model.signature import pack_signs, random_planes, signs
from aif_stream.model.tiers import TIER_GAIN, TierReader
from aif_stream.model.user_side import Histories, signature_matrix
from tests.precision import EPS64, assert_close, largest, sum_bound

# Of log(1 + gain · share) and back, a log and an exponential beside the sum of the tiers: each amplifies the relative
# error by at most its value, log(1 + 100) = 4.6.
_TIER_SUM = 2 * 4.6 * sum_bound(8)


def test_the_factorised_sum_is_the_dense_sum_over_the_history() -> None:
    random = np.random.default_rng(0)
    L, B, W, D = 40, 7, 64, 5
    seen, items = (random.integers(0, 256, size=(n, W // 8), dtype=np.uint8) for n in (L, B))
    content, t = random.random(L) < 0.7, random.standard_normal((L, D))
    zero = torch.zeros(1, L, dtype=torch.int64)
    sigma = torch.from_numpy(signs(seen, content)).double()[None]
    history = Histories(torch.from_numpy(t)[None], sigma, zero == 0, zero, zero, zero, zero)
    factorised = torch.from_numpy(signs(items, np.ones(B, dtype=bool))).double() @ signature_matrix(history)[0]
    similar = 1 - np.bitwise_count(items[:, None] ^ seen[None]).sum(-1) / W  # (B, L)
    dense = ((similar - 0.5) * content) @ t / content.sum()
    assert_close(factorised.numpy(), dense, sum_bound(L + W, largest(dense), EPS64))


@pytest.mark.parametrize("bits", [16, 64, 128, 256])
@pytest.mark.parametrize("tiers", [1, 2, 8, 64])
def test_tier_bounds_rise_and_put_unrelated_signatures_into_middle_tiers(bits: int, tiers: int) -> None:
    config = msgspec.structs.replace(ModelConfig(), signature_bits=bits, tiers=tiers)
    edges = config.tier_edges
    assert (np.diff(edges) > 0).all()
    assert len(edges) < tiers
    assert not len(edges) or 0 < edges[0] <= edges[-1] <= bits
    if tiers == 8:
        assert len(edges) == 7
        assert edges[0] <= bits // 2 <= edges[1]


def test_tiers_leave_out_items_and_entries_without_content() -> None:
    config = ModelConfig()
    reader = TierReader(config)
    random = np.random.default_rng(1)
    items = random.integers(0, 256, size=(3, 8), dtype=np.uint8)
    click = np.ones(1, dtype=np.uint8)
    features = reader.read(items, np.array([True, False, True]), items[:1], click)
    assert features[0, -1] == pytest.approx(np.log1p(TIER_GAIN), rel=_TIER_SUM)
    assert not features[1].any()
    assert np.expm1(features[2]).sum() == pytest.approx(TIER_GAIN, rel=_TIER_SUM)
    assert not reader.read(items, np.ones(3, dtype=bool), items[:0], click[:0]).any()


def test_groups_of_kinds_have_a_histogram_each_and_other_kinds_none() -> None:
    config = msgspec.structs.replace(ModelConfig(), tier_groups=((1,), (3, 4)))
    reader, plain = TierReader(config), TierReader(ModelConfig())
    random = np.random.default_rng(1)
    items, seen = (random.integers(0, 256, size=(n, 8), dtype=np.uint8) for n in (5, 30))
    kinds = random.integers(1, 5, size=30)
    features = reader.read(items, np.ones(5, dtype=bool), seen, kinds)
    assert features.shape == (5, 16) == (5, config.tier_columns)
    for columns, group in ((slice(0, 8), kinds == 1), (slice(8, 16), kinds >= 3)):
        alone = plain.read(items, np.ones(5, dtype=bool), seen[group], kinds[group])
        np.testing.assert_array_equal(features[:, columns], alone)


def test_cosine_tiers_are_what_many_bits_approach() -> None:
    random = np.random.default_rng(2)
    V, bits = 16, 256
    centres = random.standard_normal((4, V))
    vectors = centres[random.integers(4, size=300)] + 0.3 * random.standard_normal((300, V))
    units = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    everything, kinds = np.ones(100, dtype=bool), np.ones(200, dtype=np.int64)
    wide = TierReader(msgspec.structs.replace(ModelConfig(), signature_bits=bits))
    planes = random_planes(V, bits, 0)
    packed = pack_signs(torch.from_numpy(vectors) @ planes, np.ones(300, dtype=bool))
    exact = wide.read_cosines(units[:100], everything, units[100:], kinds)
    coarse = TierReader(ModelConfig()).read(packed[:100, :8], everything, packed[100:, :8], kinds)
    fine = wide.read(packed[:100], everything, packed[100:], kinds)
    errors = [np.abs(np.expm1(f) - np.expm1(exact)).mean() for f in (coarse, fine)]
    assert np.expm1(exact).sum(axis=1) == pytest.approx(TIER_GAIN, rel=_TIER_SUM)
    assert errors[1] < 0.75 * errors[0]
