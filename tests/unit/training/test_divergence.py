"""A run whose numbers are no longer finite ends with the place; nothing is written, averaged or ranked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from aif_stream.errors import ArtefactError, NonFiniteError, TrainingDataError
from aif_stream.model.artefact import save
from aif_stream.model.config import Kind
from aif_stream.model.net import Net
from aif_stream.model.version import ModelVersion
from aif_stream.training.dataset import Dataset
from aif_stream.training.loop import QUICK, Recipe, Trainer
from aif_stream.training.metrics import auc, auc_draws, gauc, ratio
from aif_stream.training.sweep import COLD, Entry, run_sweep
from aif_stream.training.synthetic import Synthetic

DATA = "synthetic:users=40,items=300,impressions=3000,seed=1"
SMALL = replace(QUICK, epochs=2, impressions=2000)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Synthetic(40, 300, 1).dataset(3000)


def aif(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "aif_stream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environ)


@pytest.mark.parametrize(("rate", "model"), [("1e18", "aif"), ("1e300", "twotower")])
def test_diverged_run_exits_1_and_leaves_no_artefact(tmp_path: Path, rate: str, model: str) -> None:
    out = tmp_path / "v1"
    done = aif(
        "train", DATA, "--out", str(out), "--model", model, "--preset", "quick", "--set", f"learning_rate={rate}"
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: v1: training diverged: loss" in done.stderr
    assert "epoch 1, step" in done.stderr
    assert "gradient norm" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_learning_rate_that_is_no_rate_is_wrong_usage(tmp_path: Path) -> None:
    done = aif("train", DATA, "--out", str(tmp_path / "v1"), "--set", "learning_rate=NaN")
    assert done.returncode == 2
    assert "learning_rate is nan" in done.stderr
    for rate in (float("inf"), -1.0):
        with pytest.raises(ValueError, match="learning_rate is"):
            replace(SMALL, learning_rate=rate)


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_of_model_ends_when_it_diverges(data: Dataset, kind: Kind) -> None:
    with pytest.raises(NonFiniteError, match=r"v: training diverged: .*\(epoch 1, step \d+ of \d+, gradient norm"):
        Trainer(data, "v", replace(SMALL, learning_rate=1e18), kind=kind).run()


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_infinite_gradient_is_not_hidden_by_clipping(data: Dataset, precision: str) -> None:
    trainer = Trainer(data, "v", replace(SMALL, precision=precision))
    trainer.net.scorer.up.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 1 of \d+, gradient norm (inf|nan)"):
        trainer.run()


def after_epoch(damage: Callable[[Net], None], data: Dataset, recipe: Recipe = SMALL) -> None:
    """Run, with the weights damaged after the last step of the first epoch."""
    trainer = Trainer(data, "v", recipe)

    def on_batch(epoch: int, batch: int, batches: int, loss: float) -> None:
        if batch == batches:
            with torch.no_grad():
                damage(trainer.net)

    trainer.run(on_batch)


def test_weight_that_no_later_batch_reads_ends_the_run(data: Dataset) -> None:
    with pytest.raises(NonFiniteError, match=r"item_tower\.ids\.weight holds weights that are not finite \(epoch 1"):
        after_epoch(lambda net: net.item_tower.ids.weight[-1].fill_(torch.nan), data)


def test_scores_beyond_float32_end_the_run(data: Dataset) -> None:
    with pytest.raises(NonFiniteError, match=r"\d+ of \d+ scores of judged impressions are not finite \(epoch 1"):
        after_epoch(lambda net: net.scorer.down.weight.fill_(3e38), data)


def test_rows_beyond_16_bits_end_the_run(data: Dataset) -> None:
    with pytest.raises(NonFiniteError, match=r"v: training diverged: v: \d+ item rows are beyond the range of 16 bits"):
        after_epoch(lambda net: net.item_tower.share.weight.mul_(1e7), data, replace(SMALL, epochs=1))


def test_checkpoint_of_a_diverged_run_is_refused(data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "v.checkpoint"
    trainer = Trainer(data, "v", SMALL)
    trainer.keep(path)
    trainer._standing.total = float("nan")
    trainer._write()
    with pytest.raises(ArtefactError, match=r"is of a run that diverged.*--restart"):
        Trainer(data, "v", SMALL).keep(path)


def test_sweep_names_the_model_that_diverged(data: Dataset) -> None:
    entries = [COLD, Entry("aif, hot", choices={"bridge_temperature": 1e-45})]
    with pytest.raises(NonFiniteError, match=r"aif, hot, seed 7: sweep: training diverged: .*epoch 1, step"):
        run_sweep(entries, data, SMALL, 7)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_metrics_refuse_scores_that_are_not_finite(wrong: float) -> None:
    user, clicked = np.array([0, 0, 1, 1]), np.array([True, False, True, False])
    scores = np.array([1.0, 2.0, wrong, 0.0])
    for metric in (gauc, auc_draws):
        with pytest.raises(NonFiniteError, match=r"1 of 4 scores are not finite; number 3 is"):
            metric(user, scores, clicked)
    with pytest.raises(NonFiniteError):
        auc(scores, clicked)
    for top, bottom in ((scores, np.ones(4)), (np.ones(4), scores)):
        with pytest.raises(NonFiniteError, match="sums of users"):
            ratio(top, bottom)


def test_weight_that_is_not_finite_is_not_written(data: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(data, "v", SMALL)
    with torch.no_grad():
        trainer.net.scorer.up.bias[0] = torch.inf
    with pytest.raises(ArtefactError, match=r"v: scorer\.up\.bias holds numbers that are not finite"):
        save(tmp_path / "v", ModelVersion("v", trainer.net))
    assert list(tmp_path.iterdir()) == []


def test_number_without_a_finite_deviation_is_refused(data: Dataset) -> None:
    attributes = data.items[0].attributes | {"price": 1.7e308}
    items = [msgspec.structs.replace(data.items[0], attributes=attributes), *data.items[1:]]
    with pytest.raises(TrainingDataError, match=r"price: numbers up to 1\.7e\+308 have no deviation in 64 bits"):
        Trainer(replace(data, items=items), "v", SMALL)


def test_evaluate_of_a_model_with_nan_scores_exits_1(data: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(data, "v1", SMALL)
    with torch.no_grad():
        trainer.net.scorer.down.weight.fill_(3e38)
    save(tmp_path / "v1", ModelVersion("v1", trainer.net))
    done = aif("evaluate", str(tmp_path / "v1"), DATA)
    assert done.returncode == 1
    assert "scores are not finite" in done.stderr
    assert done.stdout == ""
