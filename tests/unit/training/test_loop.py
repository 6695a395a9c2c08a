"""Training learns, repeats, and what it trains is what is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from aif_stream.errors import TrainingDataError, VersionError
from aif_stream.kernels.native import has_bf16
from aif_stream.model.config import Kind
from aif_stream.training.bridges import COLLAPSED
from aif_stream.training.checkpoint import data_fingerprint
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.evaluate import Served, evaluate_baselines, evaluate_version
from aif_stream.training.loop import QUICK, Trainer
from aif_stream.training.parity import parity
from aif_stream.training.sources import open_data
from aif_stream.training.synthetic import Synthetic
from tests.precision import EPS16, EPS_BF16, assert_close, rounding_bound, score_bound

SMALL = replace(QUICK, epochs=1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Synthetic(200, 1000, 3).dataset(24_000)


def test_training_beats_popularity_and_says_so_in_the_manifest(data: Dataset) -> None:
    version = Trainer(data, "v1", replace(QUICK, epochs=3)).run()
    popularity, item_mean = evaluate_baselines(data)
    found = evaluate_version(version, data)
    assert found.metrics["gauc"].low > popularity.metrics["gauc"].value
    assert found.metrics["gauc"].value > item_mean.metrics["gauc"].value
    assert version.metrics["test_gauc"]["value"] == pytest.approx(found.metrics["gauc"].value, abs=0.003)
    assert found.online_mflop_per_10k > 10


def test_the_same_seed_trains_the_same_weights(data: Dataset) -> None:
    first, again, other = (Trainer(data, "v", replace(SMALL, impressions=3000, seed=s)).run() for s in (1, 1, 2))
    states = [version.net.state_dict() for version in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


ALL: dict[str, Any] = {"codes": 256, "second_key": "brand", "tier_groups": ((1,), (2, 3, 4)), "signature_bits": 128}


@pytest.mark.parametrize(("kind", "choices"), [*((kind, {}) for kind in Kind), (Kind.AIF, ALL)])
def test_batched_training_logits_are_the_served_scores(data: Dataset, kind: Kind, choices: dict[str, Any]) -> None:
    trainer = Trainer(data, "v", replace(SMALL, impressions=2000), kind=kind, **choices)
    version = trainer.run()
    served = Served(version, data)
    requests = data.requests.of(Split.TEST)[:20]
    batch, _, weight = trainer._tables.batch(requests)
    with torch.inference_mode():
        logits = version.net(batch)
    for at, request in enumerate(requests):
        items = data.requests.item[data.requests.first[request] : data.requests.first[request + 1]]
        scores = served(int(request), items)
        trained = logits[at][weight[at] > 0].numpy()
        assert_close(scores, trained, rounding_bound(trained, EPS16))


@pytest.mark.parametrize("choices", [{}, ALL])
def test_what_is_served_is_what_was_trained(data: Dataset, choices: dict[str, Any]) -> None:
    version = Trainer(data, "v", replace(SMALL, impressions=6000), **choices).run()
    found = parity(version, data)
    assert found["float32 rows"]["score_error_max"] < score_bound(version.config, 1.0)
    assert found["float32 rows"]["top100_overlap_min"] >= 0.99  # two equal scores may change places
    assert found["f16 rows"]["score_error_max"] < rounding_bound(1.0, EPS16)
    assert found["f16 rows"]["top100_overlap_min"] >= 0.97
    assert ("bf16 products" in found) == (version.compiled and has_bf16())
    if "bf16 products" in found:
        assert found["bf16 products"]["score_error_max"] < rounding_bound(1.0, EPS_BF16)
        assert found["bf16 products"]["top100_overlap_min"] >= 0.9
    assert not version.bf16
    assert parity(Trainer(data, "v", replace(SMALL, impressions=200), kind=Kind.EXACT).run(), data) == {}


def test_padding_of_a_batch_changes_no_logit(data: Dataset) -> None:
    trainer = Trainer(data, "v", replace(SMALL, impressions=2000))
    trainer.run()
    requests = data.requests.of(Split.VALID)[:10]
    with torch.inference_mode():
        batch, _, weight = trainer._tables.batch(requests)
        together = trainer.net(batch)
        for at, request in enumerate(requests):
            alone, _, own = trainer._tables.batch(np.array([request]))
            padded = together[at][weight[at] > 0]
            assert_close(trainer.net(alone)[own > 0], padded, score_bound(trainer.config, padded))


def test_unusable_items_stop_the_training_with_their_number(data: Dataset) -> None:
    items = list(data.items)
    items[4] = msgspec.structs.replace(items[4], content_vector=[1.0])
    with pytest.raises(TrainingDataError, match=r"content-width ×1; the first is 5 \(number 5\)"):
        Trainer(replace(data, items=items), "v")


def test_a_bad_name_is_refused_before_any_work(data: Dataset) -> None:
    with pytest.raises(VersionError):
        Trainer(data, "no/name")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("csv:somewhere", "names no data set"),
        ("movielens:", "names no data set"),
        ("movielens:/nowhere", "is no directory"),
        ("synthetic:users=x", "is not understood"),
        ("synthetic:stars=5", "is not understood"),
        ("synthetic:users=0", "too small"),
    ],
)
def test_a_wrong_data_name_says_what_to_give(spec: str, message: str) -> None:
    with pytest.raises(TrainingDataError, match=message) as error:
        open_data(spec)
    assert error.value.mend


def test_synthetic_data_can_be_named(tmp_path: Path) -> None:
    data = open_data("synthetic:users=30,items=200,impressions=2000,seed=4")
    assert data.name == "synthetic:users=30,items=200,impressions=2000,seed=4"
    assert len(data.items) == 200


def test_data_on_which_gauc_is_not_defined_is_refused(data: Dataset) -> None:
    table = data.requests
    user = np.repeat(table.user, np.diff(table.first))
    with pytest.raises(TrainingDataError, match="no user of the valid part has both"):
        Trainer(replace(data, requests=replace(table, clicked=user % 2 == 0)), "v")


def test_a_pairwise_loss_and_bf16_train_too(data: Dataset) -> None:
    recipe = replace(SMALL, impressions=12_000, rank_weight=1.0, precision="bf16", diversity=0.1)
    version = Trainer(data, "v", recipe, bridges=16, bridge_norm=True).run()
    assert version.metrics["valid_gauc"] > 0.53
    assert version.metrics["bridges"]["bridges"] == 16
    assert 1 <= version.metrics["bridges"]["perplexity"] <= 16
    assert -1 <= version.metrics["bridges"]["readout_cosine"] <= 1


def test_the_manifest_names_its_data_by_fingerprint(data: Dataset) -> None:
    again = Synthetic(200, 1000, 3).dataset(24_000)
    other = Synthetic(200, 1000, 4).dataset(24_000)
    prints = [data_fingerprint(d) for d in (data, again, other)]
    assert prints[0] == prints[1] != prints[2]
    recipe = replace(SMALL, impressions=1000)
    assert Trainer(data, "v", recipe).run().metrics["data_sha256"] == prints[0]


@pytest.mark.parametrize(("temperature", "collapsed"), [(30.0, True), (0.03, False)])
def test_a_collapse_of_the_bridges_is_said_in_the_log_and_in_the_manifest(
    data: Dataset, caplog: pytest.LogCaptureFixture, temperature: float, collapsed: bool
) -> None:
    version = Trainer(data, "v", replace(SMALL, impressions=2000), bridge_temperature=temperature).run()
    assert (version.metrics["bridges"]["readout_cosine"] > COLLAPSED) == collapsed
    assert bool(version.metrics["warnings"]) == collapsed
    assert ("bridges have collapsed" in caplog.text) == collapsed


@pytest.mark.parametrize("bridges", [1, 64])
def test_any_number_of_bridges_trains(data: Dataset, bridges: int) -> None:
    version = Trainer(data, "v", replace(SMALL, impressions=2000), bridges=bridges).run()
    assert version.metrics["bridges"]["bridges"] == bridges
    assert np.isfinite(version.metrics["test_gauc"]["value"])
