"""The user side's short cuts: SIM of every key at once beside each by membership, full histories beside masked ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.model.net import Net
from aif_stream.model.scorer import Cross
from aif_stream.model.user_side import AGES, Histories, signature_matrix
from tests.model_builders import small_config
from tests.precision import assert_close, largest, sum_bound

CONFIG = small_config()
# Absent, few, beyond 16 bits (sorted another way), and those at the edge.
KEYS = st.sampled_from([-1, 0, 1, 2, 40, 65_534, 65_535, 65_536, 1 << 40])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(KEYS, st.booleans(), st.integers(0, AGES - 1)), max_size=40), st.booleans())
def test_all_keys_at_once_are_the_shares_of_each(entries: list[tuple[int, bool, int]], full: bool) -> None:
    torch.manual_seed(0)
    cross, L = Cross(CONFIG), len(entries)
    own = torch.tensor([[key for key, _, _ in entries]], dtype=torch.int64)
    mask = torch.tensor([[full or there for _, there, _ in entries]], dtype=torch.bool)
    age = torch.tensor([[bucket for _, _, bucket in entries]], dtype=torch.int64)
    history = Histories(torch.randn(1, L, CONFIG.width), torch.zeros(1, L, 8), mask, age, age, own, own, full=full)
    with torch.inference_mode():
        keys, shares = cross.of_all_keys(own, history)
        expected = cross.of_keys(keys[None], own, history)
    there = {key for (key, _, _), seen in zip(entries, mask[0].tolist(), strict=True) if seen and key >= 0}
    assert keys.tolist() == sorted(there)
    assert shares.shape == (1, len(there), CONFIG.hidden)
    # A group's mean, then a layer of D + 3 inputs.
    assert_close(shares, expected, sum_bound(L + CONFIG.width + 3, largest(expected)))


@pytest.mark.parametrize("L", [1, 1_000])
def test_a_full_history_reads_as_a_masked_one(L: int) -> None:
    torch.manual_seed(1)
    net, zero = Net(CONFIG, 1).eval(), torch.zeros(1, L, dtype=torch.int64)
    tower, bridges = net.user_tower, net.item_tower
    sigma = torch.randn(1, L, CONFIG.signature_bits).sign()
    fields = torch.randn(1, L, CONFIG.width), sigma, zero == 0, zero, zero, zero, zero
    masked, full = (Histories(*fields, full=said) for said in (False, True))
    with torch.inference_mode():
        for read in (
            lambda history: tower.readouts(history, bridges.bridge_rows, bridges.sharpness),
            lambda history: tower.interest(torch.ones(1, CONFIG.width), history.newest(CONFIG.short)),
            signature_matrix,
        ):
            wanted = read(masked)
            # Sums over the history, behind layers of at most 3 D inputs and a norm.
            assert_close(read(full), wanted, sum_bound(L + 5 * CONFIG.width, largest(wanted)))
