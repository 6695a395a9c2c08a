"""A run that is killed goes on, and ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aif_stream.errors import ArtefactError
from aif_stream.model.artefact import read_manifest
from aif_stream.training.dataset import Dataset
from aif_stream.training.loop import QUICK, Trainer
from aif_stream.training.synthetic import Synthetic

DATA = "synthetic:users=60,items=400,impressions=16000,seed=2"
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(out: Path, *more: str) -> list[str]:
    arguments = ["train", DATA, "--out", str(out), "--name", "v", "--preset", "quick", *more]
    return [sys.executable, "-m", "aif_stream", *arguments]


def standing(checkpoint: Path) -> dict[str, int]:
    # Opened once: safe_open opens a path twice, and a running training replaces the file between.
    with checkpoint.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["standing"])


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, timeout=120, env=ENVIRON)
    out, checkpoint = tmp_path / "killed", tmp_path / "killed.checkpoint"
    run = subprocess.Popen(command(out, "--checkpoint-every", "0"), stderr=subprocess.DEVNULL, env=ENVIRON)
    limit = time.monotonic() + 60
    while not checkpoint.exists() or not standing(checkpoint)["batch"] > 2:
        assert run.poll() is None
        assert time.monotonic() < limit
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not out.exists()
    stood = standing(checkpoint)
    done = subprocess.run(command(out), check=True, capture_output=True, text=True, timeout=120, env=ENVIRON)
    assert f"going on from {checkpoint}: epoch {stood['epoch']}, {stood['batch']} batches" in done.stderr
    assert not checkpoint.exists()
    whole, killed = read_manifest(tmp_path / "whole"), read_manifest(out)
    assert killed.weights_sha256 == whole.weights_sha256
    assert killed.metrics["test_gauc"] == whole.metrics["test_gauc"]


@pytest.fixture(scope="module")
def data() -> Dataset:
    torch.set_num_threads(1)
    return Synthetic(40, 300, 1).dataset(4000)


@pytest.fixture
def kept(data: Dataset, tmp_path: Path) -> Path:
    trainer = Trainer(data, "v", replace(QUICK, epochs=1))
    assert trainer.keep(tmp_path / "c") is None
    trainer.run()
    return tmp_path / "c"


def test_a_checkpoint_of_other_settings_or_data_is_refused(data: Dataset, kept: Path) -> None:
    assert Trainer(data, "v", replace(QUICK, epochs=1)).keep(kept) is not None
    for trainer in (
        Trainer(data, "v", replace(QUICK, epochs=2)),
        Trainer(data, "v", replace(QUICK, epochs=1), bridges=4),
        Trainer(Synthetic(40, 300, 2).dataset(4000), "v", replace(QUICK, epochs=1)),
    ):
        with pytest.raises(ArtefactError, match="of another run") as error:
            trainer.keep(kept)
        assert "--restart" in error.value.mend


def test_a_damaged_checkpoint_is_refused(data: Dataset, kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ArtefactError, match="is no checkpoint"):
        Trainer(data, "v", replace(QUICK, epochs=1)).keep(kept)


def test_a_finished_run_is_not_trained_again(data: Dataset, kept: Path) -> None:
    trainer = Trainer(data, "v", replace(QUICK, epochs=1))
    trainer.keep(kept)
    batches: list[int] = []
    version = trainer.run(lambda *told: batches.append(told[1]))
    assert not batches
    assert version.metrics["epochs"] == 1
