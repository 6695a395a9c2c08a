"""``aif train`` and ``aif evaluate`` as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aif_stream.model.artefact import load
from tests.precision import EPS16, rounding_bound, score_bound

DATA = "synthetic:users=40,items=300,impressions=3000,seed=1"


def aif(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aif_stream", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"OMP_NUM_THREADS": "1", "PATH": ""},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "v1"
    done = aif("train", DATA, "--out", str(out), "--preset", "quick", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["version"] == "v1"
    assert printed["metrics"]["data"] == DATA
    assert "epoch 1: loss" in done.stderr
    return out


def test_evaluate_prints_the_contract_as_json(trained: Path) -> None:
    done = aif("evaluate", str(trained), DATA, "--json")
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    assert [line["model"] for line in lines] == ["v1", "popularity", "item-mean"]
    for line in lines:
        assert {"model", "metrics", "online_ms_per_10k", "online_mflop_per_10k"} <= line.keys()
        for name in ("gauc", "auc", "hr@100"):
            metric = line["metrics"][name]
            assert metric["low"] <= metric["value"] <= metric["high"]
    assert lines[0]["online_ms_per_10k"] > 0
    assert lines[0]["parity"]["float32 rows"]["score_error_max"] < score_bound(load(trained).config, 1.0)
    assert lines[0]["parity"]["f16 rows"]["score_error_max"] < rounding_bound(1.0, EPS16)


def test_evaluate_prints_a_table(trained: Path) -> None:
    done = aif("evaluate", str(trained), DATA)
    assert done.returncode == 0, done.stderr
    assert "GAUC" in done.stdout
    assert "popularity" in done.stdout


def test_an_artefact_is_not_overwritten(trained: Path) -> None:
    done = aif("train", DATA, "--out", str(trained))
    assert done.returncode == 1
    assert "exists already" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "nothing:x", "--out", "m"], 1, "names no data set"),
        (["train", DATA], 2, "--out"),
        (["train", DATA, "--out", "m", "--model", "magic"], 2, "--model"),
        (["train", DATA, "--out", "m", "--set", "wings=2"], 2, "'wings' is no field"),
        (["train", DATA, "--out", "m", "--set", "bridges=many"], 2, "bridges: Expected"),
        (["train", DATA, "--out", "m", "--set", 'parts=["bea","wings"]'], 2, "parts: Invalid enum value"),
        (["train", DATA, "--out", "m", "--set", "codes=-1"], 1, "codes are of the tiers"),
        (["train", DATA, "--out", "m", "--device", "cuda"], 1, "no CUDA device"),
        (["evaluate", "/nowhere", DATA], 1, "manifest.json"),
    ],
)
def test_wrong_calls_say_what_is_wrong(arguments: list[str], code: int, message: str) -> None:
    done = aif(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_models_are_compared_with_paired_differences(trained: Path, tmp_path: Path) -> None:
    choices = ["--set", 'parts=["tiers","sim"]', "--set", "second_key=brand", "--set", "impressions=1000"]
    for model, more in (("exact", choices), ("aif", choices)):
        done = aif("train", DATA, "--out", str(tmp_path / model), "--preset", "quick", "--model", model, *more)
        assert done.returncode == 0, done.stderr
    against = ["--against", str(tmp_path / "exact"), "--against", str(tmp_path / "aif")]
    done = aif("evaluate", str(trained), DATA, *against, "--json")
    assert done.returncode == 0, done.stderr
    first, exact, less, *_ = json.loads(done.stdout)
    assert first["difference"] == {}
    assert exact["online_mflop_per_10k"] > 10 * less["online_mflop_per_10k"]
    for line in (exact, less):
        for name, gap in line["difference"].items():
            assert gap["value"] == pytest.approx(line["metrics"][name]["value"] - first["metrics"][name]["value"])
            assert gap["low"] <= gap["value"] <= gap["high"]
    assert {"ndcg@10", "ndcg@100", "hr@10", "logloss", "calibration"} <= first["metrics"].keys()
    assert "impressions of the test part" in str(first["candidates"])
    done = aif("evaluate", str(trained), DATA, *against[2:])
    assert "less v1, paired" in done.stdout
