"""``aif experiment latency``: real servers are started, asked in both modes, and told apart in a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from aif_stream.cli.experiment import experiment
from aif_stream.runtime.latency import quantiles


@pytest.mark.timeout(240)
def test_overlapping_hides_the_user_side_behind_a_slow_retrieval(tmp_path: Path) -> None:
    sizes = ("--retrieval-ms", "0,100", "--history", "50", "--candidates", "100", "--items", "300", "--requests", "8")
    done = CliRunner().invoke(
        experiment, ["latency", *sizes, "--models", "cold,classic", "--out", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "results.json").read_text())
    quick, slow = found["cells"]
    assert (quick["retrieval_ms"], slow["retrieval_ms"]) == (0, 100)
    assert min(slow["sequential_ms"]["p50"], slow["overlapped_ms"]["p50"]) >= 100
    assert slow["hidden_share"]["value"] > 0.3, "all of it, but for a machine that is busy"
    assert slow["stages_p50_ms"]["retrieval"] >= 100
    assert slow["degraded"] == 0
    aif, *others = found["costs"]
    assert (aif["model"], *(one["model"] for one in others)) == ("aif", "cold", "classic")
    assert {"value", "low", "high"} == set(aif["over_cold"]) == set(aif["over_classic"])
    assert all(one["cpu_ms"]["value"] > 0 for one in found["costs"])
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in found["figures"])
    assert "data:image/png" in (tmp_path / "report.html").read_text()


def test_quantiles_are_of_the_values() -> None:
    assert quantiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p90": 2.8, "p99": 2.98}


@pytest.mark.parametrize(
    ("arguments", "named"), [(("--models", "din"), "--models"), (("--candidates", "500", "--items", "400"), "--cand")]
)
def test_options_that_are_none_are_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    done = CliRunner().invoke(experiment, ["latency", *arguments, "--out", str(tmp_path / "r")])
    assert done.exit_code == 2
    assert named in done.output
    assert not (tmp_path / "r").exists()
